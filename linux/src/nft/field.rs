//! What a rule can ask of a packet: where each answer comes from, how wide it is, and what must hold for it to mean
//! anything.
//!
//! An IPv4 address is only there in an IPv4 packet, a TCP port only in TCP; [`Rule`](super::Rule) adds those tests by
//! itself, once.

use super::wire::Attrs;

/// A property of the packet, its connection or its route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Field {
    /// Name of the interface it came in by ([`Value::Name`](super::Value::Name)).
    Iifname,
    /// Name of the interface it leaves by.
    Oifname,
    /// Kind of the interface it came in by, such as `bridge` ([`Value::Name`](super::Value::Name)).
    Iifkind,
    /// To whom the link layer addressed it: `PACKET_HOST` 0, broadcast 1, multicast 2, other host 3
    /// ([`Value::Byte`](super::Value::Byte)).
    PktType,
    /// IPv4 or IPv6 ([`Value::IPV4`](super::Value::IPV4), [`Value::IPV6`](super::Value::IPV6)).
    NfProto,
    /// Protocol above IP, extension headers skipped ([`Value::Byte`](super::Value::Byte)).
    L4Proto,
    /// The packet's mark ([`Value::Number`](super::Value::Number)).
    Mark,
    /// IPv4 source.
    Ip4Saddr,
    /// IPv4 destination.
    Ip4Daddr,
    /// IPv6 source.
    Ip6Saddr,
    /// IPv6 destination.
    Ip6Daddr,
    /// Source port of any protocol that begins with ports; test [`Field::L4Proto`] with it.
    Sport,
    /// Destination port of any protocol that begins with ports; test [`Field::L4Proto`] with it.
    Dport,
    /// TCP source port.
    TcpSport,
    /// TCP destination port.
    TcpDport,
    /// TCP flags: FIN 1, SYN 2, RST 4, PSH 8, ACK 16 ([`Value::Byte`](super::Value::Byte)).
    TcpFlags,
    /// UDP source port.
    UdpSport,
    /// UDP destination port.
    UdpDport,
    /// SCTP source port.
    SctpSport,
    /// SCTP destination port.
    SctpDport,
    /// ICMP type, in IPv4.
    Icmp4Type,
    /// ICMPv6 type.
    Icmp6Type,
    /// State of the connection, bits [`Field::INVALID`] to [`Field::UNTRACKED`].
    CtState,
    /// Status of the connection, bits such as [`Field::DNAT`].
    CtStatus,
    /// Direction within the connection: 0 original, 1 reply ([`Value::Byte`](super::Value::Byte)).
    CtDirection,
    /// The connection's mark.
    CtMark,
    /// IPv4 source of the connection's packets in a direction, before translation.
    CtIp4Saddr(Direction),
    /// IPv4 destination of the connection's packets in a direction, before translation.
    CtIp4Daddr(Direction),
    /// IPv6 source of the connection's packets in a direction, before translation.
    CtIp6Saddr(Direction),
    /// IPv6 destination of the connection's packets in a direction, before translation.
    CtIp6Daddr(Direction),
    /// Destination port of the connection's packets in a direction, before translation.
    CtDport(Direction),
    /// Whether the route back to the source leaves by the interface the packet came in by: 1 or 0
    /// ([`Value::Number`](super::Value::Number)); `fib saddr . iif oif`. Only in prerouting.
    RouteBack,
    /// What kind of address the source is to this host (`RTN_*`: [`Field::UNICAST`], [`Field::LOCAL`], ...).
    SaddrType,
    /// What kind of address the destination is to this host.
    DaddrType,
    /// Whether this host has a socket for the packet that is bound to a foreign address: 1 ([`Value::Byte`](super::Value::Byte)),
    /// or the rule ends where there is no socket at all. In prerouting.
    Transparent,
    /// A random number below this one ([`Value::Number`](super::Value::Number)).
    Random(u32),
}

/// Which packets of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    /// As the side that opened it sends.
    Original = 0,
    /// As the other side answers.
    Reply = 1,
}

impl Field {
    /// Connection state: not to be made sense of.
    pub const INVALID: u32 = 1;
    /// Connection state: seen in both directions.
    pub const ESTABLISHED: u32 = 2;
    /// Connection state: belongs to another connection, such as an ICMP error.
    pub const RELATED: u32 = 4;
    /// Connection state: first packets.
    pub const NEW: u32 = 8;
    /// Connection state: not tracked.
    pub const UNTRACKED: u32 = 64;
    /// Connection status: the source was translated.
    pub const SNAT: u32 = 16;
    /// Connection status: the destination was translated.
    pub const DNAT: u32 = 32;
    /// Address kind: another host's.
    pub const UNICAST: u32 = 1;
    /// Address kind: this host's own.
    pub const LOCAL: u32 = 2;
    /// Address kind: broadcast.
    pub const BROADCAST: u32 = 3;
    /// Address kind: multicast.
    pub const MULTICAST: u32 = 5;

