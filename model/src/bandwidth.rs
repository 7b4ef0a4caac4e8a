//! How much an interface of a container may carry.

use std::fmt;
use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

/// Limits of an interface, as the container sees it; a direction without one is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Bandwidth {
    /// Of what the container receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Rate>,
    /// Of what it sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Rate>,
}

impl Bandwidth {
    /// Whether nothing is limited.
    pub const fn is_unlimited(&self) -> bool {
        self.ingress.is_none() && self.egress.is_none()
    }
}

/// A rate, and how far it may be exceeded for a moment. Frames count with their Ethernet headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Rate {
    /// Bits a second.
    #[cfg_attr(feature = "openapi", schema(value_type = u64, minimum = 1, example = 8_000_000))]
    pub rate: NonZeroU64,
    /// Bits that may pass at once after a pause; one frame of full size always may.
    #[cfg_attr(feature = "openapi", schema(example = 400_000))]
    pub burst: u64,
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bit/s", self.rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_limited_is_not_said() {
        let one: Bandwidth = serde_json::from_str(r#"{"egress":{"rate":8000,"burst":9}}"#).unwrap();
        assert_eq!(one.ingress, None);
        assert_eq!(one.egress.unwrap().to_string(), "8000 bit/s");
        let text = r#"{"egress":{"rate":8000,"burst":9}}"#;
        assert_eq!(serde_json::to_string(&one).unwrap(), text);
        assert!(!one.is_unlimited() && Bandwidth::default().is_unlimited());
        assert!(serde_json::from_str::<Rate>(r#"{"rate":0,"burst":9}"#).is_err());
    }
}
