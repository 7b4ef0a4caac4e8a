//! What is particular to this host: what stands where the node wants to be, and what could stop its packets.

use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use ipnet::Ipv6Net;
use weave_linux::netlink::route::{Kind, MAIN_TABLE};
use weave_linux::netlink::{self, Address, Link, Netlink, Route};
use weave_linux::{clock, nft};
use weave_model::ClusterRange;
use weave_router::attach::{self, Host};

use super::{Plan, Point, State};
use crate::claim::claim_network;
use crate::preflight;

/// The table and the device that are a node's.
const TABLE: &str = "weave-attach";
const TUN: &str = "weave0";

/// The configuration that `weavectl cni install` writes.
const CONFLIST: &str = "10-weave.conflist";

/// 2026-01-01, before which this program was not written: a clock that is earlier was never set.
const WRITTEN: u64 = 1_767_225_600;

/// The smallest MTU of an uplink, in bytes: IPv6's least (RFC 8200 section 5).
const LEAST_MTU: u32 = 1280;

/// Devices of other container networks, by how their names begin, and how each is removed.
const OTHERS: [(&str, &str, &str); 6] = [
    (
        "weave",
        "Weave Net",
        "weave reset --force, then: ip link delete weave",
    ),
    ("vxlan-6784", "Weave Net", "weave reset --force"),
    (
        "flannel",
        "flannel",
        "remove flannel from this host, or choose ranges that do not overlap",
    ),
    (
        "cni0",
        "a bridge plugin",
        "remove its configuration from /etc/cni/net.d",
    ),
    (
        "cilium_",
        "Cilium",
        "remove Cilium from this host: it takes containers' packets first",
    ),
    ("cali", "Calico", "remove Calico from this host"),
];

/// Looks at all of it.
pub(super) async fn points(plan: &Plan) -> Vec<Point> {
    let mut points = node_and_port(plan);
    let checked = preflight::check_state_dir(&plan.state_dir);
    points.push(Point::of(
        "state",
        plan.state_dir.display().to_string(),
        checked,
    ));
    points.extend(network(plan).await.unwrap_or_else(|error| {
        vec![Point::failure(
            "network",
            error.to_string(),
            "look at the log of the kernel",
        )]
    }));
    points.extend(rules(plan.listen.port()));
    points.push(plugins(&plan.conf_dir));
    points.push(wall_clock());
    points
}

fn node_and_port(plan: &Plan) -> Vec<Point> {
    let claim = claim_network();
    let port = plan.listen.port();
    if let Err(obstacle) = claim {
        let fix = format!("see how it is with: weavectl status. {}", obstacle.fix);
        return vec![Point::warning("node", obstacle.cause, fix)];
    }
    let free = format!("UDP {port} is free");
    vec![
        Point::ok("node", "no other weaved in this network namespace"),
        Point::of("port", free, preflight::check_port(plan.listen)),
    ]
}

async fn network(plan: &Plan) -> Result<Vec<Point>, netlink::Error> {
    let netlink = Netlink::open()?;
    let links = netlink.links().await?;
    let addresses = netlink.addresses(None).await?;
    let routes = netlink.routes(Some(MAIN_TABLE)).await?;
    let range = range(plan).await;
    Ok(vec![
        range,
        devices(&links),
        uplink(&links, &addresses, &routes),
    ])
}

/// Whether the cluster's ranges are free here.
async fn range(plan: &Plan) -> Point {
    let nowhere = Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 48);
    let range = match ClusterRange::new(plan.range, plan.range6.unwrap_or(nowhere)) {
        Ok(range) => range,
        Err(error) => return Point::failure("range", error.to_string(), "choose another --range"),
    };
    let tun = TUN.parse().expect("a short word is an interface name");
    let checked = match Host::open(tun) {
        Ok(host) => host.check_overlap(&range).await,
        Err(error) => Err(error),
    };
    match checked {
        Ok(()) => Point::ok("range", format!("{} is free", plan.range)),
        Err(error @ attach::Error::Overlap { .. }) => {
            let fix = "remove that, or make the cluster with another range: weavectl init --range";
            Point::failure("range", error.to_string(), fix)
        }
        Err(error) => Point::failure("range", error.to_string(), "look at the log of the kernel"),
    }
}

