//! Taking Weave off a host: what of it there is, and removing that.
//!
//! Two steps, so that it can be said before it is done: [`find`] lists what bears our mark, [`remove`] removes what was
//! found. A mark is a device's alias, who made a route, a table's comment, a rule's tag, or a path that only we write. Nothing else is
//! touched: not the configuration that an administrator wrote, not programs, not the forwarding that others may use by now.
//! What cannot be removed does not keep the rest.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};
use weave_linux::netlink::{Link, Netlink, Route};
use weave_linux::nft;
use weave_proxy::relay::{self, rules::ROUTES as RELAY_ROUTES};
use weave_router::attach::{ROUTE_PROTOCOL, TAG, VIRTUAL_PROTOCOL};
use weave_router::hostfw::HostFirewall;

use crate::obstacle::Obstacle;

/// The names of a node's tables all begin so.
const TABLES: &str = "weave-";

/// The file of the CNI plugin, which is also its type.
pub const PLUGIN: &str = "weave-cni";

/// Devices of a node.
const TUN: &str = "weave0";
const VETHS: &str = "wv";
const LIMITS: &str = "wb";

/// Where a node and its plugin leave files.
#[derive(Clone, Debug)]
pub struct Places {
    /// Keys, addresses and attachments.
    pub state_dir: PathBuf,
    /// The node's socket; the journal of the plugin lies beside it.
    pub socket: PathBuf,
    /// Files that runtimes look for.
    pub runtimes: Vec<PathBuf>,
}

/// Something of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Thing {
    /// A device, by its index; its routes and addresses go with it.
    Device {
        /// Its number.
        index: u32,
        /// Its name.
        name: String,
    },
    /// A route that does not go with a device.
    Route(#[serde(serialize_with = "as_text")] Route),
    /// The rule and the table of routing that bring the relay its packets.
    RelayRoutes,
    /// An nftables table.
    Table(String),
    /// The accepts that made way through the host's own firewall, if there are any.
    Accepts,
    /// A file or a socket.
    File(PathBuf),
    /// A folder with all that is in it.
    Folder(PathBuf),
}

fn as_text<S: Serializer>(route: &Route, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(route)
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device { name, .. } => write!(f, "device {name}"),
            Self::Route(route) => write!(f, "route {route}"),
            Self::RelayRoutes => {
                let (table, priority) = RELAY_ROUTES;
                write!(f, "routing table {table} and its rule {priority}")
            }
            Self::Table(name) => write!(f, "nftables table inet {name}"),
            Self::Accepts => {
                f.write_str("rules tagged \"weave: \" in the host's iptables, where there are any")
            }
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Folder(path) => write!(f, "folder {}", path.display()),
        }
    }
}

/// Finds all that is ours in the network namespace of the calling thread and on the disk. Must be called in a tokio
/// runtime.
///
/// # Errors
/// When devices or tables cannot be listed.
pub async fn find(places: &Places) -> Result<Vec<Thing>, Obstacle> {
    let failed = |error: &dyn fmt::Display| {
        Obstacle::new(
            format!("cannot see what is on this host: {error}"),
            "run this as root",
        )
    };
    let netlink = Netlink::open().map_err(|error| failed(&error))?;
    let links = netlink.links().await.map_err(|error| failed(&error))?;
    let mut things: Vec<Thing> = links
        .iter()
        .filter(|link| is_ours(link))
        .map(device)
        .collect();
    for protocol in [ROUTE_PROTOCOL, VIRTUAL_PROTOCOL] {
        let routes = netlink.routes_by(protocol).await;
        let routes = routes.map_err(|error| failed(&error))?.into_iter();
        let with_device = |route: &Route| {
            links
                .iter()
                .any(|link| is_ours(link) && route.link == Some(link.index))
        };
        things.extend(routes.filter(|route| !with_device(route)).map(Thing::Route));
    }
    let relayed = netlink.routes(Some(RELAY_ROUTES.0)).await;
    if !relayed.map_err(|error| failed(&error))?.is_empty() {
        things.push(Thing::RelayRoutes);
    }
    let tables = tables().map_err(|error| failed(&error))?;
    things.extend(tables.into_iter().map(Thing::Table));
    things.push(Thing::Accepts);
    things.extend(files(places));
    Ok(things)
}

fn device(link: &Link) -> Thing {
    Thing::Device {
        index: link.index,
        name: link.name.clone(),
    }
}

fn is_ours(link: &Link) -> bool {
    let named = link.kind == "tun" && link.name == TUN
        || link.kind == "veth" && link.name.starts_with(VETHS)
        || link.kind == "ifb" && link.name.starts_with(LIMITS);
    named && link.alias.starts_with(TAG)
}

fn tables() -> Result<Vec<String>, nft::Error> {
    let tables = nft::Socket::open()?.tables()?.into_iter();
    let ours = tables.filter(|table| {
        let inet = table.family == nft::Family::Inet as u8;
        inet && table.name.starts_with(TABLES) && table.comment.as_deref() == Some("weave")
    });
    Ok(ours.map(|table| table.name).collect())
}

