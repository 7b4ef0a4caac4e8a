//! Which way a packet would take, asked of the same tables that the real one meets, in the order in which it meets them.
//!
//! Nothing is sent. The routes are looked up by the kernel itself, in the container's namespace and in the host's; the
//! owner of the destination is what the router would find. What happens on another node is not guessed.

use std::net::IpAddr;

use weave_linux::netlink::route::Kind;
use weave_linux::netlink::{Link, Netlink, Route};
use weave_linux::nft::Found;
use weave_linux::sysctl;
use weave_model::api::{Attachment, Code, Hop, Refusal, Trace, TraceEnd, TraceRequest};
use weave_model::{ClusterRange, NetworkName};
use weave_proxy::declared::{Backend, Member, resolve};
use weave_router::core::view::{self, Owner, View};

use super::book::Entry;
use super::containers;
use super::floating;
use super::host::TUN;
use super::works::Works;

/// What a walk comes to: the end, or the hop that drops the packet.
type Walk = Result<TraceEnd, Hop>;

/// The hops so far.
struct Path {
    hops: Vec<Hop>,
}

impl Path {
    fn pass(&mut self, at: &str, check: &str, found: impl Into<String>) {
        self.hops.push(Hop {
            at: at.to_owned(),
            check: check.to_owned(),
            passed: true,
            found: found.into(),
            fix: None,
        });
    }
}

fn dropped(at: &str, check: &str, found: impl Into<String>, fix: impl Into<String>) -> Hop {
    Hop {
        at: at.to_owned(),
        check: check.to_owned(),
        passed: false,
        found: found.into(),
        fix: Some(fix.into()),
    }
}

/// A failure to look is no hop; it is told as what it is.
fn unreadable(error: &dyn std::fmt::Display) -> Hop {
    dropped(
        "host",
        "tables",
        format!("cannot be read: {error}"),
        "look at the log of weaved",
    )
}

impl Works {
    /// Follows a packet from a container of this node.
    pub(super) async fn trace(&self, request: &TraceRequest) -> Result<Trace, Refusal> {
        let range = self.range()?;
        let destination = self.destination(request, range)?;
        let mut interfaces = self.book.interfaces(&request.from);
        let together = |entry: &&Entry| self.is_in(&entry.attachment.network, range, destination);
        let entry = interfaces
            .clone()
            .find(together)
            .or_else(|| interfaces.next());
        let entry = entry.ok_or_else(|| {
            let cause = format!("no container {} is attached to this node", request.from);
            Refusal::new(
                Code::NotFound,
                cause,
                "see what is attached with: weavectl ps",
            )
        })?;
        let source = match destination {
            IpAddr::V4(_) => IpAddr::V4(entry.attachment.ip.addr()),
            IpAddr::V6(_) => match entry.attachment.ip6 {
                Some(ip6) => IpAddr::V6(ip6.addr()),
                None => {
                    let cause = format!("{} has no IPv6 address", request.from);
                    return Err(Refusal::new(Code::Invalid, cause, "give an IPv4 address"));
                }
            },
        };
        let mut path = Path { hops: Vec::new() };
        let end = match self
            .walk(entry, (source, destination), range, &mut path)
            .await
        {
            Ok(end) => end,
            Err(hop) => {
                path.hops.push(hop);
                TraceEnd::Dropped
            }
        };
        Ok(Trace {
            source,
            destination,
            end,
            hops: path.hops,
        })
    }

    /// What is named: an address, a container of this node, or one that another member tells of.
    fn destination(&self, request: &TraceRequest, range: ClusterRange) -> Result<IpAddr, Refusal> {
        let text = request.to.as_str();
        if let Ok(address) = text.parse() {
            return Ok(address);
        }
        let members = self.members();
        let found = named(&members, text)?;
        // A container in several networks is asked for where the two can meet.
        let together = |ip: &&IpAddr| {
            let mut interfaces = self.book.interfaces(&request.from);
            interfaces.any(|entry| self.is_in(&entry.attachment.network, range, **ip))
        };
        let mut v4 = found.iter().filter(|ip| ip.is_ipv4());
        let ip = v4.clone().find(together).or_else(|| v4.next());
        ip.copied().ok_or_else(|| unknown(text))
    }

