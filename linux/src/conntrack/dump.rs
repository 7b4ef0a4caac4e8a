//! Reads the whole table, one entry after another, in one network namespace, and what was put into it and taken out.
//!
//! The request is `IPCTNL_MSG_CT_GET` with `NLM_F_DUMP`; each answer is a `nfgenmsg` with nested attributes, numbers
//! big-endian. What is put in is told, in the same form but without counters, to the group `NFNLGRP_CONNTRACK_NEW`, and
//! what is taken out to `NFNLGRP_CONNTRACK_DESTROY`. Source: `linux/netfilter/nfnetlink_conntrack.h`,
//! `nf_conntrack_common.h`, `nf_conntrack_tcp.h`.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::ptr;

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::nft::wire::{Attributes, Attrs, Message, Messages, message};

/// One direction's source, as the kernel tells directions apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The address.
    pub ip: IpAddr,
    /// The port; 0 where the protocol has none.
    pub port: u16,
}

/// What one direction carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes, IP headers included.
    pub bytes: u64,
}

/// A connection that the kernel follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Tells it from others, together with its ends.
    pub id: u32,
    /// The IP protocol: 6 is TCP, 17 UDP, 1 and 58 ICMP.
    pub protocol: u8,
    /// Who began it.
    pub from: End,
    /// Where its first packet was sent to.
    pub asked: End,
    /// Who answers: another than was asked where the destination was translated.
    pub to: End,
    /// Who began it for the one who answers: another where the source was translated.
    pub seen_from: End,
    /// Something came back.
    pub answered: bool,
    /// It was taken up: for TCP the handshake was completed.
    pub assured: bool,
    /// TCP, and it was reset.
    pub reset: bool,
    /// Packets and bytes towards who answers; absent unless accounting was on when it began.
    pub sent: Option<Count>,
    /// The same of what came back.
    pub received: Option<Count>,
}

/// What the kernel tells of its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// A connection was put in with its first packet, which is not counted here.
    Began(Connection),
    /// One was taken out, with its last counts.
    Ended(Connection),
}

/// A connection to ctnetlink of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
    /// One for both kinds of news, so that they come in the order in which they happened.
    news: Socket,
    hears_beginnings: bool,
}

impl Conntrack {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel has no netfilter.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        let mut news = Socket::new(NETLINK_NETFILTER)?;
        news.bind_auto()?;
        news.set_non_blocking(true)?;
        make_room(&news)?;
        news.add_membership(NFNLGRP_CONNTRACK_DESTROY)?;
        Ok(Self {
            socket,
            news,
            hears_beginnings: false,
        })
    }

    /// Whether beginnings are told as well as ends, from now on; at first they are not, for each costs the kernel time.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn hear_beginnings(&mut self, wanted: bool) -> io::Result<()> {
        if wanted == self.hears_beginnings {
            return Ok(());
        }
        if wanted {
            self.news.add_membership(NFNLGRP_CONNTRACK_NEW)?;
        } else {
            self.news.drop_membership(NFNLGRP_CONNTRACK_NEW)?;
        }
        self.hears_beginnings = wanted;
        Ok(())
    }

    /// Gives what happened since the last call to `each`, in its order. True when there was more than there was room for,
    /// and some is lost.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn news(&self, mut each: impl FnMut(News)) -> io::Result<bool> {
        let mut buffer = Vec::with_capacity(BUFFER);
        let mut lost = false;
        loop {
            buffer.clear();
            match self.news.recv(&mut buffer, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(lost),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    lost = true;
                    continue;
                }
                Err(error) => return Err(error),
            }
            for message in Messages(&buffer) {
                let told = match message.kind {
                    NEW => parse(message.attributes()).map(News::Began),
                    DELETE => parse(message.attributes()).map(News::Ended),
                    _ => None,
                };
                told.into_iter().for_each(&mut each);
            }
        }
    }

    /// Gives every connection of both families to `each`; returns how many there were. Blocks while the kernel writes.
    ///
    /// # Errors
    /// Without `CAP_NET_ADMIN`, or where the kernel follows no connections.
    pub fn dump(&self, mut each: impl FnMut(Connection)) -> io::Result<usize> {
        let mut seen = 0;
        ask(&self.socket, GET, REQUEST_DUMP, |attributes| {
            if let Some(connection) = parse(attributes) {
                seen += 1;
                each(connection);
            }
        })?;
        Ok(seen)
    }
}

