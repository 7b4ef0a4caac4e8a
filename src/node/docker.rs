//! What Docker asks of the node: addresses, endpoints, interfaces.
//!
//! Docker moves interfaces, names them and sets their addresses itself, so an endpoint is an attachment of another kind:
//! its pair is lent ([`weave_router::attach::Host::lend`]) when its container joins and taken away when the endpoint is
//! deleted. In between it is an entry of the book like all others, with Docker as its owner, so that a start adopts it,
//! the watch mends it, and broadcasts reach it. Its address is not the attachment's but Docker's ([`Table`]): Docker
//! asked for it before and gives it back afterwards.
//!
//! Every call may come twice, and after a crash of Docker none may come at all: what is made again replaces what was
//! there, and what is not there any more is taken back without complaint.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use weave_model::api::{Attachment, CniOwner, Code, Refusal};
use weave_model::docker::{
    ADDRESS_SPACE, AddressRef, AddressRequest, Call, EndpointRef, EndpointRequest, Family,
    JoinRequest, NetworkRef, NetworkRequest, PoolId, PoolRequest,
};
use weave_model::{Bandwidth, ClusterRange, CniName, ContainerName, IfName, Mac, NetworkName};
use weave_router::attach;

use super::book::Entry;
use super::containers::{self, GATEWAY6, UNKNOWN};
use super::given::{Endpoint, Network, NotGiven, Table, lease_id};
use super::wall_seconds;
use super::works::Works;
use crate::config::MTU_RANGE;

/// The range of a network whose range nobody named.
const ANY: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0);

/// The fix for addresses of others.
const WITH_IPAM: &str = "create the network with --ipam-driver weave";

/// What the node has to say to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done,
    /// To a request for a pool.
    Pool(Pool),
    /// To a request for an address: with the prefix length that the container's interface should have.
    Address(IpNet),
    /// To a container that joins.
    Lent(Lent),
}

/// A range that Docker may give addresses from, by asking for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// What it is called from now on.
    pub id: PoolId,
    /// The range.
    pub net: IpNet,
    /// The gateway, with the range's prefix length.
    pub gateway: IpNet,
}

/// An interface for Docker to move into the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lent {
    /// Its name for now.
    pub name: IfName,
    /// The cluster's ranges.
    pub range: ClusterRange,
    /// Whether the container has an IPv6 address.
    pub ipv6: bool,
    /// Whether its network has no way to the outside, so that Docker must not add one.
    pub internal: bool,
}

impl Works {
    /// Does what Docker asks.
    pub(super) async fn docker(&mut self, call: Call) -> Result<Answer, Refusal> {
        match call {
            Call::RequestPool(request) => return self.pool(&request).map(Answer::Pool),
            Call::RequestAddress(request) => {
                return self.give_address(request).await.map(Answer::Address);
            }
            Call::ReleaseAddress(what) => self.take_address_back(&what).await?,
            Call::CreateNetwork(request) => self.create_network(request)?,
            Call::DeleteNetwork(what) => self.delete_network(&what)?,
            Call::CreateEndpoint(request) => self.create_endpoint(request)?,
            Call::Join(request) => return self.join_endpoint(request).await.map(Answer::Lent),
            // Docker still brings the interface back, so that stays.
            Call::Leave(what) => self.strike_endpoint(&what.endpoint).await?,
            Call::DeleteEndpoint(what) => self.delete_endpoint(&what).await?,
            Call::Activate
            | Call::DriverCapabilities
            | Call::IpamCapabilities
            | Call::AddressSpaces
            | Call::ReleasePool(_)
            | Call::EndpointInfo(_)
            | Call::Heard => {}
        }
        Ok(Answer::Done)
    }

