//! How much a container's interface may carry: the limits, on the host's side, where the container cannot lift them.
//!
//! What the container receives leaves the outer end of its pair, which gets a token bucket. What it sends is received
//! there, so it goes by way of a device of its own, `wb` and the digits of the outer end, and through the bucket of
//! that ([`weave_linux::netlink::Bucket`]). Packets come back from it as received by the outer end: rules see no
//! difference. That device does not go with the pair; [`Host::detach`] removes both, this one first, so that where
//! one is left the other is too.

use std::collections::BTreeMap;

use weave_linux::netlink::link::LinkChange;
use weave_linux::netlink::{self, Bucket, IfName, Link, Netlink};
use weave_linux::netns::Netns;
use weave_model::Rate;

use super::changes::{Changes, Setting};
use super::spec::Attachment;
use super::{Error, Host, TAG, outer};

/// How long a packet may wait, as a part of a second.
const WAIT: u64 = 20;

/// How many frames of full size may wait, however slow it is.
const FRAMES: u64 = 20;

/// The length of an Ethernet header with a VLAN tag, in bytes.
const HEADER: u32 = 18;

/// The name of the device that limits what the container behind an outer end sends.
fn name_of(outer: &str) -> Option<IfName> {
    let digits = outer.strip_prefix("wv")?;
    format!("wb{digits}").parse().ok()
}

/// The outer end that a device limits, if it is one that does.
fn outer_of(link: &Link) -> Option<IfName> {
    let digits = link.name.strip_prefix("wb")?;
    let outer = format!("wv{digits}");
    let ours = link.kind == "ifb" && outer::is_outer_name(&outer);
    ours.then(|| outer.parse().ok()).flatten()
}

/// The bucket that holds a device of this MTU to a rate.
fn bucket(rate: &Rate, mtu: u32) -> Bucket {
    let bytes = (rate.rate.get() / 8).max(1);
    let frame = u64::from(mtu.saturating_add(HEADER));
    let clamped = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
    Bucket {
        rate: bytes,
        burst: clamped((rate.burst / 8).max(frame)),
        limit: clamped((bytes / WAIT).max(FRAMES * frame)),
    }
}

/// Limits what is to be limited, where it is not yet. `lasting` gets the device that does not go with the pair.
pub(super) async fn ensure(
    netlink: &Netlink,
    netns: &Netns,
    outer: &Link,
    attachment: &Attachment,
    changes: &mut Changes,
    lasting: &mut Changes,
) -> Result<(), Error> {
    if let Some(rate) = &attachment.bandwidth.ingress {
        let wanted = bucket(rate, attachment.mtu);
        changes
            .bucket(netlink, outer, &wanted)
            .await
            .map_err(unable)?;
    }
    let Some(rate) = &attachment.bandwidth.egress else {
        return Ok(());
    };
    let by = device(netlink, netns, outer, lasting).await?;
    changes.link(netlink, &by, LinkChange::up()).await?;
    let wanted = bucket(rate, attachment.mtu);
    changes
        .bucket(netlink, &by, &wanted)
        .await
        .map_err(unable)?;
    changes.redirect(netlink, outer, &by).await.map_err(unable)
}

/// The device that an outer end's packets go by, made where it is missing. Nobody talks to it, so it gets no address.
async fn device(
    netlink: &Netlink,
    netns: &Netns,
    outer: &Link,
    lasting: &mut Changes,
) -> Result<Link, Error> {
    let missing = || netlink::Error::NotFound(format!("find what limits {}", outer.name));
    let name = name_of(&outer.name).ok_or_else(missing)?;
    if let Some(found) = netlink.link(&name).await? {
        return match outer_of(&found) {
            Some(_) => Ok(found),
            None => Err(Error::NotOurs(name)),
        };
    }
    netlink
        .add_ifb(&name)
        .await
        .map_err(|error| unable(error.into()))?;
    lasting.made_link(&name);
    let made = netlink.link(&name).await?.ok_or_else(missing)?;
    let quiet: Setting = (format!("net/ipv6/conf/{name}/disable_ipv6"), "1");
    if weave_linux::netns::run_in(netns, || weave_linux::sysctl::read(&quiet.0))?.is_ok() {
        lasting.settings(netns, &[quiet])?;
    }
    let alias = LinkChange {
        alias: Some(format!("{TAG}: limits {}", outer.name)),
        ..LinkChange::default()
    };
    lasting.link(netlink, &made, alias).await?;
    Ok(made)
}

