//! Ranges of addresses as people write them.
//!
//! The `ipnet` crate reads `010.32.0.0/12` as `10.32.0.0/12`, while others take it for octal and mean `8.32.0.0/12`. What can
//! mean two things is no range.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// A kind of range that is read from text.
pub trait Net: FromStr {
    /// What is said of a text that is none, and what would be one.
    const WRONG: &'static str;
}

impl Net for Ipv4Net {
    const WRONG: &'static str = "not an IPv4 range without leading zeros, such as 10.32.0.0/12";
}

impl Net for Ipv6Net {
    const WRONG: &'static str = "not an IPv6 range, such as fd00:1:2::/48";
}

impl Net for IpNet {
    const WRONG: &'static str =
        "not a range without leading zeros, such as 10.32.0.0/12 or fd00:1:2::/48";
}

/// Text that is no range: what it is not, and an example of what would be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadNet(&'static str);

/// Reads `10.32.0.0/12` or `fd00:1:2::/48`.
///
/// # Errors
///
/// It is of another kind, has no prefix, or has a decimal number with leading zeros.
pub fn parse_net<N: Net>(text: &str) -> Result<N, BadNet> {
    is_plain(text)
        .then(|| text.parse().ok())
        .flatten()
        .ok_or(BadNet(N::WRONG))
}

/// The standard library refuses leading zeros in addresses.
fn is_plain(text: &str) -> bool {
    let is_number = |prefix: &str| prefix == "0" || !prefix.starts_with('0');
    text.split_once('/')
        .is_some_and(|(address, prefix)| address.parse::<IpAddr>().is_ok() && is_number(prefix))
}

/// A range that may be absent, as a field of a request or a file.
///
/// # Errors
///
/// Those of [`parse_net`], and those of the format.
pub fn optional_net<'de, D: Deserializer<'de>, N: Net>(
    deserializer: D,
) -> Result<Option<N>, D::Error> {
    Option::<String>::deserialize(deserializer)?
        .map(|text| {
            parse_net(&text).map_err(|bad| D::Error::custom(format!("\"{text}\" is {bad}")))
        })
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{InitRequest, NetworkRequest};

    #[test]
    fn what_others_take_for_octal_is_no_range() {
        for good in ["10.32.0.0/12", "0.0.0.0/0", "10.0.100.0/8"] {
            assert_eq!(parse_net::<Ipv4Net>(good).unwrap().to_string(), good);
            assert_eq!(parse_net::<IpNet>(good).unwrap().to_string(), good);
        }
        for good in [
            "fd00:1:2::/48",
            "::/0",
            "fd00:0001::/48",
            "::ffff:10.32.0.0/108",
        ] {
            assert!(parse_net::<Ipv6Net>(good).is_ok(), "{good}");
            assert!(parse_net::<IpNet>(good).is_ok(), "{good}");
        }
        for bad in [
            "010.32.0.0/12",
            "10.032.0.0/12",
            "10.32.0.00/12",
            "10.32.0.0/08",
            "10.32.0.0",
        ] {
            is_refused::<Ipv4Net>(bad);
            is_refused::<IpNet>(bad);
        }
        for bad in [
            "fd00::/048",
            "::ffff:010.32.0.0/108",
            "fd00::",
            "10.32.0.0/12",
        ] {
            is_refused::<Ipv6Net>(bad);
        }
    }

    fn is_refused<N: Net + PartialEq + std::fmt::Debug>(text: &str) {
        assert_eq!(parse_net::<N>(text), Err(BadNet(N::WRONG)), "{text}");
    }

    #[test]
    fn requests_say_which_text_is_no_range() {
        let init = r#"{"range": "010.32.0.0/12"}"#;
        let network = r#"{"name": "db", "range": "010.32.0.0/12"}"#;
        let refusals = [
            serde_json::from_str::<InitRequest>(init).unwrap_err(),
            serde_json::from_str::<NetworkRequest>(network).unwrap_err(),
        ];
        for refusal in refusals {
            let cause = format!("\"010.32.0.0/12\" is {}", Ipv4Net::WRONG);
            assert!(refusal.to_string().starts_with(&cause), "{refusal}");
        }
        let absent = serde_json::from_str::<InitRequest>("{}");
        assert_eq!(absent.unwrap(), InitRequest::default());
    }
}
