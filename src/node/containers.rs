//! From requests to what is asked of the host, and back from what the host did to the book and the answer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt as _;

use weave_linux::netns::{self, BadNetnsRef, Netns, NetnsRef};
use weave_model::api::{AttachRequest, Attachment, Code, Refusal};
use weave_model::{AddressRange, ClusterRange, ContainerName, IfName, Mac};
use weave_router::attach::{self, AttachSpec, Attached, DefaultRoute};

use super::book::{Book, Entry, Place};
use super::wall_seconds;
use crate::config::MTU_RANGE;

/// The fix for every wrong namespace.
const NETNS_FIX: &str = "give a path, a name that ip netns lists, or the id of a process in it";

/// The gateway of every container for IPv6.
pub(super) const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The identity of a namespace that was not there yet when its container was attached. The kernel gives no inode 0.
pub(super) const UNKNOWN: (u64, u64) = (0, 0);

/// By which name the allocator knows an interface of a container. No container's name holds a slash.
pub(super) fn lease_id(name: &ContainerName, ifname: &IfName) -> String {
    format!("{name}/{ifname}")
}

/// Opens the namespace that a request names.
pub(super) fn open_netns(text: &str) -> Result<Netns, Refusal> {
    let reference: NetnsRef = text.parse().map_err(|error: BadNetnsRef| {
        Refusal::new(
            Code::Invalid,
            format!("\"{text}\" will not do: {error}"),
            NETNS_FIX,
        )
    })?;
    Netns::open(&reference).map_err(|error| {
        let code = match error {
            netns::Error::NotFound(_) => Code::NotFound,
            netns::Error::NotNetns(_) => Code::Invalid,
            _ => Code::Failed,
        };
        Refusal::new(code, error.to_string(), NETNS_FIX)
    })
}

/// The device and inode of a namespace.
pub(super) fn netns_id(netns: &Netns) -> (u64, u64) {
    (netns.id().device, netns.id().inode)
}

/// Whether an entry's namespace is still the one that was attached, or yet to come.
pub(super) fn is_alive(entry: &Entry) -> bool {
    if entry.netns_id == UNKNOWN {
        return true;
    }
    std::fs::metadata(&entry.attachment.netns)
        .is_ok_and(|found| (found.dev(), found.ino()) == entry.netns_id)
}

/// Whether an entry has this address.
fn has_address(entry: &Entry, ip: IpAddr) -> bool {
    let Attachment { ip: v4, ip6, .. } = &entry.attachment;
    ip == IpAddr::from(v4.addr()) || ip6.is_some_and(|v6| ip == IpAddr::from(v6.addr()))
}

/// What a request to attach comes down to.
pub(super) enum Plan {
    /// It was done before.
    Done(Box<Entry>),
    /// A container that is gone had the name: its pairs are to be removed first.
    Replace(Vec<Entry>),
    /// There is nothing in the way.
    Make,
}

/// Checks a request against the book and its network's range.
pub(super) fn plan(
    book: &Book,
    request: &AttachRequest,
    range: &ClusterRange,
    netns_id: (u64, u64),
) -> Result<Plan, Refusal> {
    check_ranges(range, request)?;
    check_mtu(request)?;
    match book.place(&request.name, &request.ifname, netns_id) {
        // The kernel gives the number of a namespace that is gone to a new one.
        Place::Free => match book
            .attached_to(&request.network, netns_id)
            .find(|entry| is_alive(entry))
        {
            None => Ok(Plan::Make),
            Some(Entry {
                attachment: other, ..
            }) => {
                let cause = format!(
                    "that container is attached to the network {} already: as {}, with the interface {}",
                    request.network, other.name, other.ifname
                );
                let fix = format!(
                    "use that interface, or detach it first: weavectl detach {}",
                    other.name
                );
                Err(Refusal::new(Code::Conflict, cause, fix))
            }
        },
        Place::Served(entry) => match difference(entry, request) {
            None => Ok(Plan::Done(Box::new(entry.clone()))),
            Some(difference) => {
                let cause = format!("{} is attached already, {difference}", request.name);
                let fix = format!(
                    "ask for what it has, or detach it first: weavectl detach {}",
                    request.name
                );
                Err(Refusal::new(Code::Conflict, cause, fix))
            }
        },
        Place::NameTaken(entry) if is_alive(entry) => {
            let cause = format!(
                "the name {} is taken by the container in {}",
                request.name, entry.attachment.netns
            );
            let fix = format!(
                "choose another --name, or detach that one: weavectl detach {}",
                request.name
            );
            Err(Refusal::new(Code::Conflict, cause, fix))
        }
        Place::NameTaken(_) => Ok(Plan::Replace(
            book.interfaces(&request.name).cloned().collect(),
        )),
    }
}

