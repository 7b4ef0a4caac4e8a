//! Names people type, checked once at the edge: nodes, containers, interfaces, networks, labels.
//!
//! Each is a newtype that can only hold a well-formed name, so the rest of the program never checks again. The error
//! of each says the rule, so that it can be shown as it is.

use std::fmt;
use std::str::FromStr;
/// Why a text is not a name; its message states the rule that was broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not {rule}")]
pub struct BadName {
    pub(crate) text: String,
    pub(crate) rule: &'static str,
}

/// Makes a newtype over `String` whose every way in is checked by `$check`.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $example:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = BadName;

            fn from_str(text: &str) -> Result<Self, BadName> {
                let check: fn(&str) -> bool = $check;
                if check(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(BadName { text: text.to_owned(), rule: $rule })
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(&self.0)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                <String as serde::Deserialize>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }

        #[cfg(feature = "openapi")]
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .description(Some($rule))
                    .examples([$example])
                    .into()
            }
        }

        #[cfg(feature = "openapi")]
        impl utoipa::ToSchema for $name {}
    };
}

pub(crate) use name;

name! {
    /// A node's label, by default its hostname: 1 to 63 letters, digits, `.`, `_` or `-`, a letter or digit first and
    /// last. Only a label: the node's identity is its [`crate::NodeId`].
    NodeName, "host1",
    "a node name: 1 to 63 letters, digits, '.', '_' or '-', beginning and ending with a letter or digit",
    |text| word(text, 63)
}

name! {
    /// A container's name on its node: 1 to 128 letters, digits, `.`, `_` or `-`, a letter or digit first and last.
    /// Long enough for the container ids that runtimes make.
    ContainerName, "web1",
    "a container name: 1 to 128 letters, digits, '.', '_' or '-', beginning and ending with a letter or digit",
    |text| word(text, 128)
}

name! {
    /// The name of a network interface, by the kernel's rule (`dev_valid_name` in net/core/dev.c): 1 to 15 bytes, no
    /// `/`, `:` or space, not `.` or `..`. `%` is refused too: the kernel would number the name.
    IfName, "eth0",
    "an interface name: 1 to 15 printable characters without '/', ':', '%' or space, and not '.' or '..'",
    |text| {
        (1..=15).contains(&text.len())
            && !matches!(text, "." | "..")
            && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%'))
    }
}

name! {
    /// A network's name: 1 to 63 lower-case letters, digits or `-`, a letter or digit first and last (a DNS label).
    NetworkName, "default",
    "a network name: 1 to 63 lower-case letters, digits or '-', beginning and ending with a letter or digit",
    |text| word(text, 63) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

name! {
    /// The key of a label: 1 to 63 letters, digits, `.`, `_` or `-`, after an optional DNS prefix and `/`, as Kubernetes
    /// has it.
    LabelKey, "app",
    "a label key: [prefix/]name, the name 1 to 63 letters, digits, '.', '_' or '-'",
    |text| match text.split_once('/') {
        Some((prefix, key)) => word(prefix, 253) && word(key, 63),
        None => word(text, 63),
    }
}

name! {
    /// The value of a label: up to 63 letters, digits, `.`, `_` or `-`; it may be empty.
    LabelValue, "web",
    "a label value: up to 63 letters, digits, '.', '_' or '-', beginning and ending with a letter or digit",
    |text| text.is_empty() || word(text, 63)
}

name! {
    /// What a CNI runtime calls a container or a network: 1 to 200 letters, digits, `.`, `_` or `-`, a letter or digit
    /// first (CNI specification 1.1.0, section "Network configuration objects"; the limit is ours, a file is named so).
    CniName, "0f3c9b7e21ad",
    "a CNI id: 1 to 200 letters, digits, '.', '_' or '-', beginning with a letter or digit",
    |text| {
        (1..=200).contains(&text.len())
            && text.as_bytes()[0].is_ascii_alphanumeric()
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    }
}

impl ContainerName {
    /// The name of a container that a CNI runtime made: its id, or, where that will not do as a name, the beginning of
    /// it and 16 hex digits of a hash of it.
    pub fn of_cni(id: &CniName) -> Self {
        let text = id.as_str();
        if word(text, 128) {
            return Self(text.to_owned());
        }
        Self(format!(
            "{}-{:016x}",
            &text[..text.len().min(100)],
            fnv1a(text.as_bytes())
        ))
    }
}

/// FNV-1a, 64 bits (RFC 9923): names that stay the same over restarts and versions.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl NetworkName {
    /// The network that every cluster has.
    pub fn default_network() -> Self {
        Self("default".to_owned())
    }

    /// Whether it is the network that every cluster has.
    pub fn is_default(&self) -> bool {
        self.0 == "default"
    }
}

