//! The cipher suites a session can use.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An authenticated cipher for the packets of a session. All are equally strong, so there is nothing to downgrade to.
///
/// The number is the byte on the wire. 3 is reserved for a hybrid post-quantum suite. There is no null suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Suite {
    /// ChaCha20-Poly1305 (RFC 8439): fast on every CPU. Every node accepts it unless its policy says otherwise.
    #[serde(rename = "chacha20-poly1305")]
    ChaCha20Poly1305 = 1,
    /// AES-256-GCM (NIST SP 800-38D): faster still where the CPU has AES and carry-less multiply.
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm = 2,
}

impl Suite {
    /// The suite that a byte on the wire names.
    pub const fn from_wire(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::ChaCha20Poly1305),
            2 => Some(Self::Aes256Gcm),
            _ => None,
        }
    }

    /// The byte that names this suite on the wire.
    pub const fn to_wire(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
            Self::Aes256Gcm => "aes-256-gcm",
        })
    }
}