/// What a request wants other than an attachment has it, if anything.
fn difference(entry: &Entry, request: &AttachRequest) -> Option<String> {
    let Attachment {
        ip,
        mac,
        mtu,
        aliases,
        publish,
        bandwidth,
        owner,
        ..
    } = &entry.attachment;
    let mut ips = wanted_ips(request);
    if let Some(want) = ips.find(|ip| !has_address(entry, *ip)) {
        return Some(format!("with {}, not {want}", ip.addr()));
    }
    if let Some(want) = request.mac.filter(|want| want.to_string() != *mac) {
        return Some(format!("with the hardware address {mac}, not {want}"));
    }
    if let Some(want) = request.mtu.filter(|want| u32::from(*want) != *mtu) {
        return Some(format!("with an MTU of {mtu}, not {want}"));
    }
    if !is_allowed(request, ip.addr()) {
        return Some(format!(
            "with {}, which is in none of the ranges",
            ip.addr()
        ));
    }
    if request.aliases != *aliases {
        return Some("with other aliases".to_owned());
    }
    if request.publish != *publish {
        return Some("with other published ports".to_owned());
    }
    if request.bandwidth != *bandwidth {
        return Some("with another bandwidth".to_owned());
    }
    let other = request.owner != *owner;
    other.then(|| match owner {
        Some(owner) => format!("by a CNI runtime, to its network {}", owner.network),
        None => "by hand".to_owned(),
    })
}

/// Whether a request asks for no other address than an attachment has.
pub(super) fn suits(entry: &Entry, request: &AttachRequest) -> bool {
    let ip = entry.attachment.ip.addr();
    wanted_ips(request).all(|ip| has_address(entry, ip)) && is_allowed(request, ip)
}

/// Whether the ranges of a request have an address; a request without any does not mind.
fn is_allowed(request: &AttachRequest, ip: Ipv4Addr) -> bool {
    let ranges = &request.ranges;
    ranges.is_empty() || ranges.iter().any(|range| range.allows(ip))
}

/// The runs of offsets that a request leaves to choose from, by their first and last; none where it leaves all.
pub(super) fn runs(range: &ClusterRange, request: &AttachRequest) -> Vec<(u32, u32)> {
    let runs = request.ranges.iter().flat_map(AddressRange::runs);
    let offsets = |(first, last)| Some((range.offset_v4(first)?, range.offset_v4(last)?));
    runs.filter_map(offsets).collect()
}

/// Whether the ranges of a request lie in the network, and have what else it asks for.
fn check_ranges(range: &ClusterRange, request: &AttachRequest) -> Result<(), Refusal> {
    let invalid = |cause, fix: &str| Err(Refusal::new(Code::Invalid, cause, fix));
    let (network, whole, gateway) = (&request.network, range.v4(), range.gateway());
    for one in &request.ranges {
        let subnet = one.subnet();
        if !whole.contains(&subnet) {
            let cause =
                format!("the range {subnet} is not in the network {network}, which has {whole}");
            let fix =
                "give ranges in that one, or name the network that has them: weavectl network list";
            return invalid(cause, fix);
        }
        if let Some(other) = one.gateway().filter(|other| *other != gateway) {
            let cause = format!(
                "{other} cannot be the gateway of {subnet}: the network {network} has {gateway}"
            );
            return invalid(cause, "leave the range's gateway out");
        }
    }
    let offset = wanted_offset(range, request)?;
    match offset.map(|offset| range.v4_at(offset)) {
        Some(ip) if !is_allowed(request, ip) => {
            let cause = format!("{ip} is in none of the ranges that are asked for");
            invalid(cause, "ask for an address in them, or for the ranges alone")
        }
        _ => Ok(()),
    }
}

