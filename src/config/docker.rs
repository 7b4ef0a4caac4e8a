//! Whether, and at which socket, the node is a plugin of Docker's, and where it asks Docker about its containers.

use std::os::unix::fs::MetadataExt as _;
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

/// Where Docker's API is.
const DOCKER_API: &str = "/run/docker.sock";

/// Whether Docker is asked about its containers, while somebody looks at them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DockerApi {
    /// At its usual socket, if the node is in the host's own network.
    #[default]
    WhereDockerIs,
    /// At this socket, or one of Podman's.
    At(PathBuf),
    /// Not at all.
    Off,
}

impl DockerApi {
    /// The socket to ask at, whether it exists or not.
    pub fn path(&self) -> Option<PathBuf> {
        match self {
            Self::WhereDockerIs => in_network_of_host().then(|| DOCKER_API.into()),
            Self::At(path) => Some(path.clone()),
            Self::Off => None,
        }
    }
}

impl FromStr for DockerApi {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            path if path.starts_with('/') => Ok(Self::At(path.into())),
            _ => Err(format!(
                "\"{text}\" is not off or the whole path of a socket"
            )),
        }
    }
}

impl<'de> Deserialize<'de> for DockerApi {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Whether this is the network that Docker most likely is in: where it cannot be told, it is.
pub fn in_network_of_host() -> bool {
    let netns = |process: &str| {
        let found = std::fs::metadata(format!("/proc/{process}/ns/net")).ok()?;
        Some((found.dev(), found.ino()))
    };
    netns("1")
        .zip(netns("self"))
        .is_none_or(|(host, own)| host == own)
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

    #[test]
    fn docker_is_asked_at_a_path_or_not_at_all() {
        let path = |text: &str| text.parse::<DockerApi>().map(|api| api.path());
        assert_eq!(path("/run/a.sock"), Ok(Some("/run/a.sock".into())));
        assert_eq!(path("off"), Ok(None));
        assert!(path("on").is_err() && path("a.sock").is_err());
    }
}
