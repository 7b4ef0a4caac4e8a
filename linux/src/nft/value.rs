//! The values rules compare and sets hold: addresses, protocols, ports, marks, interface names, and verdicts.
//!
//! A key of several fields is the fields one after the other, each padded to 4 bytes: the kernel's registers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::wire::Attrs;

/// What one field of a set's key, or of a map's data, is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// An IPv4 address.
    Ipv4,
    /// An IPv6 address.
    Ipv6,
    /// The family of a packet: IPv4 or IPv6.
    Family,
    /// An IP protocol number.
    Proto,
    /// A port.
    Port,
    /// A packet or connection mark.
    Mark,
    /// An interface name.
    Ifname,
    /// A plain number, such as the result of [`Field::Random`](super::Field::Random).
    Number,
}

impl Type {
    /// Bytes of the value, without padding.
    pub(super) const fn width(self) -> usize {
        match self {
            Self::Family | Self::Proto => 1,
            Self::Port => 2,
            Self::Ipv4 | Self::Mark | Self::Number => 4,
            Self::Ipv6 | Self::Ifname => 16,
        }
    }

    /// The number `nft` gives to the type (`enum datatypes` there), by which it prints it.
    pub(super) const fn code(self) -> u32 {
        match self {
            Self::Family => 2,
            Self::Number => 4,
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Proto => 12,
            Self::Port => 13,
            Self::Mark => 19,
            Self::Ifname => 41,
        }
    }

    /// Whether the value is kept in the machine's byte order.
    pub(super) const fn is_native(self) -> bool {
        matches!(self, Self::Mark | Self::Ifname | Self::Number)
    }
}

/// One value: of a comparison, of a key, of data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// An IPv4 address.
    V4(Ipv4Addr),
    /// An IPv6 address.
    V6(Ipv6Addr),
    /// One byte: a protocol, an ICMP type, a packet type, a direction.
    Byte(u8),
    /// A port.
    Port(u16),
    /// A 32-bit number in the machine's order: marks, connection states, results of lookups.
    Number(u32),
    /// An interface name of at most 15 bytes. In comparisons a final `*` means "begins with", as in `nft`; sets hold
    /// whole names only.
    Name(String),
}

impl Value {
    /// ICMP as a protocol.
    pub const ICMP: Self = Self::Byte(1);
    /// TCP as a protocol.
    pub const TCP: Self = Self::Byte(6);
    /// UDP as a protocol.
    pub const UDP: Self = Self::Byte(17);
    /// ICMPv6 as a protocol.
    pub const ICMPV6: Self = Self::Byte(58);
    /// SCTP as a protocol.
    pub const SCTP: Self = Self::Byte(132);
    /// IPv4 as the family of a packet ([`Field::NfProto`](super::Field::NfProto)).
    pub const IPV4: Self = Self::Byte(2);
    /// IPv6 as the family of a packet.
    pub const IPV6: Self = Self::Byte(10);

    /// An interface name, or with a final `*` the beginning of one.
    pub fn name(name: impl Into<String>) -> Self {
        Self::Name(name.into())
    }

    /// Whether it can stand where `kind` is asked for.
    pub(super) const fn fits(&self, kind: Type) -> bool {
        matches!(
            (self, kind),
            (Self::V4(_), Type::Ipv4)
                | (Self::V6(_), Type::Ipv6)
                | (Self::Byte(_), Type::Family | Type::Proto)
                | (Self::Port(_), Type::Port)
                | (Self::Number(_), Type::Mark | Type::Number)
                | (Self::Name(_), Type::Ifname)
        )
    }

    /// Appends the bytes as a register holds them, without padding between fields.
    pub(super) fn encode(&self, to: &mut Vec<u8>) {
        match self {
            Self::V4(address) => to.extend_from_slice(&address.octets()),
            Self::V6(address) => to.extend_from_slice(&address.octets()),
            Self::Byte(byte) => to.push(*byte),
            Self::Port(port) => to.extend_from_slice(&port.to_be_bytes()),
            Self::Number(number) => to.extend_from_slice(&number.to_ne_bytes()),
            Self::Name(name) => {
                let bytes = name.as_bytes();
                to.extend_from_slice(&bytes[..bytes.len().min(15)]);
                to.resize(to.len() + 16 - bytes.len().min(15), 0);
            }
        }
    }

