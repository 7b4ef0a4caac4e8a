//! Connection tracking over netlink: what flows the kernel follows, and making it forget one.
//!
//! Only what Services need: UDP has no end of connection, so a flow whose endpoint is gone would be translated to it for
//! as long as the client goes on sending. Messages and attributes are those of `linux/netfilter/nfnetlink_conntrack.h`.

use std::io;
use std::net::SocketAddr;

use netlink_sys::{Socket, SocketAddr as Kernel, protocols::NETLINK_NETFILTER};

use super::dump::{self, CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, End};
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

    /// The flows of one protocol that `wanted` says yes to. Flows that come or go meanwhile may be missed.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn flows(&self, protocol: u8, wanted: impl Fn(&Flow) -> bool) -> io::Result<Vec<Flow>> {
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let flags = REQUEST | DUMP;
            self.send(GET, flags, family as u8, &Attrs::default())?;
            self.answers(|attributes| {
                let flow = read(attributes).filter(|flow| flow.protocol == protocol);
                found.extend(flow.filter(|flow| wanted(flow)));
            })?;
        }
        Ok(found)
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