impl IfName {
    /// The interface a container gets when nothing else is asked for.
    pub fn eth0() -> Self {
        Self("eth0".to_owned())
    }
}

/// A label as it is typed: `key=value`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Label {
    /// Before the first `=`.
    pub key: LabelKey,
    /// After it; may be empty.
    pub value: LabelValue,
}

impl FromStr for Label {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let rule = "a label: key=value, for example app=web";
        let (key, value) = text.split_once('=').ok_or_else(|| BadName {
            text: text.to_owned(),
            rule,
        })?;
        Ok(Self {
            key: key.parse()?,
            value: value.parse()?,
        })
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

/// 1 to `longest` ASCII letters, digits, `.`, `_` or `-`; a letter or digit first and last.
pub(crate) fn word(text: &str, longest: usize) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= longest
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_pass() {
        for good in ["a", "host-1.example", "Web_1"] {
            assert_eq!(good.parse::<NodeName>().unwrap().as_str(), good);
        }
        assert!("f".repeat(128).parse::<ContainerName>().is_ok());
        assert!("wv0123456789ab".parse::<IfName>().is_ok());
        assert!("blue-2".parse::<NetworkName>().is_ok());
        let label: Label = "example.com/app=".parse().unwrap();
        assert_eq!(label.to_string(), "example.com/app=");
    }

    #[test]
    fn names_that_do_not() {
        for bad in ["", "-a", "a.", "a b", "a/b", "ä", &"x".repeat(64)] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad:?}");
        }
        for bad in [
            "",
            ".",
            "..",
            "eth0:1",
            "eth%d",
            "a/b",
            "sixteen-letters-",
            "tab\t",
        ] {
            assert!(bad.parse::<IfName>().is_err(), "{bad:?}");
        }
        assert!("Blue".parse::<NetworkName>().is_err());
        for bad in ["app", "=web", "a b=c", "app=-", "/app=web", "a/b/c=d"] {
            assert!(bad.parse::<Label>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn every_cni_id_has_a_container_name_of_its_own() {
        let id = |text: &str| text.parse::<CniName>().unwrap();
        assert_eq!(
            ContainerName::of_cni(&id("default-web")).as_str(),
            "default-web"
        );
        let long = "a".repeat(200);
        let made =
            ["web-", "web_", &long, &long[..199]].map(|text| ContainerName::of_cni(&id(text)));
        for name in &made {
            assert!(name.as_str().parse::<ContainerName>().is_ok(), "{name}");
        }
        let distinct: std::collections::BTreeSet<_> = made.iter().collect();
        assert_eq!(distinct.len(), made.len());
        for bad in ["", "-a", ".a", "a/b", "a b", &"x".repeat(201)] {
            assert!(bad.parse::<CniName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_error_states_the_rule() {
        let error = "app".parse::<Label>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"app\" is not a label: key=value, for example app=web"
        );
    }

    #[test]
    fn json_is_checked_too() {
        assert!(serde_json::from_str::<IfName>("\"a/b\"").is_err());
        let name: ContainerName = serde_json::from_str("\"web1\"").unwrap();
        assert_eq!(serde_json::to_string(&name).unwrap(), "\"web1\"");
    }
}