/// All addresses that a request asks for.
fn wanted_ips(request: &AttachRequest) -> impl Iterator<Item = IpAddr> {
    request
        .ip
        .into_iter()
        .chain(request.more_ips.iter().copied())
}

/// The offset of the addresses that a request asks for, if it does.
pub(super) fn wanted_offset(
    range: &ClusterRange,
    request: &AttachRequest,
) -> Result<Option<u32>, Refusal> {
    let mut found: Option<(IpAddr, u32)> = None;
    for ip in wanted_ips(request) {
        let offset = offset_in(range, ip)?;
        let (first, known) = *found.get_or_insert((ip, offset));
        if known != offset {
            let (v4, v6) = (range.v4_at(known), range.v6_at(known));
            let cause = format!("a container cannot have both {first} and {ip}");
            let fix = format!("ask for one address; {v4} and {v6} go together");
            return Err(Refusal::new(Code::Invalid, cause, fix));
        }
    }
    Ok(found.map(|(_, offset)| offset))
}

fn check_mtu(request: &AttachRequest) -> Result<(), Refusal> {
    match request.mtu.filter(|mtu| !MTU_RANGE.contains(mtu)) {
        None => Ok(()),
        Some(mtu) => Err(Refusal::new(
            Code::Invalid,
            format!("an MTU of {mtu} is out of range"),
            "give an MTU between 1280 and 60000",
        )),
    }
}

/// The offset of an address that was asked for.
pub(super) fn offset_in(range: &ClusterRange, ip: IpAddr) -> Result<u32, Refusal> {
    range.offset(ip).ok_or_else(|| {
        let (v4, v6) = (range.v4(), range.v6());
        let cause = format!("{ip} is not an address for containers: the network has {v4} and {v6}");
        Refusal::new(
            Code::Invalid,
            cause,
            "give --ip an address in that range, or leave it out",
        )
    })
}

/// A name for the host's end that no other attachment has: `wv` and 10 hex digits of a hash of the container.
pub(super) fn host_ifname(book: &Book, name: &ContainerName, ifname: &IfName) -> IfName {
    let taken = |candidate: &IfName| {
        book.entries()
            .any(|entry| entry.attachment.host_ifname == *candidate)
    };
    let candidates = (0u32..).map(|attempt| {
        let digits = fnv1a(format!("{name}/{ifname}/{attempt}").as_bytes()) & 0xff_ffff_ffff;
        format!("wv{digits:010x}")
            .parse()
            .expect("twelve letters and digits are an interface name")
    });
    let mut free = candidates.filter(|candidate| !taken(candidate));
    free.next().expect("fewer containers than names")
}

/// FNV-1a, 64 bits (RFC 9923): names that stay the same over restarts and versions.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// What is asked of the host.
pub(super) fn to_make(
    book: &Book,
    request: &AttachRequest,
    range: ClusterRange,
    offset: u32,
    mtu: u16,
) -> attach::Attachment {
    attach::Attachment {
        outer: kernel_name(&host_ifname(book, &request.name, &request.ifname)),
        range,
        offset,
        ipv6: true,
        also: Vec::new(),
        mtu: request.mtu.unwrap_or(mtu).into(),
        published: !request.publish.is_empty(),
        bandwidth: request.bandwidth,
        tag: format!("{} {}", request.name, request.ifname),
    }
}

/// The book's entry for what was attached.
pub(super) fn entry(request: &AttachRequest, spec: &AttachSpec, attached: &Attached) -> Entry {
    let range = &spec.attachment.range;
    let attachment = Attachment {
        name: request.name.clone(),
        netns: spec.netns.origin().path().display().to_string(),
        ifname: request.ifname.clone(),
        mac: mac_text(attached.mac),
        mtu: spec.attachment.mtu,
        host_ifname: model_name(&spec.attachment.outer),
        host_mac: mac_text(attached.outer_mac),
        network: request.network.clone(),
        ip: ipnet::Ipv4Net::new_assert(spec.attachment.v4(), range.v4().prefix_len()),
        gateway: range.gateway(),
        ip6: attached.v6.ok().map(Into::into),
        also: Vec::new(),
        gateway6: GATEWAY6,
        default_route: attached.default_route,
        labels: request.labels.clone(),
        aliases: request.aliases.clone(),
        publish: request.publish.clone(),
        bandwidth: request.bandwidth,
        owner: request.owner.clone(),
        attached_at: wall_seconds(),
        alive: true,
    };
    Entry {
        attachment,
        netns_id: netns_id(&spec.netns),
    }
}

