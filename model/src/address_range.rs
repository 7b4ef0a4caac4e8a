//! Addresses that a container may get, as the capability `ipRanges` of CNI has them.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Deserializer, Serialize};

use crate::nets::parse_net;

/// The longest prefix of a subnet that has addresses to give besides its own, its gateway's and its broadcast address.
const LONGEST: u8 = 30;

/// A run of addresses of a subnet. Its gateway, by default the first address after the subnet's own, is never given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AddressRange {
    /// The subnet, which is the network's own range or lies in it.
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "10.32.4.0/24"))]
    subnet: Ipv4Net,
    /// The first address; that after the subnet's own when absent.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, example = "10.32.4.100"))]
    first: Ipv4Addr,
    /// The last address; that before the broadcast address when absent.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, example = "10.32.4.199"))]
    last: Ipv4Addr,
    /// The gateway, which can only be the network's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    gateway: Option<Ipv4Addr>,
}

/// As it is sent.
#[derive(Deserialize)]
struct Written {
    #[serde(deserialize_with = "subnet")]
    subnet: Ipv4Net,
    #[serde(default)]
    first: Option<Ipv4Addr>,
    #[serde(default)]
    last: Option<Ipv4Addr>,
    #[serde(default)]
    gateway: Option<Ipv4Addr>,
}

fn subnet<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Ipv4Net, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_net(&text).map_err(|bad| serde::de::Error::custom(format!("\"{text}\" is {bad}")))
}

/// Why there is no such range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAddressRange {
    /// The subnet is written with an address of it.
    #[error("{given} has bits set behind its prefix: the subnet is {}", .given.trunc())]
    HostBits {
        /// As it was given.
        given: Ipv4Net,
    },
    /// The subnet has no addresses to give.
    #[error("{0} is too small to give addresses from: at most /{LONGEST}")]
    TooSmall(Ipv4Net),
    /// An end lies elsewhere.
    #[error("{address} is not in {subnet}")]
    Outside {
        /// The end.
        address: Ipv4Addr,
        /// The subnet.
        subnet: Ipv4Net,
    },
    /// There is nothing in it that can be given.
    #[error("from {first} to {last} there is no address to give")]
    Empty {
        /// The first address.
        first: Ipv4Addr,
        /// The last one.
        last: Ipv4Addr,
    },
}

impl AddressRange {
    /// Checks the ends against the subnet.
    ///
    /// # Errors
    ///
    /// The subnet is none or too small, an end lies outside of it, or nothing is left to give.
    pub fn new(
        subnet: Ipv4Net,
        (first, last): (Option<Ipv4Addr>, Option<Ipv4Addr>),
        gateway: Option<Ipv4Addr>,
    ) -> Result<Self, BadAddressRange> {
        if subnet != subnet.trunc() {
            return Err(BadAddressRange::HostBits { given: subnet });
        }
        if subnet.prefix_len() > LONGEST {
            return Err(BadAddressRange::TooSmall(subnet));
        }
        let range = Self {
            subnet,
            first: first.unwrap_or_else(|| (subnet.network().to_bits() + 1).into()),
            last: last.unwrap_or_else(|| (subnet.broadcast().to_bits() - 1).into()),
            gateway,
        };
        let (first, last) = (range.first, range.last);
        let ends = [first, last].into_iter();
        if let Some(address) = ends.into_iter().find(|end| !subnet.contains(end)) {
            return Err(BadAddressRange::Outside { address, subnet });
        }
        if range.runs().next().is_none() {
            return Err(BadAddressRange::Empty { first, last });
        }
        Ok(range)
    }

    /// The subnet.
    pub const fn subnet(&self) -> Ipv4Net {
        self.subnet
    }

    /// The gateway, if one was named.
    pub const fn gateway(&self) -> Option<Ipv4Addr> {
        self.gateway
    }