/// What is wrong with the limits of an attachment, one line each.
pub(super) async fn faults(
    netlink: &Netlink,
    outer: &Link,
    attachment: &Attachment,
) -> Result<Vec<String>, Error> {
    let mut wrong = Vec::new();
    let agrees = async |link: &Link, rate| -> Result<bool, Error> {
        let found = netlink.bucket(link.index).await?;
        Ok(found.is_some_and(|found| found.agrees(&bucket(rate, attachment.mtu))))
    };
    if let Some(rate) = &attachment.bandwidth.ingress
        && !agrees(outer, rate).await?
    {
        let name = &outer.name;
        wrong.push(format!("the host's device {name} is not limited to {rate}"));
    }
    if let Some(rate) = &attachment.bandwidth.egress {
        let by = match name_of(&outer.name) {
            Some(name) => netlink.link(&name).await?,
            None => None,
        };
        let limited = match &by {
            Some(by) => {
                by.up
                    && netlink.redirected(outer.index).await? == Some(by.index)
                    && agrees(by, rate).await?
            }
            None => false,
        };
        if !limited {
            wrong.push(format!("what the container sends is not limited to {rate}"));
        }
    }
    Ok(wrong)
}

/// Whether the device that limits what a container sends is missing from a list of all, though there should be one.
pub(super) fn is_missing(attachment: &Attachment, links: &BTreeMap<String, Link>) -> bool {
    let by = name_of(attachment.outer.as_str());
    let found = by.and_then(|by| links.get(by.as_str()));
    attachment.bandwidth.egress.is_some() && !found.is_some_and(|link| link.up)
}

/// The kernel lacks what limits take, or the device went while it was asked.
fn unable(error: Error) -> Error {
    match error {
        Error::Netlink(cause @ (netlink::Error::NotFound(_) | netlink::Error::Unsupported(_))) => {
            Error::NoLimits(cause)
        }
        error => error,
    }
}

impl Host {
    /// The outer ends of which there is something: the pair, or what limits it.
    pub async fn traces(&self) -> Result<Vec<IfName>, Error> {
        let links = self.netlink.links().await?;
        let name = |link: &Link| match outer::is_outer_end(link) {
            true => link.name.parse().ok(),
            false => outer_of(link),
        };
        let mut names: Vec<IfName> = links.iter().filter_map(name).collect();
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// Removes what limits a container's sending, if there is something. Foreign devices stay.
    pub(super) async fn unlimit(&self, outer: &IfName) -> Result<(), Error> {
        let Some(name) = name_of(outer.as_str()) else {
            return Ok(());
        };
        let found = self.netlink.link(&name).await?;
        let Some(link) = found.filter(|link| outer_of(link).is_some()) else {
            return Ok(());
        };
        match self.netlink.take_link(&self.netns, link.index).await {
            Err(error) if error.is_not_found() => Ok(()),
            deleted => Ok(deleted?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;

    fn limited(rate: u64, burst: u64, mtu: u32) -> (u64, u32, u32) {
        let rate = NonZeroU64::new(rate).unwrap();
        let Bucket { rate, burst, limit } = bucket(&Rate { rate, burst }, mtu);
        (rate, burst, limit)
    }

    #[test]
    fn bits_become_bytes_and_a_frame_always_fits() {
        assert_eq!(
            limited(80_000_000, 800_000, 1500),
            (10_000_000, 100_000, 500_000)
        );
        assert_eq!(limited(8_000, 8, 1500), (1_000, 1518, 30_360));
        assert_eq!(limited(1, 1, 60_000), (1, 60_018, 1_200_360));
        let huge = limited(u64::MAX, u64::MAX, 1500);
        assert_eq!(huge, (u64::MAX / 8, u32::MAX, u32::MAX));
    }
}
