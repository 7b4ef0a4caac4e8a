//! Which containers are attached, and what the host itself has: the node's journal of what it has to keep working.
//!
//! A pure table, keyed by container and interface, that goes to disk as JSON before each answer. A container's
//! interfaces all lie in one namespace, so a second container cannot take a name that is in use.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};
use weave_model::api::{Attachment, CniGcRequest, CniRef, HostAddress};
use weave_model::{ContainerName, DeclaredService, IfName, NetworkName, RemovedService};

use super::ended::Ended;
use super::given::Table;
use super::resolve::Records;

/// What is attached to this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Book {
    attachments: BTreeMap<(ContainerName, IfName), Entry>,
    host: Option<HostAddress>,
    docker: Table,
    services: Declarations,
    networks: Records,
    ended: Ended,
}

/// What was said on this node of Services.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Declarations {
    /// Those that were made here.
    pub(super) made: Vec<DeclaredService>,
    /// Those of other nodes that were removed here.
    pub(super) removed: Vec<RemovedService>,
    /// The address by which endpoints of other nodes see this one, once there was a Service.
    pub(super) source: Option<Ipv4Addr>,
}

/// An attachment and what only the node has to know of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// What everybody may know.
    pub(super) attachment: Attachment,
    /// The device and inode of the container's namespace; tells a namespace from a later one at the same path.
    pub(super) netns_id: (u64, u64),
    /// Floating addresses that it has no more, and that are still on its interface, because its namespace was not found.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) left: BTreeSet<IpAddr>,
}

impl Entry {
    /// Of a container that has all that is inside it.
    pub(super) const fn new(attachment: Attachment, netns_id: (u64, u64)) -> Self {
        Self {
            attachment,
            netns_id,
            left: BTreeSet::new(),
        }
    }
}

/// The book as it stands on disk.
#[derive(Serialize, Deserialize)]
struct Page {
    version: u32,
    attachments: Vec<Entry>,
    host: Option<HostAddress>,
    #[serde(default)]
    docker: Table,
    #[serde(default)]
    services: Declarations,
    #[serde(default)]
    networks: Records,
    #[serde(default)]
    ended: Ended,
}

const VERSION: u32 = 1;

/// The journal cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadBook {
    /// It is not what this program writes.
    #[error("the journal of attachments is not readable: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// A later version wrote it.
    #[error("the journal of attachments is of version {0}, which this weaved does not know")]
    Version(u32),
}

