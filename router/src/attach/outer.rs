//! The outer end of a container's veth pair, as the host needs it. Making, adopting and repairing it are one thing.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use weave_linux::netlink::link::LinkChange;
use weave_linux::netlink::{Address, Link, Netlink, Route};
use weave_linux::netns::Netns;

use super::changes::{Changes, device_settings};
use super::spec::Attachment;
use super::{Error, JOINED_MAX_SIZE, ROUTE_PROTOCOL, TAG};

/// The gateway of IPv6, the same on every outer end.
pub(super) const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Whether a device is the outer end of a container's pair.
pub(super) fn is_outer_end(link: &Link) -> bool {
    link.kind == "veth" && is_outer_name(&link.name)
}

/// Whether a name is one of an outer end: `wv` and 10 hex digits.
pub(super) fn is_outer_name(name: &str) -> bool {
    let digits = name.strip_prefix("wv").unwrap_or_default();
    digits.len() == 10 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
}

/// How many bytes of an attachment's tag are shown.
const TAG_LIMIT: usize = 200;

/// Tags the device, so that whoever sees it knows whose it is.
pub(super) async fn tag(
    netlink: &Netlink,
    link: &Link,
    attachment: &Attachment,
    changes: &mut Changes,
) -> Result<(), Error> {
    // A kernel without the one attribute has no use for more than the 65,536 that all know, and may refuse it.
    let joined = if link.gso_ipv4_max_size.is_some() {
        JOINED_MAX_SIZE
    } else {
        1 << 16
    };
    let wanted = LinkChange {
        mtu: Some(attachment.mtu),
        gso_max_size: Some(joined),
        alias: Some(alias(&attachment.tag)),
        ..LinkChange::default()
    };
    changes.link(netlink, link, wanted).await
}

/// What stands in the device's alias, which the kernel limits to 255 bytes (`IFALIASZ`).
fn alias(tag: &str) -> String {
    let ends = tag
        .char_indices()
        .map(|(at, letter)| at + letter.len_utf8());
    let end = ends.take_while(|&end| end <= TAG_LIMIT).last().unwrap_or(0);
    format!("{TAG}: {}", &tag[..end])
}

/// Makes the device forward for a container, and believe nothing that the container says about routes.
///
/// `rp_filter` stays as it is: packets of the container come by the device that its address is routed to.
pub(super) fn settings(
    netns: &Netns,
    link: &Link,
    attachment: &Attachment,
    changes: &mut Changes,
) -> Result<(), Error> {
    let name = &link.name;
    let mut settings = device_settings(name, attachment.ipv6);
    settings.extend([
        (format!("net/ipv4/conf/{name}/proxy_arp"), "1"),
        (format!("net/ipv4/neigh/{name}/proxy_delay"), "0"),
    ]);
    if attachment.published {
        settings.push((format!("net/ipv4/conf/{name}/route_localnet"), "1"));
    }
    changes.settings(netns, &settings)
}

/// Gives the device the gateway's addresses.
pub(super) async fn addresses(
    netlink: &Netlink,
    link: &Link,
    attachment: &Attachment,
    changes: &mut Changes,
) -> Result<(), Error> {
    let gateway = IpNet::from(IpAddr::V4(attachment.range.gateway()));
    changes
        .address(netlink, &Address::new(link.index, gateway))
        .await?;
    if attachment.ipv6 {
        let gateway = IpNet::V6(Ipv6Net::new_assert(GATEWAY_V6, 64));
        changes
            .address(netlink, &Address::new(link.index, gateway))
            .await?;
    }
    Ok(())
}

/// Routes the container's addresses to the device.
pub(super) async fn routes(
    netlink: &Netlink,
    link: &Link,
    attachment: &Attachment,
    changes: &mut Changes,
) -> Result<(), Error> {
    for address in attachment.addresses() {
        let route = Route::new(IpNet::from(address), link.index).protocol(ROUTE_PROTOCOL);
        changes.route(netlink, &route).await?;
    }
    Ok(())
}
