//! Where container runtimes are asked about their containers, while somebody looks at them and when new ones come.
//!
//! Each is asked at its usual socket unless told otherwise, and only where the node is in the host's own network: on a
//! machine with nodes in several (a lab), the containers of the machine are not theirs.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

/// Docker's API.
const DOCKER: &str = "/run/docker.sock";

/// The API of containerd.
const CONTAINERD: &str = "/run/containerd/containerd.sock";

/// The interface for Kubernetes of CRI-O; containerd has the same at its own socket, and tells more by its own API.
const CRI: &str = "/run/crio/crio.sock";

/// Whether a runtime is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RuntimeApi {
    /// At its usual socket, if the node is in the host's own network.
    #[default]
    Usual,
    /// At this socket.
    At(PathBuf),
    /// Not at all.
    Off,
}

impl RuntimeApi {
    fn path(self, usual: &str) -> Option<PathBuf> {
        match self {
            Self::Usual => in_network_of_host().then(|| usual.into()),
            Self::At(path) => Some(path),
            Self::Off => None,
        }
    }
}

impl FromStr for RuntimeApi {
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

impl<'de> Deserialize<'de> for RuntimeApi {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The sockets to ask at, whether they exist or not; nobody is asked where there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeSockets {
    /// Docker's or Podman's.
    pub docker: Option<PathBuf>,
    /// containerd's.
    pub containerd: Option<PathBuf>,
    /// That of a runtime for Kubernetes.
    pub cri: Option<PathBuf>,
}

impl RuntimeSockets {
    /// What was said of each.
    pub(super) fn new(docker: RuntimeApi, containerd: RuntimeApi, cri: RuntimeApi) -> Self {
        Self {
            docker: docker.path(DOCKER),
            containerd: containerd.path(CONTAINERD),
            cri: cri.path(CRI),
        }
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
    fn a_runtime_is_asked_at_a_path_or_not_at_all() {
        let path = |text: &str| {
            text.parse::<RuntimeApi>()
                .map(|api| api.path("/usual.sock"))
        };
        assert_eq!(path("/run/a.sock"), Ok(Some("/run/a.sock".into())));
        assert_eq!(path("off"), Ok(None));
        assert!(path("on").is_err() && path("a.sock").is_err());
    }
}