    /// The range of the cluster's network. Nothing is kept: every Docker of the cluster gets the same.
    ///
    /// Where nobody named a range, Docker asks again and again until it is offered one that the host has no route to,
    /// which ours has: so it is offered [`ANY`], which it takes as it is (moby `libnetwork/network.go`, "invalid pool").
    fn pool(&self, request: &PoolRequest) -> Result<Pool, Refusal> {
        let range = self.range()?;
        let family = if request.v6 { Family::V6 } else { Family::V4 };
        let network = match request.pool {
            Some(asked) => self.network_of(range, asked)?,
            None => NetworkName::default_network(),
        };
        let (net, gateway) = whole(self.part(range, &network)?, family);
        if let Some(part) = request.sub_pool {
            let cause = format!("addresses cannot be given from {part} alone");
            let fix = "leave --ip-range out; give single containers an address with --ip";
            return Err(Refusal::new(Code::Invalid, cause, fix));
        }
        if let Some(option) = request.options.keys().next() {
            return Err(unknown_option(option, "--ipam-opt"));
        }
        let id = PoolId { network, family };
        let named = request.pool.is_some() || request.v6;
        let net = if named { net } else { ANY.into() };
        Ok(Pool { id, net, gateway })
    }

    /// The network that has this range, in either family.
    fn network_of(&self, range: ClusterRange, asked: IpNet) -> Result<NetworkName, Refusal> {
        let asked = asked.trunc();
        let is = |part: ClusterRange| asked == part.v4().into() || asked == part.v6().into();
        if is(range) {
            return Ok(NetworkName::default_network());
        }
        let mut known = self.book.networks().known.apart();
        let found = known.find(|one| is(range.part_of(one.range)));
        found.map(|one| one.name.clone()).ok_or_else(|| {
            let cause = format!("{asked} is neither the range of the cluster nor that of a network");
            let fix = format!(
                "leave --subnet out, give --subnet {}, or make a network first: weavectl network create",
                whole(range, Family::of(asked.addr())).0
            );
            Refusal::new(Code::Invalid, cause, fix)
        })
    }

    /// The network that all ranges of a network of Docker's belong to.
    fn network_of_all(
        &self,
        range: ClusterRange,
        request: &NetworkRequest,
    ) -> Result<NetworkName, Refusal> {
        let mut found = NetworkName::default_network();
        for (at, given) in request.v4.iter().chain(&request.v6).enumerate() {
            let one = match given.pool {
                pool if pool == ANY.into() => NetworkName::default_network(),
                pool => self.network_of(range, pool)?,
            };
            if at > 0 && one != found {
                let cause = format!("the ranges belong to different networks, {found} and {one}");
                let fix = "give --subnet twice, with both ranges of one network: see weavectl network list";
                return Err(Refusal::new(Code::Invalid, cause, fix));
            }
            found = one;
        }
        Ok(found)
    }

    /// The addresses of a network.
    fn part(&self, range: ClusterRange, network: &NetworkName) -> Result<ClusterRange, Refusal> {
        let network = self.network(network)?;
        Ok(network.map_or(range, |network| range.part_of(network.range)))
    }

    async fn give_address(&mut self, request: AddressRequest) -> Result<IpNet, Refusal> {
        let range = self.range()?;
        let family = request.pool.family;
        let part = self.part(range, &request.pool.network)?;
        let (net, gateway) = whole(part, family);
        if request.options.is_gateway() {
            return match request.address.filter(|asked| *asked != gateway.addr()) {
                None => Ok(gateway),
                Some(asked) => {
                    let cause =
                        format!("{asked} cannot be the gateway, which is {}", gateway.addr());
                    Err(Refusal::new(Code::Invalid, cause, "leave --gateway out"))
                }
            };
        }
        let want = request
            .address
            .map(|ip| offset_of(part, family, ip).map(|_| range.offset(ip)))
            .transpose()?
            .flatten();
        let (mac, before) = (request.options.mac, self.book.docker().clone());
        let found = self.book.docker_mut().complete(family, mac, want);
        let found = found.map_err(|error| not_given(error, range, request.address))?;
        if let Some(offset) = found {
            self.save_docker(before)?;
            return Ok(address_at(range, net, offset));
        }
        let lease = lease_id(before.next());
        let offset = self
            .allocate_of(&request.pool.network, &lease, want)
            .await?;
        self.book.docker_mut().add(family, mac, offset);
        if let Err(refusal) = self.save_docker(before) {
            self.release(&lease).await;
            return Err(refusal);
        }
        Ok(address_at(range, net, offset))
    }