fn files(places: &Places) -> Vec<Thing> {
    let journal = places.socket.with_file_name(weave_model::api::CNI_JOURNAL);
    let files = places.runtimes.iter().filter(|path| is_for_us(path));
    let files = files.chain([&places.socket]);
    let folders = [&journal, &places.state_dir];
    let files = files.filter(|path| path.exists()).cloned().map(Thing::File);
    let folders = folders.into_iter().filter(|path| path.is_dir());
    files.chain(folders.cloned().map(Thing::Folder)).collect()
}

/// Whether a file that runtimes look for is ours. The configuration of other networks may have the same name, as Weave
/// Net's has.
pub fn is_for_us(path: &Path) -> bool {
    let is_plugin = path.file_name().is_some_and(|name| name == PLUGIN);
    is_plugin || fs::read_to_string(path).is_ok_and(|text| text.contains(PLUGIN))
}

/// Removes what was found, runtimes' files first so that no container is begun that cannot be. What failed is returned.
pub async fn remove(things: &[Thing]) -> Vec<Obstacle> {
    let mut failed = Vec::new();
    let files_first = |thing: &&Thing| !matches!(thing, Thing::File(_));
    let mut ordered: Vec<&Thing> = things.iter().collect();
    ordered.sort_by_key(|thing| files_first(thing));
    for thing in ordered {
        if let Err(cause) = remove_one(thing).await {
            let fix = "remove it by hand";
            failed.push(Obstacle::new(
                format!("cannot remove {thing}: {cause}"),
                fix,
            ));
        }
    }
    failed
}

async fn remove_one(thing: &Thing) -> Result<(), String> {
    let said = |error: &dyn fmt::Display| error.to_string();
    match thing {
        Thing::Device { index, .. } => {
            let netlink = Netlink::open().map_err(|error| said(&error))?;
            match netlink.delete_link(*index).await {
                Err(error) if error.is_not_found() => Ok(()),
                removed => removed.map_err(|error| said(&error)),
            }
        }
        Thing::Route(route) => {
            let netlink = Netlink::open().map_err(|error| said(&error))?;
            match netlink.delete_route(route).await {
                Err(error) if error.is_not_found() => Ok(()),
                removed => removed.map_err(|error| said(&error)),
            }
        }
        Thing::RelayRoutes => relay::unroute().map_err(|error| said(&error)),
        Thing::Table(name) => {
            let mut batch = nft::Batch::new();
            batch.remove_table(&nft::Table::inet(name));
            let socket = nft::Socket::open().map_err(|error| said(&error))?;
            socket.send(&batch).map_err(|error| said(&error))
        }
        Thing::Accepts => {
            let mut firewall = HostFirewall::new(TUN, VETHS);
            firewall.remove().map(drop).map_err(|error| said(&error))
        }
        Thing::File(path) => gone(fs::remove_file(path)),
        Thing::Folder(path) => gone(remove_folder(path)),
    }
}

/// Removes a folder; one that is a mount of its own, such as a state directory that systemd made, is emptied at least.
fn remove_folder(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error)
            if error.kind() == io::ErrorKind::ResourceBusy
                && fs::read_dir(path)?.next().is_none() =>
        {
            Ok(())
        }
        removed => removed,
    }
}

fn gone(removed: io::Result<()>) -> Result<(), String> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(|error| error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_devices_that_bear_our_mark_are_ours() {
        let link = |name: &str, kind: &str, alias: &str| Link {
            index: 3,
            name: name.to_owned(),
            kind: kind.to_owned(),
            up: true,
            carrier: true,
            mtu: 1500,
            mac: None,
            alias: alias.to_owned(),
            gso_max_size: 65_536,
            gso_ipv4_max_size: None,
            peer_index: None,
        };
        assert!(is_ours(&link("weave0", "tun", "weave: router")));
        assert!(is_ours(&link("wv0123456789", "veth", "weave: web eth0")));
        assert!(is_ours(&link(
            "wb0123456789",
            "ifb",
            "weave: limits wv0123456789"
        )));
        for other in [
            link("weave0", "bridge", "weave: router"),
            link("weave0", "tun", ""),
            link("wv0123456789", "veth", "mine"),
            link("eth0", "", "weave: uplink"),
        ] {
            assert!(!is_ours(&other), "{other:?}");
        }
    }

    #[test]
    fn files_that_are_there_are_found_and_removed_and_no_others() {
        let folder = std::env::temp_dir().join(format!("weave-removal-{}", std::process::id()));
        let state = folder.join("state");
        fs::create_dir_all(state.join("attachments")).unwrap();
        fs::write(folder.join("weaved.sock"), "").unwrap();
        fs::write(folder.join("bystander"), "").unwrap();
        let places = Places {
            state_dir: state.clone(),
            socket: folder.join("weaved.sock"),
            runtimes: vec![folder.join("10-weave.conflist")],
        };
        fs::write(
            &places.runtimes[0],
            r#"{"plugins": [{"type": "weave-net"}]}"#,
        )
        .unwrap();
        let found = files(&places);
        assert_eq!(
            found,
            [Thing::File(places.socket.clone()), Thing::Folder(state)]
        );
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        assert_eq!(runtime.block_on(remove(&found)), []);
        assert_eq!(
            runtime.block_on(remove(&found)),
            [],
            "what is gone is no failure"
        );
        assert_eq!(files(&places), []);
        assert!(folder.join("bystander").exists());
        fs::remove_dir_all(folder).unwrap();
    }
}
