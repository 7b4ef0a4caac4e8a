//! Connection tracking over netlink: what flows the kernel follows, and making it forget one.
//!
//! Only what Services need: UDP has no end of connection, so a flow whose endpoint is gone would be translated to it for
//! as long as the client goes on sending. A host may follow a hundred thousand flows that are none of its Services', so the
//! kernel is asked for those to one place ([`To`]), and gives only those (Linux 5.8; an older one gives all, which is slower
//! and no other). Messages and attributes are those of `linux/netfilter/nfnetlink_conntrack.h`; what a filter's bits mean
//! is in the kernel's `net/netfilter/nf_internals.h` only.

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_sys::{Socket, SocketAddr as Kernel, protocols::NETLINK_NETFILTER};

use super::dump::{
    self, CTA_IP_V4_DST, CTA_IP_V6_DST, CTA_PROTO_DST_PORT, CTA_PROTO_NUM, CTA_TUPLE_IP,
    CTA_TUPLE_ORIG, CTA_TUPLE_PROTO, CTA_TUPLE_REPLY, End,
};
use crate::nft::wire::{Attributes, Attrs, Messages, message};

/// A flow as the kernel follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Protocol number.
    pub protocol: u8,
    /// Who sent the first packet.
    pub source: SocketAddr,
    /// Where the first packet was sent to.
    pub destination: SocketAddr,
    /// Who answers: the destination after translation.
    pub answers: SocketAddr,
    /// The original tuple and the kernel's id as they came, for [`Conntrack::forget`].
    tuple: Vec<u8>,
    id: Option<[u8; 4]>,
    zone: Option<[u8; 2]>,
}

/// Where flows were sent to that are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// Anywhere, by IPv4 or by IPv6.
    Any,
    /// A port of anybody, by IPv4 if true.
    Port(bool, u16),
    /// A port of one address.
    Place(SocketAddr),
}

impl To {
    /// The families to ask for.
    fn families(self) -> &'static [i32] {
        match self {
            Self::Any => &[libc::AF_INET, libc::AF_INET6],
            Self::Port(true, _) | Self::Place(SocketAddr::V4(_)) => &[libc::AF_INET],
            Self::Port(false, _) | Self::Place(SocketAddr::V6(_)) => &[libc::AF_INET6],
        }
    }

    /// The request's attributes: a tuple, and the bits of what in it counts.
    fn filter(self, protocol: u8) -> Attrs {
        let (address, port) = match self {
            Self::Any => (None, None),
            Self::Port(_, port) => (None, Some(port)),
            Self::Place(place) => (Some(place.ip()), Some(place.port())),
        };
        let mut bits = BY_PROTOCOL;
        bits |= port.map_or(0, |_| BY_PORT) | address.map_or(0, |_| BY_ADDRESS);
        let mut attrs = Attrs::default();
        attrs.nest(CTA_TUPLE_ORIG, |tuple| {
            if let Some(address) = address {
                tuple.nest(CTA_TUPLE_IP, |of| {
                    match address {
                        IpAddr::V4(ip) => of.bytes(CTA_IP_V4_DST, &ip.octets()),
                        IpAddr::V6(ip) => of.bytes(CTA_IP_V6_DST, &ip.octets()),
                    };
                });
            }
            tuple.nest(CTA_TUPLE_PROTO, |of| {
                of.bytes(CTA_PROTO_NUM, &[protocol]);
                if let Some(port) = port {
                    of.bytes(CTA_PROTO_DST_PORT, &port.to_be_bytes());
                }
            });
        });
        attrs.nest(CTA_FILTER, |filter| {
            // Unlike all else, in the host's order.
            filter.bytes(CTA_FILTER_ORIG_FLAGS, &bits.to_ne_bytes());
            filter.bytes(CTA_FILTER_REPLY_FLAGS, &0_u32.to_ne_bytes());
        });
        attrs
    }
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The flows that were wanted.
    pub flows: Vec<Flow>,
    /// How many the kernel gave for it.
    pub read: usize,
}

/// A connection to connection tracking of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
}