/// What the host needs to know to look after an entry of a cluster with this range.
pub(super) fn to_repair(entry: &Entry, range: ClusterRange) -> Option<attach::Attachment> {
    let Attachment {
        name,
        ifname,
        host_ifname,
        ip,
        ip6,
        also,
        mtu,
        publish,
        bandwidth,
        ..
    } = &entry.attachment;
    let range = range.part_of(ip.trunc());
    Some(attach::Attachment {
        outer: kernel_name(host_ifname),
        range,
        offset: range.offset_v4(ip.addr())?,
        ipv6: ip6.is_some(),
        also: also.iter().map(|floating| floating.ip).collect(),
        mtu: *mtu,
        published: !publish.is_empty(),
        bandwidth: *bandwidth,
        tag: format!("{name} {ifname}"),
    })
}

/// What an entry should still be, inside the container too.
pub(super) fn to_check(entry: &Entry, range: ClusterRange, netns: Netns) -> Option<AttachSpec> {
    let attachment = &entry.attachment;
    let mac = attachment.mac.parse::<Mac>().ok();
    Some(AttachSpec {
        attachment: to_repair(entry, range)?,
        netns: netns.into(),
        ifname: kernel_name(&attachment.ifname),
        mac: mac.map(Mac::bytes),
        default_route: if attachment.default_route {
            DefaultRoute::IfNone
        } else {
            DefaultRoute::Never
        },
        uplink_mtu: None,
    })
}

/// The refusal that a failed attach is.
pub(super) fn refused(error: &attach::Error) -> Refusal {
    use attach::Error;
    let (code, fix) = match error {
        Error::IfNameTaken { .. } => (Code::Conflict, "choose another interface with --ifname"),
        Error::OuterNameTaken(_) => (Code::Conflict, "remove that device, it is not Weave's"),
        Error::AddressTaken { .. } => (
            Code::Conflict,
            "choose another address with --ip, or leave it out",
        ),
        Error::HostNamespace(_) => (
            Code::Invalid,
            "use weavectl expose to give the host an address",
        ),
        Error::Overlap { .. } => (Code::Conflict, "remove that route or address from the host"),
        Error::NoTun(_) => (Code::Failed, "restart weaved"),
        Error::NotOurs(_) => (
            Code::Conflict,
            "remove that device by hand if it is not needed",
        ),
        Error::NoLimits(_) => (
            Code::Failed,
            "load the kernel's modules sch_tbf, sch_ingress, cls_u32, act_mirred and ifb, or ask for no bandwidth",
        ),
        Error::Netns(_) => (Code::NotFound, NETNS_FIX),
        Error::Setting(_) => (Code::Failed, "mount /proc/sys writable for weaved"),
        Error::Netlink(_) => (Code::Failed, "look at the log of weaved and of the kernel"),
        Error::HalfMade { .. } => (Code::Failed, "restart weaved, which removes what is left"),
    };
    Refusal::new(code, error.to_string(), fix)
}

/// An interface's name as the kernel's door takes it; both have the kernel's own rule.
pub(super) fn kernel_name(name: &IfName) -> weave_linux::netlink::IfName {
    name.as_str()
        .parse()
        .expect("both types follow the kernel's rule for names")
}

pub(super) fn model_name(name: &weave_linux::netlink::IfName) -> IfName {
    name.as_str()
        .parse()
        .expect("both types follow the kernel's rule for names")
}