    async fn walk(
        &self,
        entry: &Entry,
        (source, destination): (IpAddr, IpAddr),
        range: ClusterRange,
        path: &mut Path,
    ) -> Walk {
        let outer = self.out_of_the_container(entry, destination, path).await?;
        let netlink = Netlink::open().map_err(|error| unreadable(&error))?;
        past_antispoofing(&netlink, &outer, source, path).await?;
        self.past_the_rules(source.is_ipv4(), range, path)?;
        let destination = self.past_the_services(destination, range, path)?;
        self.within_one_network(&entry.attachment.network, range, destination, path)?;
        let Some((route, link)) = way_out(&netlink, destination).await? else {
            path.pass("host", "route", format!("{destination} is this host's own"));
            return Ok(TraceEnd::Host);
        };
        path.pass("host", "route", shown(&route, &link));
        if !link.up {
            let fix = format!("ip link set {} up", link.name);
            return Err(dropped(&link.name, "device", "it is down", fix));
        }
        if link.name == TUN {
            let view = self.router.view();
            let holders = self.holders(&range);
            let owner = |ip| floating::owner_of(&view, &range, &holders, ip);
            return over(&view, owner, (source, destination), path);
        }
        Ok(self.behind(&link.name, path))
    }

    /// Where a packet to a Service goes on to: its first endpoint of the family that can be reached, of which a connection
    /// may get any. A packet to another address goes on as it is.
    fn past_the_services(
        &self,
        destination: IpAddr,
        range: ClusterRange,
        path: &mut Path,
    ) -> Result<IpAddr, Hop> {
        let declared = resolve(&self.members(), &self.virtuals(range));
        let mut services = declared.values();
        let Some(service) = services.find(|one| one.addresses.contains(&destination)) else {
            return Ok(destination);
        };
        let name = &service.made.name;
        let same = |backend: &&Backend| {
            backend.reachable && backend.address.is_ipv4() == destination.is_ipv4()
        };
        let behind: Vec<&Backend> = service.backends.iter().filter(same).collect();
        let Some(first) = behind.first() else {
            let found = format!("nobody is behind the service {name}: connections are refused");
            let fix = format!("see who should be with: weavectl service describe {name}");
            return Err(dropped("host", "service", found, fix));
        };
        let one_of = match behind.len() {
            1 => String::new(),
            many => format!(", one of {many} endpoints"),
        };
        let found = format!("{name} leads to {}{one_of}", first.address);
        path.pass("host", "service", found);
        Ok(first.address)
    }

    /// Whether an address is in a network; addresses outside of the cluster are in none.
    fn is_in(&self, network: &NetworkName, range: ClusterRange, address: IpAddr) -> bool {
        let offset = range.offset(address);
        offset.is_some_and(|offset| self.network_reaching(&range, offset) == *network)
    }

    fn within_one_network(
        &self,
        own: &NetworkName,
        range: ClusterRange,
        to: IpAddr,
        path: &mut Path,
    ) -> Result<(), Hop> {
        let Some(offset) = range.offset(to) else {
            return Ok(());
        };
        let other = self.network_reaching(&range, offset);
        if other == *own {
            path.pass("host", "network", format!("both are in the network {own}"));
            return Ok(());
        }
        let found = format!("{to} is in the network {other}, the container in {own}");
        let fix = format!(
            "attach the container to {other} as well: weavectl attach --network {other} --ifname eth1"
        );
        Err(dropped("host", "network", found, fix))
    }

    /// What a device that is not the router's leads to.
    fn behind(&self, device: &str, path: &mut Path) -> TraceEnd {
        let mut entries = self.book.entries();
        let container = entries.find(|other| other.attachment.host_ifname.as_str() == device);
        if let Some(Entry { attachment, .. }) = container {
            let found = format!("{} of {}", attachment.ifname, attachment.name);
            path.pass(device, "container", found);
            return TraceEnd::Delivered;
        }
        let found = "it leaves with this host's address (masqueraded)";
        path.pass(device, "outside", found);
        TraceEnd::Leaves
    }

    /// The container's interface and its route; the host's end is what comes out.
    async fn out_of_the_container(
        &self,
        entry: &Entry,
        to: IpAddr,
        path: &mut Path,
    ) -> Result<String, Hop> {
        let Attachment {
            name,
            ifname,
            host_ifname,
            mtu,
            netns,
            ..
        } = &entry.attachment;
        let at = name.as_str();
        let outer = host_ifname.to_string();
        if !self.pairs.contains(&outer) {
            let fix = "start the container again; the node frees its address within seconds";
            return Err(dropped(at, "interface", "its interface is gone", fix));
        }
        let gone = |error: &dyn std::fmt::Display| {
            dropped(
                at,
                "namespace",
                error.to_string(),
                "start the container again",
            )
        };
        let netns = containers::open_netns(netns).map_err(|refusal| gone(&refusal))?;
        let inside = Netlink::open_in(&netns).map_err(|error| gone(&error))?;
        path.pass(at, "interface", format!("{ifname}, MTU {mtu}"));
        let route = inside.route_for(to).await.map_err(|error| gone(&error))?;
        let links = inside.links().await.map_err(|error| gone(&error))?;
        let fix = format!("look at the routes in the container: they should lead by {ifname}");
        let link = route
            .as_ref()
            .and_then(|route| links.iter().find(|link| Some(link.index) == route.link));
        match (&route, link) {
            (Some(route), Some(link)) if link.name == ifname.as_str() => {
                path.pass(at, "route", shown(route, link));
                Ok(outer)
            }
            (Some(_), Some(link)) => Err(dropped(
                at,
                "route",
                format!("it leaves by {}, which is not Weave's", link.name),
                fix,
            )),
            _ => Err(dropped(at, "route", format!("no route to {to}"), fix)),
        }
    }

