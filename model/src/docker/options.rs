//! What can be asked for with a network of Docker's: `docker network create --opt KEY=VALUE` and a few flags.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// The key of the MTU, which Docker's own drivers have too.
const MTU: &str = "com.docker.network.driver.mtu";

/// The options of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkOptions {
    /// The MTU of the containers' interfaces, in bytes, as it was typed.
    pub mtu: Option<String>,
    /// Keys that mean nothing here.
    pub unknown: Vec<String>,
}

/// As Docker writes it: what was typed lies below a key of its own, beside what Docker itself has to say.
#[derive(Deserialize)]
struct Written {
    #[serde(default, rename = "com.docker.network.generic")]
    typed: Option<BTreeMap<String, String>>,
}

impl<'de> Deserialize<'de> for NetworkOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Written { typed } = Written::deserialize(deserializer)?;
        let mut options = Self::default();
        for (key, value) in typed.unwrap_or_default() {
            match key.as_str() {
                MTU => options.mtu = Some(value),
                _ => options.unknown.push(key),
            }
        }
        Ok(options)
    }
}