    async fn take_address_back(&mut self, what: &AddressRef) -> Result<(), Refusal> {
        let range = self.range()?;
        // The gateway's is nobody's to give back, and one of a cluster of the past is not there. Docker deletes an
        // endpoint before it gives its addresses back: one that an endpoint has was given again since.
        let offset = offset_of(range, what.pool.family, what.address).ok();
        let Some(offset) = offset.filter(|offset| self.book.docker().holder(*offset).is_none())
        else {
            return Ok(());
        };
        let before = self.book.docker().clone();
        let over = self.book.docker_mut().give_back(what.pool.family, offset);
        self.save_docker(before)?;
        if let Some(number) = over {
            self.release(&lease_id(number)).await;
        }
        Ok(())
    }

    fn create_network(&mut self, request: NetworkRequest) -> Result<(), Refusal> {
        let range = self.range()?;
        if let Some(option) = request.options.unknown.first() {
            return Err(unknown_option(option, "--opt"));
        }
        let mut ranges = request.v4.iter().chain(&request.v6);
        if let Some(foreign) = ranges.find(|range| range.address_space != ADDRESS_SPACE) {
            let cause = format!("the addresses of {} are not Weave's to give", foreign.pool);
            return Err(Refusal::new(Code::Invalid, cause, WITH_IPAM));
        }
        let mtu = request.options.mtu.as_deref().map(mtu).transpose()?;
        let network = self.network_of_all(range, &request)?;
        let before = self.book.docker().clone();
        self.book
            .docker_mut()
            .add_network(request.network, Network { mtu, network });
        self.save_docker(before)
    }

    fn delete_network(&mut self, what: &NetworkRef) -> Result<(), Refusal> {
        let before = self.book.docker().clone();
        self.book.docker_mut().remove_network(&what.network);
        self.save_docker(before)
    }

    fn create_endpoint(&mut self, request: EndpointRequest) -> Result<(), Refusal> {
        let range = self.range()?;
        let EndpointRequest {
            network,
            endpoint: name,
            interface,
        } = request;
        let Some(v4) = interface.v4 else {
            let cause = "the endpoint has no IPv4 address";
            return Err(Refusal::new(Code::Invalid, cause, WITH_IPAM));
        };
        let offset = self.given(range, v4.addr().into())?;
        let table = self.book.docker();
        if table
            .endpoints()
            .any(|other| *other != name && name_of(other) == name_of(&name))
        {
            let cause = format!("another endpoint is called {} as well", name_of(&name));
            return Err(Refusal::new(
                Code::Conflict,
                cause,
                "start the container again",
            ));
        }
        if let Some(holder) = table.holder(offset).filter(|holder| **holder != name) {
            let cause = format!("{} is the address of the endpoint {holder}", v4.addr());
            return Err(Refusal::new(
                Code::Conflict,
                cause,
                "start the container with another --ip",
            ));
        }
        if let Some(v6) = interface.v6
            && self.given(range, v6.addr().into())? != offset
        {
            let cause = format!(
                "a container cannot have both {} and {}",
                v4.addr(),
                v6.addr()
            );
            let fix = format!("{} and {} go together", v4.addr(), range.v6_at(offset));
            return Err(Refusal::new(Code::Invalid, cause, fix));
        }
        let endpoint = Endpoint {
            network,
            offset,
            ipv6: interface.v6.is_some(),
            mac: interface.mac,
            outer: None,
        };
        let before = table.clone();
        self.book.docker_mut().add_endpoint(name, endpoint);
        self.save_docker(before)
    }