pub(super) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::book::tests::entry as booked;

    fn range() -> ClusterRange {
        ClusterRange::new(
            "10.32.0.0/12".parse().unwrap(),
            "fd00::/48".parse().unwrap(),
        )
        .unwrap()
    }

    fn request(name: &str, ip: Option<&str>) -> AttachRequest {
        AttachRequest {
            netns: "/run/netns/a".to_owned(),
            name: name.parse().unwrap(),
            ip: ip.map(|ip| ip.parse().unwrap()),
            ifname: IfName::eth0(),
            network: weave_model::NetworkName::default_network(),
            more_ips: Vec::new(),
            also: Vec::new(),
            mac: None,
            mtu: None,
            ranges: Vec::new(),
            labels: std::collections::BTreeMap::new(),
            aliases: std::collections::BTreeSet::new(),
            publish: Vec::new(),
            bandwidth: weave_model::Bandwidth::default(),
            owner: None,
        }
    }

    /// An entry whose namespace is that of this very test.
    fn alive(name: &str) -> Entry {
        let mut entry = booked(name, "eth0", 0);
        entry.attachment.netns = "/proc/thread-self/ns/net".to_owned();
        entry.netns_id = netns_id(&Netns::current().unwrap());
        entry
    }

    #[test]
    fn the_same_request_again_is_done() {
        let mut book = Book::default();
        let there = alive("a");
        book.insert(there.clone());
        let done = |ip| plan(&book, &request("a", ip), &range(), there.netns_id);
        for same in [None, Some("10.32.0.2"), Some("fd00::2")] {
            assert!(
                matches!(done(same), Ok(Plan::Done(answer)) if *answer == there),
                "{same:?}"
            );
        }
        assert_eq!(
            done(Some("10.32.0.3")).err().map(|refusal| refusal.code),
            Some(Code::Conflict)
        );
    }

    #[test]
    fn the_same_container_with_other_wishes_is_refused() {
        let mut book = Book::default();
        let there = alive("a");
        book.insert(there.clone());
        let wishes: [fn(&mut AttachRequest); 4] = [
            |request| request.mac = "02:00:00:00:00:09".parse().ok(),
            |request| request.mtu = Some(1400),
            |request| request.more_ips = vec!["10.32.0.3".parse().unwrap()],
            |request| {
                let [network, container] = ["net", "a"].map(|text| text.parse().unwrap());
                request.owner = Some(weave_model::api::CniOwner { network, container });
            },
        ];
        for wish in wishes {
            let mut request = request("a", None);
            wish(&mut request);
            let refusal = plan(&book, &request, &range(), there.netns_id)
                .err()
                .unwrap();
            assert_eq!(refusal.code, Code::Conflict, "{refusal}");
        }
        let mut same = request("a", Some("10.32.0.2"));
        same.more_ips = vec!["fd00::2".parse().unwrap()];
        (same.mac, same.mtu) = ("02:00:0a:20:00:02".parse().ok(), Some(1500));
        assert!(matches!(
            plan(&book, &same, &range(), there.netns_id),
            Ok(Plan::Done(_))
        ));
    }

    #[test]
    fn addresses_of_two_places_and_strange_mtus_are_refused() {
        let mut both = request("a", Some("10.32.0.9"));
        both.more_ips = vec!["fd00::9".parse().unwrap()];
        assert_eq!(wanted_offset(&range(), &both).unwrap(), Some(9));
        both.more_ips = vec!["fd00::8".parse().unwrap()];
        let refusal = wanted_offset(&range(), &both).unwrap_err();
        assert!(refusal.fix.contains("fd00::9"), "{refusal:?}");
        let small = AttachRequest {
            mtu: Some(576),
            ..request("a", None)
        };
        let refusal = plan(&Book::default(), &small, &range(), (9, 9))
            .err()
            .unwrap();
        assert_eq!(refusal.code, Code::Invalid, "{refusal}");
    }

    #[test]
    fn a_name_in_use_is_refused_and_that_of_a_container_that_is_gone_is_not() {
        let mut book = Book::default();
        book.insert(alive("a"));
        book.insert(booked("b", "eth0", 1));
        book.insert(booked("b", "net1", 1));
        let plan = |name| plan(&book, &request(name, None), &range(), (9, 9));
        let refusal = plan("a").err().unwrap();
        assert!(refusal.message.contains("the name a is taken"), "{refusal}");
        assert!(matches!(plan("b"), Ok(Plan::Replace(former)) if former.len() == 2));
        assert!(matches!(plan("c"), Ok(Plan::Make)));
    }

    #[test]
    fn a_container_has_one_interface_in_a_network() {
        let mut book = Book::default();
        let there = alive("a");
        book.insert(there.clone());
        let again = AttachRequest {
            ifname: "net1".parse().unwrap(),
            ..request("a", None)
        };
        for second in [again, request("b", None)] {
            let refusal = plan(&book, &second, &range(), there.netns_id)
                .err()
                .unwrap();
            assert!(
                refusal.message.contains("as a, with the interface eth0"),
                "{refusal}"
            );
        }
    }

    #[test]
    fn strange_addresses_are_refused() {
        let plan = |request: &AttachRequest| plan(&Book::default(), request, &range(), (9, 9));
        let refusal = plan(&request("a", Some("192.0.2.1"))).err().unwrap();
        assert!(
            refusal.message.contains("10.32.0.0/12") && refusal.fix.contains("--ip"),
            "{refusal:?}"
        );
    }

    #[test]
    fn ranges_lie_in_the_network_and_have_what_else_is_asked_for() {
        let book = Book::default();
        let within = |ip, ranges: serde_json::Value| AttachRequest {
            ranges: serde_json::from_value(ranges).unwrap(),
            ..request("a", ip)
        };
        let of = |subnet: &str| serde_json::json!([{"subnet": subnet}]);
        let planned = |request: &AttachRequest| plan(&book, request, &range(), (9, 9));
        let good = within(Some("fd00::4:9"), of("10.36.0.0/24"));
        assert!(matches!(planned(&good), Ok(Plan::Make)));
        assert_eq!(runs(&range(), &good), [(0x4_0002, 0x4_00fe)]);
        let gateway = serde_json::json!([{"subnet": "10.36.0.0/24", "gateway": "10.36.0.1"}]);
        for (bad, said) in [
            (
                within(None, of("10.0.0.0/8")),
                "the range 10.0.0.0/8 is not in the network",
            ),
            (
                within(None, of("10.48.0.0/24")),
                "not in the network default, which has 10.32.0.0/12",
            ),
            (within(None, gateway), "the network default has 10.32.0.1"),
            (
                within(Some("10.36.1.9"), of("10.36.0.0/24")),
                "10.36.1.9 is in none of the ranges",
            ),
        ] {
            let refusal = planned(&bad).err().unwrap();
            assert!(refusal.message.contains(said), "{refusal}");
        }
    }

    #[test]
    fn another_range_or_other_aliases_are_other_wishes() {
        let mut book = Book::default();
        let there = alive("a");
        book.insert(there.clone());
        let planned = |change: fn(&mut AttachRequest)| {
            let mut request = request("a", None);
            change(&mut request);
            (
                plan(&book, &request, &range(), there.netns_id),
                suits(&there, &request),
            )
        };
        assert!(matches!(
            planned(|request| request.ranges = ranges("10.32.0.0/24")),
            (Ok(Plan::Done(_)), true)
        ));
        let (other, suited) = planned(|request| request.ranges = ranges("10.36.0.0/24"));
        let said = other.err().unwrap().message;
        assert!(
            said.contains("10.32.0.2, which is in none of the ranges") && !suited,
            "{said}"
        );
        let (other, suited) = planned(|request| request.aliases = ["web".parse().unwrap()].into());
        let said = other.err().unwrap().message;
        assert!(said.contains("with other aliases") && suited, "{said}");
    }

    fn ranges(subnet: &str) -> Vec<AddressRange> {
        serde_json::from_value(serde_json::json!([{"subnet": subnet}])).unwrap()
    }

    #[test]
    fn device_names_differ_and_stay() {
        let mut book = Book::default();
        let [a, b] = ["a", "b"].map(|name| name.parse::<ContainerName>().unwrap());
        let first = host_ifname(&book, &a, &IfName::eth0());
        assert_eq!(host_ifname(&book, &a, &IfName::eth0()), first);
        assert_ne!(host_ifname(&book, &b, &IfName::eth0()), first);
        assert!(
            first.as_str().len() == 12 && first.as_str().starts_with("wv"),
            "{first}"
        );
        let mut taken = booked("x", "eth0", 1);
        taken.attachment.host_ifname = first.clone();
        book.insert(taken);
        assert_ne!(host_ifname(&book, &a, &IfName::eth0()), first);
    }
}