    /// What every packet of a container meets on the host after its device: the node's rules, and forwarding.
    fn past_the_rules(
        &self,
        is_ipv4: bool,
        range: ClusterRange,
        path: &mut Path,
    ) -> Result<(), Hop> {
        match self.side.find_rules(range) {
            Ok(Found::Right) => {
                path.pass("host", "rules", "nftables table inet weave-attach is whole")
            }
            Ok(_) => {
                let fix = "wait some seconds: the node mends them";
                return Err(dropped(
                    "host",
                    "rules",
                    "the node's rules are gone or were changed",
                    fix,
                ));
            }
            Err(error) => return Err(unreadable(&error)),
        }
        let key = if is_ipv4 {
            "net/ipv4/ip_forward"
        } else {
            "net/ipv6/conf/all/forwarding"
        };
        if sysctl::read(key).is_ok_and(|value| value == "0") {
            let fix = "wait some seconds: the node switches it on";
            return Err(dropped("host", "forwarding", "switched off", fix));
        }
        let firewall = self
            .obstacles
            .iter()
            .find(|obstacle| obstacle.cause.contains("firewall"));
        if let Some(obstacle) = firewall {
            return Err(dropped("host", "firewall", &obstacle.cause, &obstacle.fix));
        }
        path.pass("host", "forwarding", "on");
        Ok(())
    }
}

/// The addresses of a container by its name. This node, the first of the members, comes before the others, whose
/// containers may have the same name.
fn named(members: &[Member], name: &str) -> Result<Vec<IpAddr>, Refusal> {
    let of = |member: &Member| -> Vec<IpAddr> {
        let containers = member.sheet.containers.iter();
        let so_called = containers.filter(|one| one.name.as_str() == name);
        so_called.flat_map(|one| one.ips.clone()).collect()
    };
    let mut found = members.iter().enumerate().filter_map(|(at, member)| {
        let ips = Some(of(member)).filter(|ips| !ips.is_empty())?;
        Some((at, &member.name, ips))
    });
    let (at, node, ips) = found.next().ok_or_else(|| unknown(name))?;
    let more: Vec<_> = found.collect();
    if at == 0 || more.is_empty() {
        return Ok(ips);
    }
    let all =
        std::iter::once((node, ips[0])).chain(more.iter().map(|(_, node, ips)| (*node, ips[0])));
    let all: Vec<String> = all.map(|(node, ip)| format!("{ip} on {node}")).collect();
    let cause = format!("several containers are called {name}: {}", all.join(", "));
    let fix = "give the address of the one that is meant";
    Err(Refusal::new(Code::Conflict, cause, fix))
}

fn unknown(name: &str) -> Refusal {
    let cause = format!("\"{name}\" is neither an address nor a container of a member");
    let fix = "give an address, or see what is attached with: weavectl ps, on each host";
    Refusal::new(Code::NotFound, cause, fix)
}

/// The route that the host has for a destination, and its device; none if it is the host itself.
async fn way_out(netlink: &Netlink, to: IpAddr) -> Result<Option<(Route, Link)>, Hop> {
    let found = netlink.route_for(to).await;
    let found = found.map_err(|error| unreadable(&error))?;
    let fix = "look at: ip route get, on this host";
    let no_route = || dropped("host", "route", format!("no route to {to}"), fix);
    let route = found.filter(|route| route.kind != Kind::Refuse);
    let route = route.ok_or_else(no_route)?;
    if route.kind == Kind::Local {
        return Ok(None);
    }
    let links = netlink.links().await.map_err(|error| unreadable(&error))?;
    let mut links = links.into_iter();
    let link = links.find(|link| Some(link.index) == route.link);
    let link = link.ok_or_else(no_route)?;
    Ok(Some((route, link)))
}