/// Devices that have our names, or are another container network's.
fn devices(links: &[Link]) -> Point {
    let tun = links.iter().find(|link| link.name == TUN);
    if let Some(other) = tun.filter(|link| link.kind != "tun") {
        let found = format!(
            "the device {TUN} is of the kind \"{}\", not tun",
            other.kind
        );
        return Point::failure("devices", found, format!("ip link delete {TUN}"));
    }
    let foreign = links.iter().filter(|link| link.name != TUN);
    let known = foreign.filter_map(|link| {
        let (_, network, fix) = OTHERS.iter().find(|other| link.name.starts_with(other.0))?;
        Some((link.name.as_str(), *network, *fix))
    });
    if let Some((device, network, fix)) = known.into_iter().next() {
        let found =
            format!("another container network is here: {network}, with the device {device}");
        return Point::warning("devices", found, fix);
    }
    match tun {
        Some(_) => Point::ok(
            "devices",
            format!("{TUN} is left from an earlier node, which the next adopts"),
        ),
        None => Point::ok("devices", "no other container network"),
    }
}

/// What other hosts reach this one by, and what it carries.
fn uplink(links: &[Link], addresses: &[Address], routes: &[Route]) -> Point {
    let usable = |link: &&Link| {
        let ours = link.name == TUN || link.name.starts_with("wv");
        let mut its = addresses
            .iter()
            .filter(|address| address.link == link.index);
        link.up && !ours && its.any(|address| global(address.net.addr()))
    };
    let leads_out = |link: &&&Link| {
        let mut out = routes
            .iter()
            .filter(|route| route.kind == Kind::Unicast && route.to.prefix_len() == 0);
        out.any(|route| route.link == Some(link.index))
    };
    let usable: Vec<&Link> = links.iter().filter(usable).collect();
    let Some(link) = usable.iter().find(leads_out).or_else(|| usable.first()) else {
        let fix = "give a device of this host an address, and bring it up";
        return Point::failure(
            "uplink",
            "no device has an address that other hosts could reach",
            fix,
        );
    };
    let found = format!("{}, MTU {}", link.name, link.mtu);
    if link.mtu < LEAST_MTU {
        let fix = format!(
            "ip link set {} mtu 1500, or at least {LEAST_MTU}",
            link.name
        );
        return Point::failure("uplink", format!("{found} is less than {LEAST_MTU}"), fix);
    }
    if leads_out(&link) {
        return Point::ok("uplink", found);
    }
    Point::ok(
        "uplink",
        format!("{found}; no default route, so containers reach nothing outside"),
    )
}

/// Not loopback and not link-local.
fn global(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !(ip.is_loopback() || ip.is_link_local()),
        IpAddr::V6(ip) => !(ip.is_loopback() || ip.is_unicast_link_local()),
    }
}

/// Our table, and whether somebody else's rules drop what comes in or passes.
fn rules(port: u16) -> Vec<Point> {
    let looked = || -> Result<Vec<Point>, nft::Error> {
        let socket = nft::Socket::open()?;
        Ok(vec![
            own_table(&socket)?,
            incoming(&socket, port)?,
            forwarded(&socket)?,
        ])
    };
    looked().unwrap_or_else(|error| {
        vec![Point::failure(
            "rules",
            error.to_string(),
            "run as root, or: modprobe nf_tables",
        )]
    })
}

fn own_table(socket: &nft::Socket) -> Result<Point, nft::Error> {
    Ok(match socket.table(&nft::Table::inet(TABLE))? {
        None => Point::ok("rules", "no table of another network has our name"),
        Some(table) if table.comment.as_deref() == Some("weave") => Point::ok(
            "rules",
            format!("table inet {TABLE} is left from an earlier node, which the next adopts"),
        ),
        Some(_) => {
            let found = format!(
                "there is a table inet {TABLE} that is not Weave's; a node would replace it"
            );
            Point::failure("rules", found, format!("nft delete table inet {TABLE}"))
        }
    })
}