    /// The offset of an address that Docker was given.
    fn given(&self, range: ClusterRange, ip: IpAddr) -> Result<u32, Refusal> {
        let found = range.offset(ip);
        let given = |offset: &u32| self.book.docker().is_given(Family::of(ip), *offset);
        found.filter(given).ok_or_else(|| {
            let cause = format!("{ip} was not given to Docker by this node");
            Refusal::new(Code::Invalid, cause, WITH_IPAM)
        })
    }

    /// Makes the pair of an endpoint, anew if there is one: its container has just been made.
    async fn join_endpoint(&mut self, request: JoinRequest) -> Result<Lent, Refusal> {
        let range = self.range()?;
        let id = request.endpoint.endpoint;
        let Some(endpoint) = self.book.docker().endpoint(&id).cloned() else {
            let cause = format!("there is no endpoint {id}");
            let fix = "start the container again";
            return Err(Refusal::new(Code::NotFound, cause, fix));
        };
        self.side.guard(range)?;
        self.remove_pair(&id, &endpoint).await?;
        let network = self.book.docker().network(&endpoint.network).network;
        let part = self.part(range, &network)?;
        let declared = self.network(&network)?;
        let internal = declared.is_some_and(|network| network.spec.internal);
        let (attachment, inner) = self.to_lend(&id, &endpoint, (range, part))?;
        let mac = endpoint.mac.map(Mac::bytes);
        let kernel_name = containers::kernel_name(&inner);
        let lent = self.side.host.lend(&attachment, &kernel_name, mac).await;
        let lent = lent.map_err(|error| containers::refused(&error))?;

        let mut entry = entry(&id, &endpoint, &attachment, &lent, request.sandbox);
        entry.attachment.network = network;
        if let Err(refusal) = self.keep(&id, &endpoint, entry) {
            if let Err(error) = self.side.host.detach(&attachment.outer).await {
                tracing::warn!(%error, "a container's device cannot be taken back");
            }
            return Err(refusal);
        }
        self.tell_ports().await;
        tracing::info!(endpoint = %id, ip = %attachment.v4(), "lent to Docker");
        Ok(Lent {
            name: inner,
            range: part,
            ipv6: endpoint.ipv6,
            internal,
        })
    }

    /// What is asked of the host for an endpoint, and the name of the inner end.
    fn to_lend(
        &self,
        id: &CniName,
        endpoint: &Endpoint,
        (range, part): (ClusterRange, ClusterRange),
    ) -> Result<(attach::Attachment, IfName), Refusal> {
        let name = name_of(id);
        let outer = containers::host_ifname(&self.book, &name, &IfName::eth0());
        let inner = outer.as_str().replacen("wv", "wc", 1);
        let Network { mtu, network } = self.book.docker().network(&endpoint.network);
        let network = self.network(&network)?;
        let mtu = mtu.or_else(|| network.and_then(|network| network.spec.mtu));
        let offset = offset_of(part, Family::V4, range.v4_at(endpoint.offset).into())?;
        let attachment = attach::Attachment {
            outer: containers::kernel_name(&outer),
            range: part,
            offset,
            ipv6: endpoint.ipv6,
            also: Vec::new(),
            mtu: mtu.unwrap_or(self.config.overlay.mtu).into(),
            published: false,
            bandwidth: Bandwidth::default(),
            tag: name.to_string(),
        };
        let inner = inner.parse().expect("another letter of the same kind");
        Ok((attachment, inner))
    }

    /// Writes down what was lent.
    fn keep(&mut self, id: &CniName, endpoint: &Endpoint, entry: Entry) -> Result<(), Refusal> {
        let before = self.book.docker().clone();
        let kept = Endpoint {
            outer: Some(entry.attachment.host_ifname.clone()),
            ..endpoint.clone()
        };
        self.book.docker_mut().add_endpoint(id.clone(), kept);
        self.book.insert(entry);
        let saved = self.save_docker(before);
        if saved.is_err() {
            self.book.remove(&name_of(id), &IfName::eth0());
        }
        saved
    }

