//! Attach, detach and repair: the order of the steps, and what they are about.

use std::net::{Ipv4Addr, Ipv6Addr};

use weave_linux::netlink::link::LinkChange;
use weave_linux::netlink::{self, IfName, Link, Netlink, VethEnd};

use super::changes::Changes;
use super::spec::{AttachSpec, Attached, Attachment, NoIpv6};
use super::{Error, Host, container, limits, outer};

/// The hardware address of every outer end: "Weave", locally administered. They stand alone, so they may share it, and
/// what a container knows of its gateway stays true wherever it is attached.
pub(super) const OUTER_MAC: [u8; 6] = [0x02, b'W', b'e', b'a', b'v', b'e'];

/// The steps of attaching, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Look whether names and addresses are free.
    Look,
    /// Make the veth pair.
    Pair,
    /// Find both ends of it.
    Found,
    /// Tag the outer end and set its sizes.
    Tag,
    /// The settings of the outer end.
    OuterSettings,
    /// The limits of what it may carry.
    Limits,
    /// Bring the outer end up.
    OuterUp,
    /// The gateway's addresses on the outer end.
    OuterAddresses,
    /// The settings of the container's end.
    InnerSettings,
    /// Bring the container's end up.
    InnerUp,
    /// The container's addresses.
    InnerAddresses,
    /// The container's routes.
    InnerRoutes,
    /// The host's routes to the container: late, so that it is reached only when it can answer.
    OuterRoutes,
    /// Bring the container's loopback device up: last, because the kernel gives it addresses that would stay.
    Loopback,
}

impl Step {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Look,
        Self::Pair,
        Self::Found,
        Self::Tag,
        Self::OuterSettings,
        Self::Limits,
        Self::OuterUp,
        Self::OuterAddresses,
        Self::InnerSettings,
        Self::InnerUp,
        Self::InnerAddresses,
        Self::InnerRoutes,
        Self::OuterRoutes,
        Self::Loopback,
    ];
}

/// What came of detaching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detached {
    /// The pair was there and is gone.
    Removed,
    /// It was gone already: the container has ended, or was detached before.
    NotThere,
}

/// What came of looking after an attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repaired {
    /// Everything on the host's side is as it should be.
    Right,
    /// These things were missing or wrong and have been put right.
    Fixed(Vec<String>),
    /// The pair is gone, and with it the container's end: there is nothing to repair.
    Gone,
}

/// The hardware address of a container's device: from its IPv4 address, so that it gets the same again with that.
pub(super) fn inner_mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, b'W', a, b, c, d]
}

impl Host {
    /// Attaches a container. Whatever step fails, nothing of it is left.
    pub async fn attach(&self, spec: &AttachSpec) -> Result<Attached, Error> {
        self.attach_watched(spec, |_| Ok(())).await
    }

    /// The same, telling each step before it is taken; an error from the watcher fails it.
    pub async fn attach_watched(
        &self,
        spec: &AttachSpec,
        watch: impl FnMut(Step) -> Result<(), Error>,
    ) -> Result<Attached, Error> {
        let mut attaching = Attaching {
            host: self,
            spec: spec.clone(),
            inside: Netlink::open_in(&spec.netns)?,
            lasting: Changes::default(),
        };
        match attaching.run(watch).await {
            Ok(attached) => Ok(attached),
            Err(cause) => {
                let undone = attaching.lasting.undo(&self.netns, &self.netlink, cause);
                Err(undone.await)
            }
        }
    }

    /// Detaches a container, by the name of the outer end. Doing it again is fine.
    pub async fn detach(&self, outer: &IfName) -> Result<Detached, Error> {
        if !outer::is_outer_name(outer.as_str()) {
            return Err(Error::NotOurs(outer.clone()));
        }
        self.unlimit(outer).await?;
        let Some(link) = self.netlink.link(outer).await? else {
            return Ok(Detached::NotThere);
        };
        if !outer::is_outer_end(&link) {
            return Err(Error::NotOurs(outer.clone()));
        }
        // Addresses and routes go with the device, and the container's end with this one.
        match self.netlink.take_link(&self.netns, link.index).await {
            Err(error) if error.is_not_found() => Ok(Detached::NotThere),
            deleted => Ok(deleted.map(|()| Detached::Removed)?),
        }
    }

    /// Puts right what is missing or wrong on the host's side of an attachment, and touches nothing else.
    pub async fn repair(&self, attachment: &Attachment) -> Result<Repaired, Error> {
        let Some(link) = self.netlink.link(&attachment.outer).await? else {
            return Ok(Repaired::Gone);
        };
        if !outer::is_outer_end(&link) {
            return Err(Error::NotOurs(attachment.outer.clone()));
        }
        let mut changes = Changes::default();
        match self.put_right(&link, attachment, &mut changes).await {
            Ok(()) => {}
            // It may go while we look: then that is the reason, whatever the failure looked like.
            Err(_) if self.netlink.link_at(link.index).await?.is_none() => {
                return Ok(Repaired::Gone);
            }
            Err(error) => return Err(error),
        }
        let fixed = changes.describe();
        Ok(if fixed.is_empty() {
            Repaired::Right
        } else {
            Repaired::Fixed(fixed)
        })
    }