impl Conntrack {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel has no netfilter netlink.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&Kernel::new(0, 0))?;
        socket.set_rx_buf_sz(RECEIVE_BUFFER)?;
        Ok(Self { socket })
    }

    /// The flows of one protocol `to` there that `wanted` says yes to. Flows that come or go meanwhile may be missed.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn flows(&self, protocol: u8, to: To, wanted: impl Fn(&Flow) -> bool) -> io::Result<Found> {
        let mut found = Found::default();
        for family in to.families() {
            let mut take = |attributes: Attributes<'_>| {
                found.read += 1;
                let flow = read(attributes).filter(|flow| flow.protocol == protocol);
                found.flows.extend(flow.filter(|flow| wanted(flow)));
            };
            match self.dump(*family, &to.filter(protocol), &mut take) {
                // A kernel that knows filters and not this one.
                Err(error) if is_unknown(&error) => {
                    self.dump(*family, &Attrs::default(), &mut take)?;
                }
                done => done?,
            }
        }
        Ok(found)
    }

    fn dump(
        &self,
        family: i32,
        filter: &Attrs,
        take: impl FnMut(Attributes<'_>),
    ) -> io::Result<()> {
        self.send(GET, REQUEST | DUMP, family as u8, filter)?;
        self.answers(take)
    }

    /// Makes the kernel forget a flow: its next packet is the first of another one. One that is gone is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn forget(&self, flow: &Flow) -> io::Result<()> {
        let family = if flow.source.is_ipv4() {
            libc::AF_INET
        } else {
            libc::AF_INET6
        };
        let mut attrs = Attrs::default();
        attrs.bytes(CTA_TUPLE_ORIG | NESTED, &flow.tuple);
        if let Some(zone) = flow.zone {
            attrs.bytes(CTA_ZONE, &zone);
        }
        if let Some(id) = flow.id {
            attrs.bytes(CTA_ID, &id);
        }
        self.send(DELETE, REQUEST | ACK, family as u8, &attrs)?;
        match self.answers(|_| {}) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            done => done,
        }
    }

    fn send(&self, kind: u16, flags: u16, family: u8, attrs: &Attrs) -> io::Result<()> {
        let mut request = Vec::new();
        message(&mut request, SUBSYSTEM | kind, flags, 1, family, 0, attrs);
        self.socket.send(&request, 0).map(drop)
    }

    /// Reads to the end of a dump, or to the acknowledgement.
    fn answers(&self, mut take: impl FnMut(Attributes<'_>)) -> io::Result<()> {
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            for answer in Messages(&bytes) {
                match answer.kind {
                    DONE => return Ok(()),
                    ERROR => {
                        let code = answer.payload.first_chunk().copied();
                        return match code.map_or(-libc::EIO, i32::from_ne_bytes) {
                            0 => Ok(()),
                            code => Err(io::Error::from_raw_os_error(-code)),
                        };
                    }
                    _ => take(answer.attributes()),
                }
            }
        }
    }
}

fn is_unknown(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL))
}

fn read(attributes: Attributes<'_>) -> Option<Flow> {
    let tuple = attributes.find(CTA_TUPLE_ORIG)?;
    let asked = dump::tuple(tuple)?;
    let answer = dump::tuple(attributes.find(CTA_TUPLE_REPLY)?)?;
    let at = |end: End| SocketAddr::new(end.ip, end.port);
    Some(Flow {
        protocol: asked.protocol,
        source: at(asked.from),
        destination: at(asked.to),
        answers: at(answer.from),
        tuple: tuple.to_vec(),
        id: attributes.find(CTA_ID).and_then(|id| id.try_into().ok()),
        zone: attributes
            .find(CTA_ZONE)
            .and_then(|zone| zone.try_into().ok()),
    })
}

const RECEIVE_BUFFER: usize = 1 << 20;
/// `NFNL_SUBSYS_CTNETLINK`, in the upper byte.
const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = 1;
const DELETE: u16 = 2;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const NESTED: u16 = 0x8000;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
/// `CTA_FILTER_F_CTA_IP_DST`.
const BY_ADDRESS: u32 = 1 << 1;
/// `CTA_FILTER_F_CTA_PROTO_NUM`.
const BY_PROTOCOL: u32 = 1 << 3;
/// `CTA_FILTER_F_CTA_PROTO_DST_PORT`.
const BY_PORT: u32 = 1 << 5;
