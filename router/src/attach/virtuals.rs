//! The route to virtual addresses of Services: it gives the host a way and a source for packets to them.
//!
//! No packet goes that way with such a destination: it is translated before it leaves, or refused. Without the route a
//! host that has no default route could not even begin.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use weave_linux::netlink::Route;

use super::changes::Changes;
use super::{Error, Host};

/// What the route says about who made it; a number that `rt_protos` gives to nobody, and not that of the cluster's.
pub const VIRTUAL_PROTOCOL: u8 = 88;

impl Host {
    /// Routes these addresses to the TUN device, with this source; `None` takes the route away. What is right stays.
    /// Returns what had to be changed.
    ///
    /// # Errors
    /// When the host routes the same addresses elsewhere, or there is no TUN device.
    pub async fn route_virtual(
        &self,
        net: Option<Ipv4Net>,
        source: Option<Ipv4Addr>,
    ) -> Result<Vec<String>, Error> {
        let tun = self.tun().await?;
        let wanted = net.map(|net| Route {
            source: source.map(IpAddr::V4),
            ..Route::new(IpNet::V4(net), tun.index).protocol(VIRTUAL_PROTOCOL)
        });
        let mut changes = Changes::default();
        let found = self.netlink.routes_over(tun.index, None).await?;
        let ours = |route: &Route| route.protocol == VIRTUAL_PROTOCOL;
        let mut right = false;
        for route in found.into_iter().filter(ours) {
            if wanted.as_ref().is_some_and(|wanted| wanted.agrees(&route)) {
                right = true;
            } else {
                changes.no_route(&self.netlink, route).await?;
            }
        }
        if let Some(wanted) = wanted.filter(|_| !right) {
            changes.route(&self.netlink, &wanted).await?;
        }
        Ok(changes.describe())
    }
}