/// Sends a request and gives every answer to `each`; one that is no dump has one answer.
pub(super) fn ask(
    socket: &Socket,
    kind: u16,
    flags: u16,
    mut each: impl FnMut(Attributes<'_>),
) -> io::Result<()> {
    let mut request = Vec::new();
    message(&mut request, kind, flags, 1, 0, 0, &Attrs::default());
    socket.send(&request, 0)?;
    let mut buffer = Vec::with_capacity(BUFFER);
    loop {
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        for answer in Messages(&buffer) {
            match answer.kind {
                DONE => return Ok(()),
                ERROR => return Err(refusal(&answer)),
                _ => each(answer.attributes()),
            }
        }
        if flags == REQUEST {
            return Ok(());
        }
    }
}

/// Beyond what the system allows where this process may (CAP_NET_ADMIN), else as much as it allows.
fn make_room(socket: &Socket) -> io::Result<()> {
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    let value = ptr::from_ref(&ROOM).cast::<libc::c_void>();
    let (level, force) = (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE);
    // SAFETY: `value` points to an int of `size` bytes that lives across the call.
    let forced = unsafe { libc::setsockopt(socket.as_raw_fd(), level, force, value, size) };
    if forced < 0 {
        socket.set_rx_buf_sz(ROOM)?;
    }
    Ok(())
}

fn refusal(answer: &Message<'_>) -> io::Error {
    let code = answer.payload.first_chunk().copied();
    io::Error::from_raw_os_error(-i32::from_ne_bytes(code.unwrap_or_default()))
}

/// `None` for what is not between two addresses.
fn parse(attributes: Attributes<'_>) -> Option<Connection> {
    let original = tuple(attributes.find(CTA_TUPLE_ORIG)?)?;
    let reply = tuple(attributes.find(CTA_TUPLE_REPLY)?)?;
    let status = attributes.u32(CTA_STATUS).unwrap_or_default();
    let state = attributes
        .find(CTA_PROTOINFO)
        .and_then(|info| Attributes(info).find(CTA_PROTOINFO_TCP))
        .and_then(|tcp| {
            Attributes(tcp)
                .find(CTA_PROTOINFO_TCP_STATE)?
                .first()
                .copied()
        });
    Some(Connection {
        id: attributes.u32(CTA_ID).unwrap_or_default(),
        protocol: original.protocol,
        from: original.from,
        asked: original.to,
        to: reply.from,
        seen_from: reply.to,
        answered: status & IPS_SEEN_REPLY != 0,
        assured: status & IPS_ASSURED != 0,
        reset: state == Some(TCP_CONNTRACK_CLOSE),
        sent: attributes.find(CTA_COUNTERS_ORIG).and_then(count),
        received: attributes.find(CTA_COUNTERS_REPLY).and_then(count),
    })
}

/// One direction of a connection: `CTA_TUPLE_IP` and `CTA_TUPLE_PROTO`.
pub(super) struct Tuple {
    pub(super) protocol: u8,
    pub(super) from: End,
    pub(super) to: End,
}

/// Reads a tuple; `None` for what is not between two addresses.
pub(super) fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let attributes = Attributes(bytes);
    let addresses = Attributes(attributes.find(CTA_TUPLE_IP)?);
    let protocol = Attributes(attributes.find(CTA_TUPLE_PROTO)?);
    let ip = |v4, v6| {
        let four = addresses
            .find(v4)
            .and_then(|bytes| bytes.first_chunk::<4>());
        let six = addresses
            .find(v6)
            .and_then(|bytes| bytes.first_chunk::<16>());
        four.map(|bytes| IpAddr::from(*bytes))
            .or_else(|| six.map(|bytes| IpAddr::from(*bytes)))
    };
    let port = |kind| {
        let bytes = protocol.find(kind).and_then(|bytes| bytes.first_chunk());
        bytes.map_or(0, |bytes| u16::from_be_bytes(*bytes))
    };
    Some(Tuple {
        protocol: *protocol.find(CTA_PROTO_NUM)?.first()?,
        from: End {
            ip: ip(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?,
            port: port(CTA_PROTO_SRC_PORT),
        },
        to: End {
            ip: ip(CTA_IP_V4_DST, CTA_IP_V6_DST)?,
            port: port(CTA_PROTO_DST_PORT),
        },
    })
}

fn count(bytes: &[u8]) -> Option<Count> {
    Some(Count {
        packets: Attributes(bytes).u64(CTA_COUNTERS_PACKETS)?,
        bytes: Attributes(bytes).u64(CTA_COUNTERS_BYTES)?,
    })
}

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW`.
const NEW: u16 = 0x100;
/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET`.
const GET: u16 = 0x101;
/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE`.
const DELETE: u16 = 0x102;
const NFNLGRP_CONNTRACK_NEW: u32 = 1;
const NFNLGRP_CONNTRACK_DESTROY: u32 = 3;
/// Bytes of news that may wait, which the kernel doubles: some ten thousand connections that began or ended.
const ROOM: libc::c_int = 4 << 20;
pub(super) const REQUEST: u16 = 1;
pub(super) const REQUEST_DUMP: u16 = 0x301;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// A dump comes in datagrams of at most 32 KB.
const BUFFER: usize = 64 * 1024;

pub(super) const CTA_TUPLE_ORIG: u16 = 1;
pub(super) const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_COUNTERS_ORIG: u16 = 9;
const CTA_COUNTERS_REPLY: u16 = 10;
const CTA_ID: u16 = 12;
pub(super) const CTA_TUPLE_IP: u16 = 1;
pub(super) const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
pub(super) const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
pub(super) const CTA_IP_V6_DST: u16 = 4;
pub(super) const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
pub(super) const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const CTA_COUNTERS_PACKETS: u16 = 1;
const CTA_COUNTERS_BYTES: u16 = 2;
const IPS_SEEN_REPLY: u32 = 1 << 1;
const IPS_ASSURED: u32 = 1 << 2;
const TCP_CONNTRACK_CLOSE: u8 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn side(attrs: &mut Attrs, kind: u16, from: ([u8; 4], u16), to: ([u8; 4], u16)) {
        attrs.nest(kind, |tuple| {
            tuple.nest(CTA_TUPLE_IP, |ip| {
                ip.bytes(CTA_IP_V4_SRC, &from.0).bytes(CTA_IP_V4_DST, &to.0);
            });
            tuple.nest(CTA_TUPLE_PROTO, |protocol| {
                protocol
                    .bytes(CTA_PROTO_NUM, &[6])
                    .bytes(CTA_PROTO_SRC_PORT, &from.1.to_be_bytes())
                    .bytes(CTA_PROTO_DST_PORT, &to.1.to_be_bytes());
            });
        });
    }

    #[test]
    fn a_translated_connection_names_who_answers() {
        let (client, vip, backend) = (
            ([10, 32, 0, 2], 4000),
            ([10, 96, 0, 1], 80),
            ([10, 32, 0, 3], 8080),
        );
        let mut attrs = Attrs::default();
        side(&mut attrs, CTA_TUPLE_ORIG, client, vip);
        side(&mut attrs, CTA_TUPLE_REPLY, backend, client);
        attrs.u32(CTA_STATUS, IPS_SEEN_REPLY).u32(CTA_ID, 7);
        attrs.nest(CTA_PROTOINFO, |info| {
            info.nest(CTA_PROTOINFO_TCP, |tcp| {
                tcp.bytes(CTA_PROTOINFO_TCP_STATE, &[TCP_CONNTRACK_CLOSE]);
            });
        });
        attrs.nest(CTA_COUNTERS_ORIG, |count| {
            count
                .u64(CTA_COUNTERS_PACKETS, 2)
                .u64(CTA_COUNTERS_BYTES, 120);
        });
        let end = |(ip, port): ([u8; 4], u16)| End {
            ip: ip.into(),
            port,
        };
        let expected = Connection {
            id: 7,
            protocol: 6,
            from: end(client),
            asked: end(vip),
            to: end(backend),
            seen_from: end(client),
            answered: true,
            assured: false,
            reset: true,
            sent: Some(Count {
                packets: 2,
                bytes: 120,
            }),
            received: None,
        };
        assert_eq!(parse(Attributes(attrs.as_bytes())), Some(expected));
    }

    #[test]
    fn what_has_no_ends_is_left_out() {
        assert_eq!(parse(Attributes(&[])), None);
        assert_eq!(parse(Attributes(&[4, 0, 1, 0, 4, 0, 2, 0])), None);
    }
}
