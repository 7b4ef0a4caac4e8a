//! The configuration file: TOML, every key optional, no key unknown.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use serde::Deserialize;
use weave_model::{EngineChoice, NodeName, Suite, optional_net};

use super::{
    Address, DEFAULT_FILE, DockerPlugin, Facility, FlowWatch, Place, RuntimeApi, parse_suite,
};
use crate::obstacle::Obstacle;

/// The file as it is written; absent keys keep their defaults.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct File {
    pub(super) name: Option<NodeName>,
    pub(super) state_dir: Option<PathBuf>,
    pub(super) socket: Option<PathBuf>,
    pub(super) log: Option<String>,
    pub(super) docker_plugin: Option<DockerPlugin>,
    pub(super) overlay: OverlaySection,
    pub(super) services: ServiceSection,
    pub(super) sight: SightSection,
}

/// `[services]`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ServiceSection {
    #[serde(deserialize_with = "optional_net")]
    pub(super) range: Option<Ipv4Net>,
    pub(super) engine: Option<EngineChoice>,
}

/// `[overlay]`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct OverlaySection {
    pub(super) listen: Option<Address>,
    pub(super) advertise: Vec<Address>,
    pub(super) discovery: Option<bool>,
    #[serde(deserialize_with = "suites")]
    pub(super) suites: Vec<Suite>,
    pub(super) mtu: Option<u16>,
    pub(super) without: Vec<Facility>,
}

/// `[sight]`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct SightSection {
    pub(super) metrics: Option<Place>,
    pub(super) metrics_token: Option<PathBuf>,
    pub(super) dashboard: Option<Place>,
    pub(super) flows: Option<FlowWatch>,
    pub(super) docker_api: Option<RuntimeApi>,
    pub(super) containerd_api: Option<RuntimeApi>,
    pub(super) cri_api: Option<RuntimeApi>,
    pub(super) health: Option<Place>,
}

/// Reads the named file, or the default one if it exists.
pub(super) fn read(named: Option<&Path>) -> Result<File, Obstacle> {
    let path = named.unwrap_or_else(|| Path::new(DEFAULT_FILE));
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound && named.is_none() => {
            return Ok(File::default());
        }
        Err(error) => {
            return Err(Obstacle {
                cause: format!("cannot read {}: {error}", path.display()),
                fix: "name a readable file with --config, or leave the flag out".to_owned(),
            });
        }
    };
    parse(&text).map_err(|cause| Obstacle {
        cause: format!("{}: {cause}", path.display()),
        fix: "correct that line; the keys are those of the flags, see weaved --help".to_owned(),
    })
}

/// Reads the text of a file; the error names the line.
pub(super) fn parse(text: &str) -> Result<File, String> {
    toml::from_str(text).map_err(|error| {
        let line = error
            .span()
            .map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        format!("line {line}: {}", error.message())
    })
}

fn suites<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<Suite>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    names
        .iter()
        .map(|name| parse_suite(name).map_err(serde::de::Error::custom))
        .collect()
}
