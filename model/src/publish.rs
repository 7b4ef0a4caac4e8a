//! Published ports: a port of the host that leads to a port of a container.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{BadProtocol, Protocol};

/// A port of the host that leads to a port of a container.
///
/// As text it is `[ADDRESS:]HOST-PORT:PORT[/PROTOCOL]`, an IPv6 address in brackets, as Docker has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PublishedPort {
    /// TCP, UDP or SCTP.
    #[serde(default)]
    pub protocol: Protocol,
    /// The host's address at which it is; every one when absent, every one of a family when it is `0.0.0.0` or `::`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, example = "192.0.2.1"))]
    pub address: Option<IpAddr>,
    /// The host's port.
    #[cfg_attr(feature = "openapi", schema(value_type = u16, minimum = 1))]
    pub host_port: NonZeroU16,
    /// The container's port.
    #[cfg_attr(feature = "openapi", schema(value_type = u16, minimum = 1))]
    pub port: NonZeroU16,
}

impl PublishedPort {
    /// The host's address, unless it is every one.
    pub fn one_address(&self) -> Option<IpAddr> {
        self.address.filter(|address| !address.is_unspecified())
    }

    /// Whether it is to be had over IPv4 (`true`) or IPv6.
    pub fn is_of(&self, v4: bool) -> bool {
        self.address.is_none_or(|address| address.is_ipv4() == v4)
    }

    /// Whether a packet to the host could be meant for both.
    pub fn collides(&self, other: &Self) -> bool {
        if (self.protocol, self.host_port) != (other.protocol, other.host_port) {
            return false;
        }
        match (self.one_address(), other.one_address()) {
            (Some(one), Some(other)) => one == other,
            _ => [true, false]
                .into_iter()
                .any(|v4| self.is_of(v4) && other.is_of(v4)),
        }
    }
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            None => {}
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
        }
        write!(f, "{}:{}/{}", self.host_port, self.port, self.protocol)
    }
}

/// The text is no published port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPublishedPort {
    /// It has not the right parts.
    #[error("\"{0}\" is not [ADDRESS:]HOST-PORT:PORT[/PROTOCOL]")]
    Form(String),
    /// It names no protocol that is known.
    #[error(transparent)]
    Protocol(#[from] BadProtocol),
}

impl FromStr for PublishedPort {
    type Err = BadPublishedPort;

    fn from_str(text: &str) -> Result<Self, BadPublishedPort> {
        let form = || BadPublishedPort::Form(text.to_owned());
        let (place, protocol) = match text.rsplit_once('/') {
            Some((place, protocol)) => (place, protocol.parse()?),
            None => (text, Protocol::Tcp),
        };
        let (rest, port) = place.rsplit_once(':').ok_or_else(form)?;
        let (address, host_port) = match rest.rsplit_once(':') {
            Some((address, host_port)) => (Some(address), host_port),
            None => (None, rest),
        };
        let address = address.map(|address| {
            let bare = address
                .strip_prefix('[')
                .and_then(|rest| rest.strip_suffix(']'));
            let of_form = bare.is_some() == bare.unwrap_or(address).contains(':');
            let parsed = bare.unwrap_or(address).parse().ok();
            parsed.filter(|_| of_form).ok_or_else(form)
        });
        Ok(Self {
            protocol,
            address: address.transpose()?,
            host_port: host_port.parse().map_err(|_| form())?,
            port: port.parse().map_err(|_| form())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_read() {
        for (text, shown) in [
            ("80:8080", "80:8080/tcp"),
            ("53:5353/udp", "53:5353/udp"),
            ("192.0.2.1:1:2/sctp", "192.0.2.1:1:2/sctp"),
            ("[2001:db8::1]:1:2", "[2001:db8::1]:1:2/tcp"),
            ("[::]:1:2", "[::]:1:2/tcp"),
        ] {
            let port: PublishedPort = text.parse().unwrap();
            assert_eq!(port.to_string(), shown);
            assert_eq!(shown.parse(), Ok(port));
        }
        for wrong in [
            "",
            "80",
            "0:80",
            "80:0",
            "80:65536",
            "a:80:80",
            "::1:80:80",
            "[192.0.2.1]:80:80",
            "80:80/icmp",
            "[::1:80:80",
            ":80:80",
        ] {
            assert!(wrong.parse::<PublishedPort>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn ports_collide_like_sockets() {
        let port = |text: &str| text.parse::<PublishedPort>().unwrap();
        for (one, other, collide) in [
            ("80:1", "80:2", true),
            ("80:1", "81:1", false),
            ("80:1", "80:1/udp", false),
            ("192.0.2.1:80:1", "192.0.2.2:80:1", false),
            ("192.0.2.1:80:1", "192.0.2.1:80:2", true),
            ("192.0.2.1:80:1", "80:1", true),
            ("192.0.2.1:80:1", "0.0.0.0:80:1", true),
            ("192.0.2.1:80:1", "[::]:80:1", false),
            ("0.0.0.0:80:1", "[::]:80:1", false),
            ("[2001:db8::1]:80:1", "[::]:80:1", true),
        ] {
            assert_eq!(port(one).collides(&port(other)), collide, "{one} {other}");
            assert_eq!(port(other).collides(&port(one)), collide, "{other} {one}");
        }
    }
}