    /// The bytes of a comparison: like [`Value::encode`], but a wildcard name is only its beginning.
    pub(super) fn comparand(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Self::Name(name) if name.ends_with('*') => {
                bytes.extend_from_slice(&name.as_bytes()[..name.len() - 1])
            }
            _ => self.encode(&mut bytes),
        }
        bytes
    }
}

impl From<Ipv4Addr> for Value {
    fn from(address: Ipv4Addr) -> Self {
        Self::V4(address)
    }
}

impl From<Ipv6Addr> for Value {
    fn from(address: Ipv6Addr) -> Self {
        Self::V6(address)
    }
}

impl From<IpAddr> for Value {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::V4(v4),
            IpAddr::V6(v6) => Self::V6(v6),
        }
    }
}

/// Joins fields to a key: each field padded to 4 bytes, a single one not.
pub(super) fn concat<'a>(values: impl ExactSizeIterator<Item = &'a Value>) -> Vec<u8> {
    let several = values.len() > 1;
    let mut bytes = Vec::new();
    for value in values {
        value.encode(&mut bytes);
        if several {
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
    }
    bytes
}

/// One field of an element: a value, or all from one to another, both included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub(super) low: Value,
    pub(super) high: Value,
}

impl Span {
    /// All addresses of a prefix.
    pub fn prefix(net: impl Into<IpNet>) -> Self {
        let net = net.into();
        Self {
            low: net.network().into(),
            high: net.broadcast().into(),
        }
    }

    /// Ports from one to another.
    pub const fn ports(range: RangeInclusive<u16>) -> Self {
        Self {
            low: Value::Port(*range.start()),
            high: Value::Port(*range.end()),
        }
    }

    /// Every protocol number.
    pub const fn any_proto() -> Self {
        Self {
            low: Value::Byte(0),
            high: Value::Byte(255),
        }
    }
}

impl<T: Into<Value>> From<T> for Span {
    fn from(value: T) -> Self {
        let low = value.into();
        Self {
            high: low.clone(),
            low,
        }
    }
}

/// What becomes of the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may go on; later chains of other priorities still see it.
    Accept,
    /// It ends here.
    Drop,
    /// Back to the calling chain; at the end of a base chain its policy decides.
    Return,
    /// On with another chain of the table, and back afterwards.
    Jump(String),
    /// On with another chain of the table.
    Goto(String),
}

impl Verdict {
    /// On with another chain, and back afterwards.
    pub fn jump(chain: impl Into<String>) -> Self {
        Self::Jump(chain.into())
    }

    /// On with another chain.
    pub fn goto(chain: impl Into<String>) -> Self {
        Self::Goto(chain.into())
    }

    /// Writes `NFTA_DATA_VERDICT` (2), which nests code (1) and chain (2).
    pub(super) fn encode(&self, attrs: &mut Attrs) {
        let (code, chain) = match self {
            Self::Drop => (0, None),
            Self::Accept => (1, None),
            Self::Jump(chain) => (-3i32, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
            Self::Return => (-5, None),
        };
        attrs.nest(2, |verdict| {
            verdict.u32(1, code.cast_unsigned());
            if let Some(chain) = chain {
                verdict.text(2, chain);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_several_fields_are_padded() {
        let key = [Value::V4([10, 1, 2, 3].into()), Value::TCP, Value::Port(80)];
        assert_eq!(concat(key.iter()), [10, 1, 2, 3, 6, 0, 0, 0, 0, 80, 0, 0]);
        assert_eq!(concat([Value::TCP].iter()), [6]);
    }

    #[test]
    fn names_end_in_zeros_and_wildcards_do_not() {
        assert_eq!(
            Value::name("eth0").comparand(),
            *b"eth0\0\0\0\0\0\0\0\0\0\0\0\0"
        );
        assert_eq!(Value::name("wv*").comparand(), *b"wv");
    }

    #[test]
    fn a_prefix_spans_from_its_first_to_its_last_address() {
        let span = Span::prefix("10.32.7.9/12".parse::<IpNet>().unwrap());
        assert_eq!(span.low, Value::V4([10, 32, 0, 0].into()));
        assert_eq!(span.high, Value::V4([10, 47, 255, 255].into()));
        let all = Span::prefix("::/0".parse::<IpNet>().unwrap());
        assert_eq!(all.high, Value::V6(u128::MAX.into()));
    }
}