    /// Where it is read from.
    const fn source(self) -> Source {
        match self {
            Self::Iifname => Source::Meta { key: 6, width: 16 },
            Self::Oifname => Source::Meta { key: 7, width: 16 },
            Self::Iifkind => Source::Meta { key: 26, width: 16 },
            Self::PktType => Source::Meta { key: 19, width: 1 },
            Self::NfProto => Source::Meta { key: 15, width: 1 },
            Self::L4Proto => Source::Meta { key: 16, width: 1 },
            Self::Mark => Source::Meta { key: 3, width: 4 },
            Self::Ip4Saddr => Source::network(12, 4),
            Self::Ip4Daddr => Source::network(16, 4),
            Self::Ip6Saddr => Source::network(8, 16),
            Self::Ip6Daddr => Source::network(24, 16),
            Self::Sport | Self::TcpSport | Self::UdpSport | Self::SctpSport => {
                Source::transport(0, 2)
            }
            Self::Dport | Self::TcpDport | Self::UdpDport | Self::SctpDport => {
                Source::transport(2, 2)
            }
            Self::TcpFlags => Source::transport(13, 1),
            Self::Icmp4Type | Self::Icmp6Type => Source::transport(0, 1),
            Self::CtState => Source::ct(0, 4),
            Self::CtStatus => Source::ct(2, 4),
            Self::CtDirection => Source::ct(1, 1),
            Self::CtMark => Source::ct(3, 4),
            Self::CtIp4Saddr(way) => Source::ct_way(19, 4, way),
            Self::CtIp4Daddr(way) => Source::ct_way(20, 4, way),
            Self::CtIp6Saddr(way) => Source::ct_way(21, 16, way),
            Self::CtIp6Daddr(way) => Source::ct_way(22, 16, way),
            Self::CtDport(way) => Source::ct_way(12, 2, way),
            Self::RouteBack => Source::Fib {
                result: 1,
                flags: 0x29,
            },
            Self::SaddrType => Source::Fib {
                result: 3,
                flags: 0x1,
            },
            Self::DaddrType => Source::Fib {
                result: 3,
                flags: 0x2,
            },
            Self::Transparent => Source::Socket,
            Self::Random(below) => Source::Random { below },
        }
    }

    /// Bytes it fills of a register.
    pub(super) const fn width(self) -> usize {
        match self.source() {
            Source::Meta { width, .. }
            | Source::Payload { width, .. }
            | Source::Ct { width, .. } => width,
            Source::Fib { .. } | Source::Random { .. } => 4,
            Source::Socket => 1,
        }
    }

    /// The family a packet must be of to have it, as `NFPROTO_*`.
    pub(super) const fn needs_family(self) -> Option<u8> {
        match self {
            Self::Ip4Saddr | Self::Ip4Daddr | Self::Icmp4Type => Some(2),
            Self::Ip6Saddr | Self::Ip6Daddr | Self::Icmp6Type => Some(10),
            _ => None,
        }
    }

    /// The protocol a packet must be of to have it.
    pub(super) const fn needs_protocol(self) -> Option<u8> {
        match self {
            Self::TcpSport | Self::TcpDport | Self::TcpFlags => Some(6),
            Self::UdpSport | Self::UdpDport => Some(17),
            Self::SctpSport | Self::SctpDport => Some(132),
            Self::Icmp4Type => Some(1),
            Self::Icmp6Type => Some(58),
            _ => None,
        }
    }

    /// The name of the expression that loads it and, given the register, its attributes.
    pub(super) fn load(self, register: u32) -> (&'static str, Attrs) {
        let mut attrs = Attrs::default();
        let name = match self.source() {
            Source::Meta { key, .. } => {
                attrs.u32(1, register).u32(2, key);
                "meta"
            }
            Source::Payload {
                base,
                offset,
                width,
            } => {
                attrs
                    .u32(1, register)
                    .u32(2, base)
                    .u32(3, offset)
                    .u32(4, width as u32);
                "payload"
            }
            Source::Ct { key, way, .. } => {
                attrs.u32(1, register).u32(2, key);
                if let Some(way) = way {
                    attrs.bytes(3, &[way as u8]);
                }
                "ct"
            }
            Source::Fib { result, flags } => {
                attrs.u32(1, register).u32(2, result).u32(3, flags);
                "fib"
            }
            Source::Socket => {
                attrs.u32(1, NFT_SOCKET_TRANSPARENT).u32(2, register);
                "socket"
            }
            Source::Random { below } => {
                attrs.u32(1, register).u32(2, below).u32(3, 1);
                "numgen"
            }
        };
        (name, attrs)
    }
}

/// The kernel's expression behind a field; `key`, `base`, `result` and `flags` are its numbers in `nf_tables.h`.
enum Source {
    Meta {
        key: u32,
        width: usize,
    },
    Payload {
        base: u32,
        offset: u32,
        width: usize,
    },
    Ct {
        key: u32,
        width: usize,
        way: Option<Direction>,
    },
    Fib {
        result: u32,
        flags: u32,
    },
    Socket,
    Random {
        below: u32,
    },
}

const NFT_SOCKET_TRANSPARENT: u32 = 0;

impl Source {
    const fn network(offset: u32, width: usize) -> Self {
        Self::Payload {
            base: 1,
            offset,
            width,
        }
    }

    const fn transport(offset: u32, width: usize) -> Self {
        Self::Payload {
            base: 2,
            offset,
            width,
        }
    }

    const fn ct(key: u32, width: usize) -> Self {
        Self::Ct {
            key,
            width,
            way: None,
        }
    }

    const fn ct_way(key: u32, width: usize, way: Direction) -> Self {
        Self::Ct {
            key,
            width,
            way: Some(way),
        }
    }
}
