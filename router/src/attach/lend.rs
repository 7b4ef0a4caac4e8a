//! A pair for a runtime that moves the container's end itself, such as Docker.
//!
//! Such a runtime asks for the interface before the container's namespace exists, and sets addresses, routes and the
//! name itself. So both ends are made in the host's namespace: the outer one complete, as for any attachment, the inner
//! one with nothing but its hardware address and its sizes, and down. When the container ends, the runtime brings the
//! inner end back under the name it had; [`Host::detach`] removes both, wherever the inner one is.
//!
//! The container gets the range's whole prefix from such a runtime, and with it a route on the link: the outer end
//! answers ARP for all of the range (`outer.rs`), so that works as well.

use weave_linux::netlink::link::LinkChange;
use weave_linux::netlink::{self, IfName, Link, VethEnd};

use super::changes::Changes;
use super::pair::{OUTER_MAC, inner_mac};
use super::spec::Attachment;
use super::{Error, GSO_MAX_SIZE, Host, limits, outer};

/// What was lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lent {
    /// The hardware address of the inner end.
    pub mac: [u8; 6],
    /// The hardware address of the outer end.
    pub outer_mac: [u8; 6],
    /// Whether the host can have the IPv6 address that was asked for.
    pub ipv6: bool,
}

impl Host {
    /// Makes a pair whose inner end stays here, with the name `inner`, until somebody moves it. Whatever fails, nothing
    /// of it is left.
    pub async fn lend(
        &self,
        attachment: &Attachment,
        inner: &IfName,
        mac: Option<[u8; 6]>,
    ) -> Result<Lent, Error> {
        let mut lasting = Changes::default();
        match self.make_both(attachment, inner, mac, &mut lasting).await {
            Ok(lent) => Ok(lent),
            Err(cause) => Err(lasting.undo(&self.netns, &self.netlink, cause).await),
        }
    }

    async fn make_both(
        &self,
        wanted: &Attachment,
        inner: &IfName,
        mac: Option<[u8; 6]>,
        lasting: &mut Changes,
    ) -> Result<Lent, Error> {
        let attachment = Attachment {
            ipv6: wanted.ipv6 && self.has_ipv6()?,
            ..wanted.clone()
        };
        for name in [&attachment.outer, inner] {
            if self.netlink.link(name).await?.is_some() {
                return Err(Error::OuterNameTaken(name.clone()));
            }
        }
        for address in attachment.addresses() {
            self.check_free(address, None).await?;
        }
        let mac = mac.unwrap_or_else(|| inner_mac(attachment.v4()));
        let ends = [(&attachment.outer, OUTER_MAC), (inner, mac)];
        let [outer_end, inner_end] = ends.map(|(name, mac)| VethEnd {
            name: name.clone(),
            mac,
        });
        self.netlink
            .add_veth(&outer_end, &inner_end, &self.netns, attachment.mtu)
            .await?;
        lasting.made_link(&attachment.outer);
        let outer = self.just_made(&attachment.outer).await?;
        let inner = self.just_made(inner).await?;

        let changes = &mut Changes::default();
        let sizes = LinkChange {
            gso_max_size: Some(GSO_MAX_SIZE),
            ..LinkChange::default()
        };
        changes.link(&self.netlink, &inner, sizes).await?;
        outer::tag(&self.netlink, &outer, &attachment, changes).await?;
        outer::settings(&self.netns, &outer, &attachment, changes)?;
        limits::ensure(
            &self.netlink,
            &self.netns,
            &outer,
            &attachment,
            changes,
            lasting,
        )
        .await?;
        changes
            .link(&self.netlink, &outer, LinkChange::up())
            .await?;
        outer::addresses(&self.netlink, &outer, &attachment, changes).await?;
        outer::routes(&self.netlink, &outer, &attachment, changes).await?;
        Ok(Lent {
            mac,
            outer_mac: OUTER_MAC,
            ipv6: attachment.ipv6,
        })
    }

    async fn just_made(&self, name: &IfName) -> Result<Link, Error> {
        let found = self.netlink.link(name).await?;
        found.ok_or_else(|| netlink::Error::NotFound(format!("find the new device {name}")).into())
    }
}