/// A chain at the input hook that drops what no rule accepts. Whether a rule accepts us is not for us to read.
fn incoming(socket: &nft::Socket, port: u16) -> Result<Point, nft::Error> {
    const LOCAL_IN: u32 = 1;
    const DROP: u32 = 0;
    for table in socket.tables()? {
        let family = [nft::Family::Inet, nft::Family::Ip, nft::Family::Ip6];
        let Some(family) = family
            .into_iter()
            .find(|family| *family as u8 == table.family)
        else {
            continue;
        };
        let chains = socket.chains(&nft::Table::new(family, &*table.name))?;
        let drops = |chain: &&nft::ChainInfo| {
            chain.hook.is_some_and(|hook| hook.0 == LOCAL_IN) && chain.policy == Some(DROP)
        };
        if let Some(chain) = chains.iter().find(drops) {
            let found = format!(
                "a firewall drops what it does not know (table {}, chain {})",
                table.name, chain.name
            );
            let fix = format!(
                "let UDP {port} in, such as: nft insert rule {} udp dport {port} accept",
                words(&table, chain)
            );
            return Ok(Point::warning("firewall", found, fix));
        }
    }
    Ok(Point::ok(
        "firewall",
        format!("nothing here drops UDP {port} by default"),
    ))
}

/// A chain at the forward hook that drops what no rule accepts, or firewalld, whose zones refuse what they do not know. In
/// the tables of iptables a node makes its own way through.
fn forwarded(socket: &nft::Socket) -> Result<Point, nft::Error> {
    const FORWARD: u32 = 2;
    const DROP: u32 = 0;
    for table in socket.tables()? {
        if table.name == "firewalld" {
            let found =
                "firewalld refuses what is forwarded between devices that its zones do not know";
            let fix = "firewall-cmd --permanent --zone=trusted --add-interface=weave0 --add-interface=wv+; firewall-cmd --reload";
            return Ok(Point::warning("forwarding", found, fix));
        }
        let family = [nft::Family::Inet, nft::Family::Ip, nft::Family::Ip6];
        let mut families = family.into_iter();
        let Some(family) = families.find(|family| *family as u8 == table.family) else {
            continue;
        };
        if table.name == "filter" && family != nft::Family::Inet {
            continue;
        }
        let chains = socket.chains(&nft::Table::new(family, &*table.name))?;
        let drops = |chain: &&nft::ChainInfo| {
            chain.hook.is_some_and(|hook| hook.0 == FORWARD) && chain.policy == Some(DROP)
        };
        if let Some(chain) = chains.iter().find(drops) {
            let found = format!(
                "a firewall drops what it forwards and does not know (table {}, chain {})",
                table.name, chain.name
            );
            let rule = words(&table, chain);
            let fix = format!(
                "let containers' packets through, such as: nft 'insert rule {rule} iifname {{ weave0, \"wv*\" }} accept'; \
                 nft 'insert rule {rule} oifname {{ weave0, \"wv*\" }} ct state established,related accept'"
            );
            return Ok(Point::warning("forwarding", found, fix));
        }
    }
    Ok(Point::ok(
        "forwarding",
        "no firewall here drops what it forwards by default",
    ))
}

fn words(table: &nft::TableInfo, chain: &nft::ChainInfo) -> String {
    let family = match table.family {
        2 => "ip",
        10 => "ip6",
        _ => "inet",
    };
    format!("{family} {} {}", table.name, chain.name)
}

/// A network configuration that runtimes take before ours.
fn plugins(folder: &Path) -> Point {
    let names = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let kinds = [".conflist", ".conf", ".json"];
    let first = names
        .filter(|name| kinds.iter().any(|kind| name.ends_with(kind)))
        .min();
    match first {
        Some(other) if *other < *CONFLIST => {
            let path = folder.join(other);
            let found = format!("container runtimes take {} before ours", path.display());
            let fix = format!(
                "move it away if their containers are to be on this network: mv {0} {0}.off",
                path.display()
            );
            Point::warning("plugins", found, fix)
        }
        _ => Point::ok(
            "plugins",
            format!("no other network comes first in {}", folder.display()),
        ),
    }
}

