//! What a path between two nodes carries, and how that is known.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The largest packet that crosses a path, and how that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PathMtu {
    /// Bytes of IP packet, headers included: 1200 to 9000.
    pub bytes: u16,
    /// How that is known.
    pub reason: MtuReason,
}

/// How a path's MTU is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum MtuReason {
    /// No probe of a larger size was answered, so far: the least that is ever used.
    Floor,
    /// A packet as large as the host's device takes was answered.
    Interface,
    /// This size was answered, and the next one was not: something on the way carries less than the host's device.
    Probed,
    /// Larger packets used to pass and vanished; this is what is left.
    BlackHole,
}

impl MtuReason {
    /// The reason of a number, as `self as u8` gives it; unknown ones are [`MtuReason::Floor`].
    pub const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Interface,
            2 => Self::Probed,
            3 => Self::BlackHole,
            _ => Self::Floor,
        }
    }
}

impl fmt::Display for MtuReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Floor => "floor",
            Self::Interface => "interface",
            Self::Probed => "probed",
            Self::BlackHole => "black hole",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_reasons_agree() {
        use MtuReason::{BlackHole, Floor, Interface, Probed};
        for reason in [Floor, Interface, Probed, BlackHole] {
            assert_eq!(MtuReason::from_number(reason as u8), reason);
        }
    }
}