    async fn delete_endpoint(&mut self, what: &EndpointRef) -> Result<(), Refusal> {
        let Some(endpoint) = self.book.docker().endpoint(&what.endpoint).cloned() else {
            return Ok(());
        };
        self.remove_pair(&what.endpoint, &endpoint).await?;
        let before = self.book.docker().clone();
        self.book.docker_mut().remove_endpoint(&what.endpoint);
        self.save_docker(before)
    }

    /// Removes the pair of an endpoint, wherever its other end is by now.
    async fn remove_pair(&mut self, id: &CniName, endpoint: &Endpoint) -> Result<(), Refusal> {
        if let Some(outer) = &endpoint.outer {
            let removed = self.side.host.detach(&containers::kernel_name(outer)).await;
            removed.map_err(|error| containers::refused(&error))?;
        }
        self.strike_endpoint(id).await
    }

    /// Strikes the attachment of an endpoint out of the book.
    async fn strike_endpoint(&mut self, id: &CniName) -> Result<(), Refusal> {
        let name = name_of(id);
        let Some(entry) = self.book.remove(&name, &IfName::eth0()) else {
            return Ok(());
        };
        if let Err(refusal) = self.save() {
            self.book.insert(entry);
            return Err(refusal);
        }
        self.tell_ports().await;
        Ok(())
    }

    /// Forgets an endpoint whose attachment somebody took off by hand, and its addresses: Docker may have lost it.
    pub(super) async fn forget_endpoint(&mut self, entry: &Entry) -> Result<(), Refusal> {
        let Some(owner) = &entry.attachment.owner else {
            return Ok(());
        };
        let before = self.book.docker().clone();
        let table = self.book.docker_mut();
        let Some(Endpoint { offset, .. }) = table.remove_endpoint(&owner.container) else {
            return Ok(());
        };
        let over = [Family::V4, Family::V6].map(|family| table.give_back(family, offset));
        self.save_docker(before)?;
        for number in over.into_iter().flatten() {
            self.release(&lease_id(number)).await;
        }
        Ok(())
    }

    /// Learns which namespaces Docker's containers got: there is none yet when they join.
    pub(super) fn learn_namespaces(&mut self) {
        let unknown = |entry: &&Entry| entry.netns_id == UNKNOWN;
        let found: Vec<Entry> = self.book.entries().filter(unknown).cloned().collect();
        let mut learnt = false;
        for mut entry in found {
            if let Ok(netns) = containers::open_netns(&entry.attachment.netns) {
                entry.netns_id = containers::netns_id(&netns);
                self.book.insert(entry);
                learnt = true;
            }
        }
        if learnt && let Err(refusal) = self.save() {
            tracing::warn!(%refusal, "it is learnt again after the next start");
        }
    }

    /// Writes the book; when that fails, Docker's part is as it was before.
    fn save_docker(&mut self, before: Table) -> Result<(), Refusal> {
        let saved = self.save();
        if saved.is_err() {
            *self.book.docker_mut() = before;
        }
        saved
    }
}

/// What an endpoint is called among the attachments: Docker's people know the beginning of its id.
fn name_of(id: &CniName) -> ContainerName {
    let short: String = id.as_str().chars().take(12).collect();
    let name = format!("docker-{short}").parse::<CniName>();
    ContainerName::of_cni(name.as_ref().unwrap_or(id))
}

/// A range of the cluster, and its gateway with the range's prefix length.
fn whole(range: ClusterRange, family: Family) -> (IpNet, IpNet) {
    match family {
        Family::V4 => {
            let length = range.v4().prefix_len();
            let gateway = Ipv4Net::new_assert(range.gateway(), length);
            (range.v4().into(), gateway.into())
        }
        Family::V6 => {
            let length = range.v6().prefix_len();
            let gateway = Ipv6Net::new_assert(range.v6_at(1), length);
            (range.v6().into(), gateway.into())
        }
    }
}