/// Tokens expire by the wall clock, and a node's runs are told apart by it.
fn wall_clock() -> Point {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    judge_clock(now, clock::is_kept().unwrap_or(false))
}

fn judge_clock(now: u64, kept: bool) -> Point {
    let fix = "set it, and run a time daemon, such as: apt install chrony";
    match (now >= WRITTEN, kept) {
        (false, _) => Point::failure(
            "clock",
            format!("the clock says {now} s after 1970, which is over"),
            fix,
        ),
        (true, false) => {
            let found = "the kernel knows of no time daemon: tokens expire by this clock";
            Point {
                state: State::Warning,
                ..Point::failure("clock", found, fix)
            }
        }
        (true, true) => Point::ok("clock", "kept by a time daemon"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: &str, mtu: u32) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind: kind.to_owned(),
            up: true,
            carrier: true,
            mtu,
            mac: None,
            alias: String::new(),
            gso_max_size: 65_536,
            gso_ipv4_max_size: None,
            peer_index: None,
        }
    }

    #[test]
    fn the_uplink_is_the_way_out_and_must_carry_enough() {
        let links = [
            link(2, "eth0", "", 9000),
            link(3, "eth1", "", 1500),
            link(4, "weave0", "tun", 1500),
        ];
        let address = |link, net: &str| Address::new(link, net.parse().unwrap());
        let addresses = [
            address(2, "10.0.0.2/24"),
            address(3, "192.0.2.3/24"),
            address(4, "10.32.0.1/32"),
        ];
        let out = [Route::new("0.0.0.0/0".parse().unwrap(), 3)];
        assert_eq!(
            uplink(&links, &addresses, &out),
            Point::ok("uplink", "eth1, MTU 1500")
        );
        let inner = uplink(&links, &addresses, &[]);
        assert!(
            inner.found.starts_with("eth0, MTU 9000; no default route"),
            "{inner:?}"
        );
        assert_eq!(uplink(&links, &addresses[2..], &[]).state, State::Failure);
        let small = uplink(&[link(2, "eth0", "", 1279)], &addresses, &[]);
        assert_eq!((small.state, small.fix.is_some()), (State::Failure, true));
    }

    #[test]
    fn other_networks_are_recognised_and_our_own_device_is_not_one() {
        let state =
            |name, kind| devices(&[link(2, "eth0", "", 1500), link(3, name, kind, 1500)]).state;
        assert_eq!(state("weave0", "tun"), State::Ok);
        assert_eq!(state("weave0", "dummy"), State::Failure);
        for (name, kind) in [
            ("weave", "bridge"),
            ("flannel.1", "vxlan"),
            ("cilium_host", "veth"),
            ("cali12ab", "veth"),
        ] {
            assert_eq!(state(name, kind), State::Warning, "{name}");
        }
        assert_eq!(state("docker0", "bridge"), State::Ok);
    }

    #[test]
    fn a_clock_that_was_never_set_is_a_failure_and_one_that_nobody_keeps_a_warning() {
        assert_eq!(judge_clock(0, true).state, State::Failure);
        assert_eq!(judge_clock(WRITTEN, false).state, State::Warning);
        assert_eq!(judge_clock(WRITTEN, true).state, State::Ok);
    }

    #[test]
    fn a_configuration_that_comes_first_is_named() {
        let folder = std::env::temp_dir().join(format!("weave-check-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let put = |name: &str| fs::write(folder.join(name), "{}").unwrap();
        put("10-weave.conflist");
        put("20-other.conflist");
        put("00-notes.txt");
        assert_eq!(plugins(&folder).state, State::Ok);
        put("10-calico.conflist");
        let found = plugins(&folder);
        assert!(found.found.contains("10-calico.conflist"), "{found:?}");
        assert_eq!(found.state, State::Warning);
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(plugins(&folder).state, State::Ok);
    }
}