/// What a request to attach meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place<'a> {
    /// Nothing: go ahead.
    Free,
    /// The same request was served before.
    Served(&'a Entry),
    /// Another container, in another namespace, has the name.
    NameTaken(&'a Entry),
}

impl Book {
    /// Reads what [`Book::to_bytes`] wrote.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, BadBook> {
        let page: Page = serde_json::from_slice(bytes)?;
        if page.version != VERSION {
            return Err(BadBook::Version(page.version));
        }
        let attachments = page
            .attachments
            .into_iter()
            .map(|entry| (key(&entry.attachment), entry));
        Ok(Self {
            attachments: attachments.collect(),
            host: page.host,
            docker: page.docker,
            services: page.services,
            networks: page.networks,
            ended: page.ended,
        })
    }

    /// The whole book, for the disk.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let attachments = self.attachments.values().cloned().collect();
        let page = Page {
            version: VERSION,
            attachments,
            host: self.host,
            docker: self.docker.clone(),
            services: self.services.clone(),
            networks: self.networks.clone(),
            ended: self.ended.clone(),
        };
        serde_json::to_vec(&page).expect("a book of strings and numbers is JSON")
    }

    /// What stands in the way of attaching `ifname` of `name`, whose namespace is `netns_id`.
    pub(super) fn place(
        &self,
        name: &ContainerName,
        ifname: &IfName,
        netns_id: (u64, u64),
    ) -> Place<'_> {
        let mut same_name = self
            .entries()
            .filter(|entry| entry.attachment.name == *name);
        match same_name.find(|entry| entry.netns_id != netns_id) {
            Some(other) => Place::NameTaken(other),
            None => self
                .attachments
                .get(&(name.clone(), ifname.clone()))
                .map_or(Place::Free, Place::Served),
        }
    }

    /// The attachments to a network that name a namespace.
    pub(super) fn attached_to<'a>(
        &'a self,
        network: &'a NetworkName,
        netns_id: (u64, u64),
    ) -> impl Iterator<Item = &'a Entry> {
        let same = self
            .entries()
            .filter(move |entry| entry.netns_id == netns_id);
        same.filter(move |entry| entry.attachment.network == *network)
    }

    /// All interfaces of a container.
    pub(super) fn interfaces<'a>(
        &'a self,
        name: &'a ContainerName,
    ) -> impl Iterator<Item = &'a Entry> + Clone {
        self.entries()
            .filter(move |entry| entry.attachment.name == *name)
    }

    /// The attachment that a CNI runtime names so.
    pub(super) fn owned(&self, what: &CniRef) -> Option<&Entry> {
        self.entries().find(|entry| {
            let Attachment { owner, ifname, .. } = &entry.attachment;
            let container = owner.as_ref().map(|owner| &owner.container);
            container == Some(&what.container) && *ifname == what.ifname
        })
    }

    /// The attachments of a network of a CNI runtime that it does not know any more.
    pub(super) fn forgotten<'a>(
        &'a self,
        request: &'a CniGcRequest,
    ) -> impl Iterator<Item = &'a Entry> {
        self.entries().filter(|entry| {
            let Attachment { owner, ifname, .. } = &entry.attachment;
            let owner = owner
                .as_ref()
                .filter(|owner| owner.network == request.network);
            owner.is_some_and(|owner| {
                let kept = |one: &CniRef| one.container == owner.container && one.ifname == *ifname;
                !request.keep.iter().any(kept)
            })
        })
    }

    /// Everything that is attached, by container and interface.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> + Clone {
        self.attachments.values()
    }

    /// Writes an attachment down, over a former one of the same container and interface.
    pub(super) fn insert(&mut self, entry: Entry) {
        self.attachments.insert(key(&entry.attachment), entry);
    }

    /// Strikes an attachment out.
    pub(super) fn remove(&mut self, name: &ContainerName, ifname: &IfName) -> Option<Entry> {
        self.attachments.remove(&(name.clone(), ifname.clone()))
    }

    /// The entry of an attachment, to be changed.
    pub(super) fn entry_mut(&mut self, of: &Attachment) -> Option<&mut Entry> {
        self.attachments.get_mut(&key(of))
    }

    /// Strikes out all claims to these floating addresses.
    pub(super) fn drop_claims(&mut self, ips: &[IpAddr]) {
        for entry in self.attachments.values_mut() {
            entry
                .attachment
                .also
                .retain(|claim| !ips.contains(&claim.ip));
        }
    }

    /// The claims that ended here.
    pub(super) const fn ended(&self) -> &Ended {
        &self.ended
    }

    /// The same, to be changed.
    pub(super) const fn ended_mut(&mut self) -> &mut Ended {
        &mut self.ended
    }

    /// What Docker was given.
    pub(super) const fn docker(&self) -> &Table {
        &self.docker
    }

    /// The same, to be changed.
    pub(super) const fn docker_mut(&mut self) -> &mut Table {
        &mut self.docker
    }

    /// Whether something here is in a network: an attachment, a floating address, or a network of Docker's.
    pub(super) fn uses_network(&self, name: &NetworkName) -> bool {
        let mut attached = self.entries().map(|entry| &entry.attachment);
        attached.any(|one| one.network == *name || one.also.iter().any(|ip| ip.pool == *name))
            || self.docker().uses(name)
    }

    /// Whether an attachment is an endpoint of Docker's, whose address has a lease of Docker's own.
    pub(super) fn is_docker(&self, entry: &Entry) -> bool {
        let owner = entry.attachment.owner.as_ref();
        owner.is_some_and(|owner| self.docker.endpoint(&owner.container).is_some())
    }

    /// The host's own addresses.
    pub(super) const fn host(&self) -> Option<HostAddress> {
        self.host
    }

    /// What was said here of Services.
    pub(super) const fn services(&self) -> &Declarations {
        &self.services
    }

    /// The same, to be changed.
    pub(super) const fn services_mut(&mut self) -> &mut Declarations {
        &mut self.services
    }

    /// What is known of networks.
    pub(super) const fn networks(&self) -> &Records {
        &self.networks
    }

    /// The same, to be changed.
    pub(super) const fn networks_mut(&mut self) -> &mut Records {
        &mut self.networks
    }

    /// Gives the host its addresses, or takes them.
    pub(super) const fn set_host(&mut self, host: Option<HostAddress>) {
        self.host = host;
    }
}

fn key(attachment: &Attachment) -> (ContainerName, IfName) {
    (attachment.name.clone(), attachment.ifname.clone())
}

#[cfg(test)]
pub(super) mod tests {
    use weave_model::api::CniOwner;

    use super::*;

    pub(in crate::node) fn range() -> weave_model::ClusterRange {
        let (v4, v6) = ("10.32.0.0/12", "fd00::/48");
        weave_model::ClusterRange::new(v4.parse().unwrap(), v6.parse().unwrap()).unwrap()
    }

