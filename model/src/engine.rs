//! Which engine serves a Service, and how it chooses among the endpoints: the words of flags and sheets.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Who carries the connections of a Service.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// The kernel translates their packets.
    #[default]
    Kernel,
    /// The node's own proxy ends them and makes others.
    Relay,
}

/// How the relay chooses; the kernel draws lots.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Balance {
    /// Of two drawn, the one with fewer open connections.
    #[default]
    Least,
    /// Of two drawn, the one that answers sooner for its open connections.
    Latency,
    /// By a hash of the client's address and port: every node chooses the same.
    Maglev,
}

/// Which engine serves Services on a node.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum EngineChoice {
    /// The kernel, whatever a Service asks for.
    Kernel,
    /// The relay, unless a Service asks for the kernel.
    Relay,
    /// The kernel, and the relay for what the kernel cannot do or a Service asks for.
    #[default]
    Auto,
}

/// The text is none of the words that are possible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not {possible}")]
pub struct BadWord {
    text: String,
    possible: &'static str,
}

macro_rules! words {
    ($kind:ident, $possible:literal, $($word:literal => $value:ident),+) => {
        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $(Self::$value => $word),+ })
            }
        }

        impl FromStr for $kind {
            type Err = BadWord;

            fn from_str(text: &str) -> Result<Self, BadWord> {
                match text {
                    $($word => Ok(Self::$value),)+
                    _ => Err(BadWord { text: text.to_owned(), possible: $possible }),
                }
            }
        }
    };
}

words!(Engine, "an engine: kernel or relay", "kernel" => Kernel, "relay" => Relay);
words!(Balance, "a way to balance: least, latency or maglev",
    "least" => Least, "latency" => Latency, "maglev" => Maglev);
words!(EngineChoice, "a choice of engines: kernel, relay or auto",
    "kernel" => Kernel, "relay" => Relay, "auto" => Auto);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_they_are_written() {
        for balance in [Balance::Least, Balance::Latency, Balance::Maglev] {
            assert_eq!(balance.to_string().parse(), Ok(balance));
        }
        for engine in [Engine::Kernel, Engine::Relay] {
            assert_eq!(engine.to_string().parse(), Ok(engine));
        }
        let error = "iptables".parse::<EngineChoice>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"iptables\" is not a choice of engines: kernel, relay or auto"
        );
    }
}