    async fn put_right(
        &self,
        link: &Link,
        attachment: &Attachment,
        changes: &mut Changes,
    ) -> Result<(), Error> {
        outer::tag(&self.netlink, link, attachment, changes).await?;
        outer::settings(&self.netns, link, attachment, changes)?;
        let mut made = Changes::default();
        limits::ensure(
            &self.netlink,
            &self.netns,
            link,
            attachment,
            changes,
            &mut made,
        )
        .await?;
        changes.append(made);
        changes.link(&self.netlink, link, LinkChange::up()).await?;
        outer::addresses(&self.netlink, link, attachment, changes).await?;
        outer::routes(&self.netlink, link, attachment, changes).await
    }
}

/// One container on its way to being attached.
struct Attaching<'a> {
    host: &'a Host,
    spec: AttachSpec,
    inside: Netlink,
    /// The pair itself, and what limits it; all else goes with them.
    lasting: Changes,
}

impl Attaching<'_> {
    async fn run(
        &mut self,
        mut watch: impl FnMut(Step) -> Result<(), Error>,
    ) -> Result<Attached, Error> {
        watch(Step::Look)?;
        self.look().await?;
        watch(Step::Pair)?;
        let (outer, inner) = self.pair(&mut watch).await?;
        let v6 = self.settle_ipv6()?;

        let host = &self.host.netlink;
        let attachment = &self.spec.attachment;
        let changes = &mut Changes::default();
        watch(Step::Tag)?;
        outer::tag(host, &outer, attachment, changes).await?;
        watch(Step::OuterSettings)?;
        outer::settings(&self.host.netns, &outer, attachment, changes)?;
        watch(Step::Limits)?;
        let lasting = &mut self.lasting;
        limits::ensure(host, &self.host.netns, &outer, attachment, changes, lasting).await?;
        watch(Step::OuterUp)?;
        changes.link(host, &outer, LinkChange::up()).await?;
        watch(Step::OuterAddresses)?;
        outer::addresses(host, &outer, attachment, changes).await?;

        watch(Step::InnerSettings)?;
        container::settings(&self.spec, changes)?;
        watch(Step::InnerUp)?;
        container::up(&self.inside, &inner, changes).await?;
        watch(Step::InnerAddresses)?;
        container::addresses(&self.inside, &inner, &self.spec, changes).await?;
        watch(Step::InnerRoutes)?;
        let default_route = container::routes(&self.inside, &inner, &self.spec, changes).await?;

        watch(Step::OuterRoutes)?;
        outer::routes(host, &outer, attachment, changes).await?;
        watch(Step::Loopback)?;
        container::loopback(&self.inside, changes).await?;
        Ok(Attached {
            mac: inner.mac.unwrap_or_default(),
            outer_mac: outer.mac.unwrap_or_default(),
            outer_index: outer.index,
            v6,
            default_route,
        })
    }

    /// Whether the names and addresses are free, before anything is made.
    async fn look(&self) -> Result<(), Error> {
        let (host, spec) = (self.host, &self.spec);
        if spec.netns.id() == host.netns.id() {
            return Err(Error::HostNamespace(spec.netns.origin().clone()));
        }
        if self.inside.link(&spec.ifname).await?.is_some() {
            let netns = spec.netns.origin().clone();
            return Err(Error::IfNameTaken {
                netns,
                ifname: spec.ifname.clone(),
            });
        }
        if host.netlink.link(&spec.attachment.outer).await?.is_some() {
            return Err(Error::OuterNameTaken(spec.attachment.outer.clone()));
        }
        for address in spec.attachment.addresses() {
            host.check_free(address, None).await?;
        }
        Ok(())
    }

    /// Makes the pair; both ends are down.
    async fn pair(
        &mut self,
        mut watch: impl FnMut(Step) -> Result<(), Error>,
    ) -> Result<(Link, Link), Error> {
        let (host, spec) = (&self.host.netlink, &self.spec);
        let attachment = &spec.attachment;
        let outer = VethEnd {
            name: attachment.outer.clone(),
            mac: OUTER_MAC,
        };
        let inner = VethEnd {
            name: spec.ifname.clone(),
            mac: spec.mac.unwrap_or_else(|| inner_mac(attachment.v4())),
        };
        host.add_veth(&outer, &inner, &spec.netns, attachment.mtu)
            .await?;
        self.lasting.made_link(&attachment.outer);
        watch(Step::Found)?;
        let gone = |name: &IfName| netlink::Error::NotFound(format!("find the new device {name}"));
        let outer = host
            .link(&attachment.outer)
            .await?
            .ok_or_else(|| gone(&attachment.outer))?;
        let inner = self
            .inside
            .link(&spec.ifname)
            .await?
            .ok_or_else(|| gone(&spec.ifname))?;
        Ok((outer, inner))
    }

    /// Goes on without IPv6 where the host or the container has none, and says so.
    fn settle_ipv6(&mut self) -> Result<Result<Ipv6Addr, NoIpv6>, Error> {
        let attachment = &mut self.spec.attachment;
        let Some(address) = attachment.v6() else {
            return Ok(Err(NoIpv6::NotWanted));
        };
        attachment.ipv6 = false;
        if !self.host.has_ipv6()? {
            return Ok(Err(NoIpv6::Host));
        }
        if !container::has_ipv6(&self.spec)? {
            return Ok(Err(NoIpv6::Container));
        }
        self.spec.attachment.ipv6 = true;
        Ok(Ok(address))
    }
}