    pub(in crate::node) fn node(byte: u8) -> weave_model::NodeId {
        weave_model::NodeId::from_bytes([byte; 32])
    }

    pub(in crate::node) fn entry(name: &str, ifname: &str, inode: u64) -> Entry {
        let attachment = Attachment {
            name: name.parse().unwrap(),
            netns: format!("/run/netns/{name}"),
            ifname: ifname.parse().unwrap(),
            mac: "02:00:0a:20:00:02".to_owned(),
            mtu: 1500,
            host_ifname: "wv0123456789".parse().unwrap(),
            host_mac: "02:00:00:00:00:01".to_owned(),
            network: "default".parse().unwrap(),
            ip: "10.32.0.2/12".parse().unwrap(),
            gateway: "10.32.0.1".parse().unwrap(),
            ip6: Some("fd00::2/128".parse().unwrap()),
            also: Vec::new(),
            gateway6: "fe80::1".parse().unwrap(),
            default_route: true,
            labels: BTreeMap::new(),
            aliases: [].into(),
            publish: Vec::new(),
            bandwidth: weave_model::Bandwidth::default(),
            owner: None,
            attached_at: 7,
            alive: true,
        };
        Entry::new(attachment, (4, inode))
    }

    #[test]
    fn a_restart_reads_what_was_written() {
        let mut book = Book::default();
        book.insert(entry("b", "eth0", 2));
        book.insert(entry("a", "eth0", 1));
        book.set_host(Some(HostAddress {
            ip: "10.32.0.9".parse().unwrap(),
            ip6: "fd00::9".parse().ok(),
        }));
        assert_eq!(Book::from_bytes(&book.to_bytes()).unwrap(), book);
        let names: Vec<&str> = book
            .entries()
            .map(|entry| entry.attachment.name.as_str())
            .collect();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn a_strange_journal_is_refused() {
        assert!(matches!(
            Book::from_bytes(b"{}"),
            Err(BadBook::Unreadable(_))
        ));
        let later = br#"{"version":2,"attachments":[],"host":null}"#;
        assert!(matches!(Book::from_bytes(later), Err(BadBook::Version(2))));
    }

    #[test]
    fn a_runtime_sees_its_own_attachments_only() {
        let owned = |name: &str, network: &str| {
            let mut entry = entry(name, "eth0", 1);
            let [network, container] = [network, name].map(|text| text.parse().unwrap());
            entry.attachment.owner = Some(CniOwner { network, container });
            entry
        };
        let mut book = Book::default();
        book.insert(entry("byhand", "eth0", 1));
        for (name, network) in [("a", "blue"), ("b", "blue"), ("c", "red")] {
            book.insert(owned(name, network));
        }
        let named = |container: &str, ifname: &str| CniRef {
            container: container.parse().unwrap(),
            ifname: ifname.parse().unwrap(),
        };
        assert!(book.owned(&named("a", "eth0")).is_some());
        assert!(book.owned(&named("a", "net1")).is_none());
        assert!(book.owned(&named("byhand", "eth0")).is_none());
        let forgotten = |keep: &[CniRef]| {
            let request = CniGcRequest {
                network: "blue".parse().unwrap(),
                keep: keep.to_vec(),
            };
            let entries = book.forgotten(&request);
            entries
                .map(|entry| entry.attachment.name.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            forgotten(&[named("a", "eth0"), named("b", "eth0")]),
            [""; 0]
        );
        assert_eq!(forgotten(&[named("a", "net1"), named("b", "eth0")]), ["a"]);
        assert_eq!(forgotten(&[]), ["a", "b"]);
    }

    #[test]
    fn a_name_belongs_to_one_namespace() {
        let mut book = Book::default();
        let first = entry("a", "eth0", 1);
        book.insert(first.clone());
        let [a, b] = ["a", "b"].map(|name| name.parse::<ContainerName>().unwrap());
        let [eth0, net1] = ["eth0", "net1"].map(|name| name.parse::<IfName>().unwrap());
        assert_eq!(book.place(&a, &eth0, (4, 1)), Place::Served(&first));
        assert_eq!(book.place(&a, &net1, (4, 1)), Place::Free);
        assert_eq!(book.place(&a, &net1, (4, 2)), Place::NameTaken(&first));
        assert_eq!(book.place(&b, &eth0, (4, 1)), Place::Free);
        assert_eq!(book.remove(&a, &net1), None);
        assert_eq!(book.remove(&a, &eth0), Some(first));
        assert_eq!(book, Book::default());
    }
}
