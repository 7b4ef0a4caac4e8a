//! Where the metrics and the page are served: an address, or `off`.
//!
//! Both listen on loopback unless told otherwise, `/healthz` at every address, as load balancers expect. The page asks everybody for a login; metrics ask for a token as soon
//! as others than this host can reach them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::str::FromStr;

use serde::Deserialize;

use super::{Address, RuntimeSockets};
use crate::obstacle::Obstacle;

/// The TCP port of the metrics.
const METRICS_PORT: u16 = 6782;

/// The TCP port of the page.
const PAGE_PORT: u16 = 4040;

/// The TCP port of `/healthz` and `/livez`: kube-proxy's.
const HEALTH_PORT: u16 = 10_256;

/// The fewest bytes of a token that is worth the name.
const TOKEN_AT_LEAST: usize = 16;

/// Whether the node looks at who talks to whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum FlowWatch {
    /// It does.
    #[default]
    On,
    /// It does not, and the page says so.
    Off,
}

/// The section of what lets people see.
#[derive(Clone, PartialEq, Eq)]
pub struct Sight {
    /// Where metrics are served; nowhere when absent.
    pub metrics: Option<SocketAddr>,
    /// What a reader of metrics must present as a bearer token (RFC 6750); anybody may read when absent.
    pub metrics_token: Option<String>,
    /// Where the page is served; nowhere when absent, but still through the node's socket.
    pub dashboard: Option<SocketAddr>,
    /// Whether flows are seen.
    pub flows: FlowWatch,
    /// Where container runtimes are asked about their containers.
    pub runtimes: RuntimeSockets,
    /// Where load balancers and supervisors are told whether Services are served here; nowhere when absent.
    pub health: Option<SocketAddr>,
}

impl std::fmt::Debug for Sight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sight")
            .field("metrics", &self.metrics)
            .field("dashboard", &self.dashboard)
            .field("health", &self.health)
            .finish_non_exhaustive()
    }
}

impl Sight {
    /// The TCP ports that containers are kept from: what is served, but metrics behind a token, which a Prometheus in a
    /// container may read.
    pub fn ports(&self) -> Vec<u16> {
        let metrics = self.metrics.filter(|_| self.metrics_token.is_none());
        let places = [metrics, self.dashboard].into_iter().flatten();
        places.map(|place| place.port()).collect()
    }
}

/// An address to serve at, or none: `127.0.0.1:6782`, `192.0.2.1`, `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(Option<Address>);

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        text.parse()
            .map(|address| Self(Some(address)))
            .map_err(|error| format!("{error}, or off"))
    }
}

impl<'de> Deserialize<'de> for Place {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl Place {
    /// The socket address, with the port that is used when none is given; loopback when nothing is said at all.
    fn at(said: Option<Self>, port: u16) -> Option<SocketAddr> {
        let Some(Self(place)) = said else {
            return Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
        };
        place.map(|address| SocketAddr::new(address.ip, address.port.unwrap_or(port)))
    }
}

/// What flags and file say of it.
#[derive(Debug, Default)]
pub(super) struct Said<'a> {
    pub(super) metrics: Option<Place>,
    pub(super) token_file: Option<&'a Path>,
    pub(super) dashboard: Option<Place>,
    pub(super) health: Option<Place>,
}

/// Puts the section together.
///
/// # Errors
/// When metrics would be open to other hosts, or their token cannot be read or guessed too easily.
pub(super) fn merge(said: Said<'_>) -> Result<Sight, Obstacle> {
    let metrics = Place::at(said.metrics, METRICS_PORT);
    let metrics_token = said.token_file.map(read_token).transpose()?;
    if let Some(address) = metrics
        && !address.ip().is_loopback()
        && metrics_token.is_none()
    {
        return Err(Obstacle::new(
            format!("metrics at {address} could be read by every host that reaches it"),
            "give a file with a token by --metrics-token, or choose a loopback address",
        ));
    }
    Ok(Sight {
        metrics,
        metrics_token,
        dashboard: Place::at(said.dashboard, PAGE_PORT),
        flows: FlowWatch::default(),
        runtimes: RuntimeSockets::default(),
        // Load balancers are elsewhere: unless something is said, it is served at every address.
        health: Place::at(
            said.health.or_else(|| Some(Place(Some(Address::any())))),
            HEALTH_PORT,
        ),
    })
}

fn read_token(path: &Path) -> Result<String, Obstacle> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Obstacle::new(
            format!("cannot read the token in {}: {error}", path.display()),
            "name a readable file with --metrics-token",
        )
    })?;
    let token = text.trim();
    let graphic = token.bytes().all(|byte| byte.is_ascii_graphic());
    if token.len() < TOKEN_AT_LEAST || !graphic {
        return Err(Obstacle::new(
            format!("{} holds no token that will do", path.display()),
            format!(
                "write one of at least {TOKEN_AT_LEAST} letters and digits into it, such as: openssl rand -hex 16"
            ),
        ));
    }
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> Option<Place> {
        Some(text.parse().unwrap())
    }

    fn outside(token_file: Option<&Path>) -> Said<'_> {
        Said {
            metrics: place("192.0.2.1"),
            token_file,
            ..Said::default()
        }
    }

    #[test]
    fn loopback_is_the_default_and_off_is_off() {
        let sight = merge(Said::default()).unwrap();
        assert_eq!(sight.metrics, Some("127.0.0.1:6782".parse().unwrap()));
        assert_eq!(sight.dashboard, Some("127.0.0.1:4040".parse().unwrap()));
        let health = sight.health.expect("served unless told otherwise");
        assert!(health.ip().is_unspecified() && health.port() == 10_256);
        let sight = merge(Said {
            metrics: place("off"),
            dashboard: place("[::1]:80"),
            health: place("off"),
            ..Said::default()
        })
        .unwrap();
        assert_eq!(
            (sight.metrics, sight.dashboard),
            (None, Some("[::1]:80".parse().unwrap()))
        );
        assert_eq!((sight.ports(), sight.health), (vec![80], None));
        assert!("here".parse::<Place>().unwrap_err().ends_with("or off"));
    }

    #[test]
    fn metrics_are_not_opened_to_others_without_a_token() {
        let refused = merge(outside(None)).unwrap_err();
        assert!(refused.cause.contains("192.0.2.1:6782"), "{refused:?}");
        let file = std::env::temp_dir().join(format!("weave-token-{}", std::process::id()));
        std::fs::write(&file, "short\n").unwrap();
        assert!(merge(outside(Some(&file))).is_err());
        std::fs::write(&file, "0123456789abcdef\n").unwrap();
        let sight = merge(outside(Some(&file))).unwrap();
        assert_eq!(sight.metrics_token.as_deref(), Some("0123456789abcdef"));
        assert_eq!(sight.ports(), [4040], "a Prometheus in a container may ask");
        assert!(!format!("{sight:?}").contains("0123456789abcdef"));
        std::fs::remove_file(&file).unwrap();
        assert!(
            merge(Said {
                metrics: None,
                ..outside(Some(&file))
            })
            .is_err()
        );
    }
}
