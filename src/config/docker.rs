//! Whether, and at which socket, the node is a plugin of Docker's.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};
use weave_model::docker::DEFAULT_SOCKET;

/// Whether Docker is served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DockerPlugin {
    /// At the usual socket, where there is Docker.
    #[default]
    WhereDockerIs,
    /// At this socket; the driver's name is that of the file.
    At(PathBuf),
    /// Not at all.
    Off,
}

impl FromStr for DockerPlugin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "on" => Ok(Self::At(DEFAULT_SOCKET.into())),
            "off" => Ok(Self::Off),
            path if path.starts_with('/') => Ok(Self::At(path.into())),
            _ => Err(format!(
                "\"{text}\" is not on, off or the whole path of a socket"
            )),
        }
    }
}

impl<'de> Deserialize<'de> for DockerPlugin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_off_and_paths() {
        let read = |text: &str| text.parse::<DockerPlugin>();
        assert_eq!(read("on"), Ok(DockerPlugin::At(DEFAULT_SOCKET.into())));
        assert_eq!(read("off"), Ok(DockerPlugin::Off));
        assert_eq!(
            read("/run/a.sock"),
            Ok(DockerPlugin::At("/run/a.sock".into()))
        );
        assert!(read("weave.sock").is_err() && read("").is_err());
    }
}