    /// What may be given: the first and last address of each run without the gateway, at most two.
    pub fn runs(&self) -> impl Iterator<Item = (Ipv4Addr, Ipv4Addr)> + use<> {
        let (first, last) = (self.first.to_bits(), self.last.to_bits());
        let gateway = self.gateway.map(Ipv4Addr::to_bits);
        let gateway = gateway.unwrap_or_else(|| self.subnet.network().to_bits() + 1);
        let runs = match (first..=last).contains(&gateway) {
            false => [Some((first, last)), None],
            true => [
                gateway.checked_sub(1).map(|before| (first, before)),
                gateway.checked_add(1).map(|after| (after, last)),
            ],
        };
        let some = runs.into_iter().flatten().filter(|run| run.0 <= run.1);
        some.map(|(first, last)| (first.into(), last.into()))
    }

    /// Whether an address may be given.
    pub fn allows(&self, ip: Ipv4Addr) -> bool {
        self.runs()
            .any(|(first, last)| (first..=last).contains(&ip))
    }
}

impl TryFrom<Written> for AddressRange {
    type Error = BadAddressRange;

    fn try_from(written: Written) -> Result<Self, BadAddressRange> {
        let ends = (written.first, written.last);
        Self::new(written.subnet, ends, written.gateway)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(json: serde_json::Value) -> Result<AddressRange, String> {
        serde_json::from_value(json).map_err(|error| error.to_string())
    }

    fn runs(json: serde_json::Value) -> Vec<String> {
        let range = range(json).unwrap();
        let text = |(first, last)| format!("{first}-{last}");
        range.runs().map(text).collect()
    }

    #[test]
    fn neither_the_subnet_s_own_addresses_nor_the_gateway_are_given() {
        let of = |rest: serde_json::Value| {
            let mut whole = serde_json::json!({"subnet": "10.32.4.0/24"});
            let more = rest.as_object().unwrap().clone();
            whole.as_object_mut().unwrap().extend(more);
            runs(whole)
        };
        let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(of(json("{}")), ["10.32.4.2-10.32.4.254"]);
        assert_eq!(
            of(json(r#"{"gateway": "10.32.0.1"}"#)),
            ["10.32.4.1-10.32.4.254"]
        );
        assert_eq!(
            of(json(
                r#"{"gateway": "10.32.4.9", "first": "10.32.4.8", "last": "10.32.4.11"}"#
            )),
            ["10.32.4.8-10.32.4.8", "10.32.4.10-10.32.4.11"]
        );
        assert_eq!(
            of(json(r#"{"first": "10.32.4.1", "last": "10.32.4.2"}"#)),
            ["10.32.4.2-10.32.4.2"]
        );
        let small = serde_json::json!({"subnet": "255.255.255.252/30", "first": "255.255.255.255"});
        assert!(range(small).unwrap_err().contains("no address to give"));
    }

    #[test]
    fn what_is_no_range_is_refused_with_its_reason() {
        for (written, said) in [
            (
                r#"{"subnet": "10.32.4.7/24"}"#,
                "the subnet is 10.32.4.0/24",
            ),
            (r#"{"subnet": "10.32.4.0/31"}"#, "too small"),
            (r#"{"subnet": "010.32.4.0/24"}"#, "leading zeros"),
            (
                r#"{"subnet": "10.32.4.0/24", "first": "10.32.5.1"}"#,
                "10.32.5.1 is not in 10.32.4.0/24",
            ),
            (
                r#"{"subnet": "10.32.4.0/24", "first": "10.32.4.9", "last": "10.32.4.8"}"#,
                "no address to give",
            ),
            (
                r#"{"subnet": "10.32.4.0/24", "first": "10.32.4.1", "last": "10.32.4.1"}"#,
                "no address to give",
            ),
        ] {
            let refused = range(serde_json::from_str(written).unwrap()).unwrap_err();
            assert!(refused.contains(said), "{written}: {refused}");
        }
    }

    #[test]
    fn a_range_is_read_as_it_is_written() {
        let first =
            range(serde_json::json!({"subnet": "10.32.4.0/24", "last": "10.32.4.9"})).unwrap();
        let again = range(serde_json::to_value(&first).unwrap()).unwrap();
        assert_eq!(again, first);
        assert!(first.allows("10.32.4.9".parse().unwrap()));
        assert!(
            !first.allows("10.32.4.10".parse().unwrap())
                && !first.allows("10.32.4.1".parse().unwrap())
        );
    }
}