/// The host's end of the pair, and the rule that no container sends with another's address.
async fn past_antispoofing(
    netlink: &Netlink,
    outer: &str,
    source: IpAddr,
    path: &mut Path,
) -> Result<(), Hop> {
    let links = netlink.links().await.map_err(|error| unreadable(&error))?;
    let link = links.iter().find(|link| link.name == outer);
    let link = link.filter(|link| link.up && link.carrier).ok_or_else(|| {
        let fix = format!("ip link set {outer} up");
        dropped(outer, "device", "it is down", fix)
    })?;
    let back = netlink.route_for(source).await;
    let back = back.map_err(|error| unreadable(&error))?;
    if back.and_then(|route| route.link) != Some(link.index) {
        let found = format!("spoofed: the route back to {source} does not lead by {outer}");
        let fix = "wait some seconds: the node mends its routes";
        return Err(dropped(outer, "anti-spoofing", found, fix));
    }
    let found = format!("the route back to {source} leads by it");
    path.pass(outer, "anti-spoofing", found);
    Ok(())
}

/// What the router does with a packet: whose is the destination, and how is it reached.
fn over(
    view: &View,
    owner: impl Fn(IpAddr) -> Option<Owner>,
    (source, destination): (IpAddr, IpAddr),
    path: &mut Path,
) -> Walk {
    let Some(owned) = owner(destination) else {
        let found = format!("{destination} belongs to no member that this node knows");
        return Err(dropped(
            TUN,
            "owner",
            found,
            "see who owns what with: weavectl peers",
        ));
    };
    let member: &view::Member = match owned {
        Owner::Member(place) => &view.members[place as usize],
        Owner::Me => {
            let found =
                format!("{destination} is one of this node's addresses, and no container has it");
            return Err(dropped(
                TUN,
                "owner",
                found,
                "see which are in use with: weavectl ps",
            ));
        }
    };
    path.pass(
        TUN,
        "owner",
        format!("{destination} belongs to {}", member.name),
    );
    if owner(source) != Some(Owner::Me) {
        let found = format!(
            "{source} is not one of this node's addresses: {} would drop it",
            member.name
        );
        return Err(dropped(TUN, "source", found, "attach the container anew"));
    }
    path.pass(
        TUN,
        "source",
        format!("{source} is one of this node's addresses"),
    );
    let at = member.name.as_str();
    if !member.connected {
        let fix = "check that weaved runs there, and that UDP passes between the hosts";
        return Err(dropped(at, "session", "there is none", fix));
    }
    let mut found = member.suite.map_or_else(
        || "sealed".to_owned(),
        |suite| format!("sealed with {suite}"),
    );
    if let Some(endpoint) = member.endpoint {
        found.push_str(&format!(", to {endpoint}"));
    }
    path.pass(at, "session", found);
    Ok(TraceEnd::HandedOver)
}

fn shown(route: &Route, link: &Link) -> String {
    match route.via {
        Some(via) => format!("by {via} over {}", link.name),
        None => format!("over {}", link.name),
    }
}

#[cfg(test)]
mod tests {
    use weave_model::{NodeId, Sheet, SheetContainer};

    use super::*;

    fn member(at: u8, containers: &[(&str, &str)]) -> Member {
        let containers = containers.iter().map(|(name, ip)| SheetContainer {
            name: name.parse().unwrap(),
            ips: vec![ip.parse().unwrap()],
            floating: Vec::new(),
            labels: [].into(),
        });
        Member {
            id: NodeId::from_bytes([at; 32]),
            // Names of nodes are labels: two may have the same.
            name: format!("host{}", at % 3).parse().unwrap(),
            reachable: true,
            sheet: Sheet {
                containers: containers.collect(),
                ..Sheet::default()
            },
        }
    }

    #[test]
    fn a_name_is_this_node_s_or_that_of_one_other() {
        let members = [
            member(
                0,
                &[("a", "10.32.0.2"), ("b", "10.32.0.3"), ("b", "10.46.0.3")],
            ),
            member(1, &[("b", "10.36.0.2"), ("c", "10.36.0.3")]),
            member(3, &[("c", "10.40.0.2"), ("d", "10.40.0.3")]),
        ];
        let found = |name| {
            let found = named(&members, name).map_err(|refusal| (refusal.code, refusal.message));
            found.map(|ips| ips.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(found("b").unwrap(), ["10.32.0.3", "10.46.0.3"]);
        assert_eq!(found("d").unwrap(), ["10.40.0.3"]);
        let (code, said) = found("c").unwrap_err();
        assert_eq!(code, Code::Conflict);
        assert_eq!(
            said,
            "several containers are called c: 10.36.0.3 on host1, 10.40.0.2 on host0"
        );
        let (code, said) = found("nobody").unwrap_err();
        assert!(code == Code::NotFound && said.contains("nobody"), "{said}");
    }
}