/// The address at an offset, in the family of the range. An IPv4 address has the range's prefix length, as programs
/// expect of a flat network; an IPv6 address stands alone, so that nothing is asked for on the link.
fn address_at(range: ClusterRange, net: IpNet, offset: u32) -> IpNet {
    match net {
        IpNet::V4(net) => Ipv4Net::new_assert(range.v4_at(offset), net.prefix_len()).into(),
        IpNet::V6(_) => Ipv6Net::from(range.v6_at(offset)).into(),
    }
}

/// The offset of an address of a pool.
fn offset_of(range: ClusterRange, family: Family, ip: IpAddr) -> Result<u32, Refusal> {
    let found = range.offset(ip).filter(|_| Family::of(ip) == family);
    found.ok_or_else(|| {
        let cause = format!("{ip} does not lie in {}", whole(range, family).0);
        let fix = "give an address in that range, or none";
        Refusal::new(Code::Invalid, cause, fix)
    })
}

fn mtu(text: &str) -> Result<u16, Refusal> {
    let read = text.parse().ok();
    read.filter(|mtu| MTU_RANGE.contains(mtu)).ok_or_else(|| {
        let cause = format!("an MTU of {text} is out of range");
        Refusal::new(Code::Invalid, cause, "give an MTU between 1280 and 60000")
    })
}

fn unknown_option(option: &str, flag: &str) -> Refusal {
    let cause = format!("the option {option} means nothing to Weave");
    Refusal::new(Code::Invalid, cause, format!("leave {flag} {option} out"))
}

fn not_given(error: NotGiven, range: ClusterRange, asked: Option<IpAddr>) -> Refusal {
    let asked = asked.map_or_else(String::new, |ip| ip.to_string());
    match error {
        NotGiven::Taken => Refusal::new(
            Code::Conflict,
            format!("{asked} is in use by another container of this Docker"),
            "give another --ip, or none",
        ),
        NotGiven::Apart(offset) => Refusal::new(
            Code::Invalid,
            format!("{asked} does not go with the container's other address"),
            format!(
                "{} and {} go together",
                range.v4_at(offset),
                range.v6_at(offset)
            ),
        ),
    }
}

/// The book's entry for what was lent. Where the namespace is not there yet, its identity is learnt later.
fn entry(
    id: &CniName,
    endpoint: &Endpoint,
    attachment: &attach::Attachment,
    lent: &attach::Lent,
    sandbox: String,
) -> Entry {
    let range = &attachment.range;
    let netns_id =
        containers::open_netns(&sandbox).map_or(UNKNOWN, |netns| containers::netns_id(&netns));
    let v6 = lent.ipv6.then(|| range.v6_at(attachment.offset).into());
    let attachment = Attachment {
        name: name_of(id),
        netns: sandbox,
        ifname: IfName::eth0(),
        mac: containers::mac_text(lent.mac),
        mtu: attachment.mtu,
        host_ifname: containers::model_name(&attachment.outer),
        host_mac: containers::mac_text(lent.outer_mac),
        network: NetworkName::default_network(),
        ip: Ipv4Net::new_assert(attachment.v4(), range.v4().prefix_len()),
        gateway: range.gateway(),
        ip6: v6,
        also: Vec::new(),
        gateway6: GATEWAY6,
        default_route: false,
        labels: BTreeMap::new(),
        aliases: [].into(),
        publish: Vec::new(),
        bandwidth: attachment.bandwidth,
        owner: Some(CniOwner {
            network: endpoint.network.clone(),
            container: id.clone(),
        }),
        attached_at: wall_seconds(),
        alive: true,
    };
    Entry::new(attachment, netns_id)
}
