//! The versions of the specification that are spoken, and what each has.

use serde_json::{Value, json};

/// A version of the CNI specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.3.0: results with interfaces.
    V0_3_0,
    /// 0.3.1: the same.
    V0_3_1,
    /// 0.4.0: CHECK, and DEL with the result of ADD.
    V0_4_0,
    /// 1.0.0: addresses without a version.
    V1_0_0,
    /// 1.1.0: GC, STATUS, and the MTU of interfaces.
    V1_1_0,
}

impl Version {
    /// All of them, the oldest first.
    pub const ALL: [Self; 5] = [
        Self::V0_3_0,
        Self::V0_3_1,
        Self::V0_4_0,
        Self::V1_0_0,
        Self::V1_1_0,
    ];

    /// The newest one.
    pub const NEWEST: Self = Self::V1_1_0;

    /// As a configuration says it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version of this name, if it is spoken.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|version| version.as_str() == text)
    }

    /// The answer to VERSION. `asked` is what the runtime said of itself, which does not matter much.
    pub fn answer(asked: Option<Self>) -> Value {
        json!({
            "cniVersion": asked.unwrap_or(Self::NEWEST).as_str(),
            "supportedVersions": Self::ALL.map(Self::as_str),
        })
    }
}
