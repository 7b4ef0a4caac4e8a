//! What was changed on the way to a goal, so that it can be reported, or undone when a later step fails.
//!
//! Each verb looks first and changes only what differs. What it changed, it notes with the way back.

use std::time::{Duration, Instant};

use weave_linux::netlink::link::LinkChange;
use weave_linux::netlink::route::{Kind, LOCAL_TABLE};
use weave_linux::netlink::{self, Address, Bucket, Ensured, IfName, Link, Netlink, Route};
use weave_linux::netns::{Netns, run_in};
use weave_linux::sysctl;

use super::Error;

/// A setting of the kernel and the value it should have.
pub(super) type Setting = (String, &'static str);

/// What every device of ours on the host is set to: it routes, and believes nothing that others say of routes.
pub(super) fn device_settings(device: &str, ipv6: bool) -> Vec<Setting> {
    let v4 = |key: &str, value| -> Setting { (format!("net/ipv4/conf/{device}/{key}"), value) };
    let v6 = |key: &str, value| -> Setting { (format!("net/ipv6/conf/{device}/{key}"), value) };
    let mut settings = vec![
        v4("forwarding", "1"),
        v4("accept_redirects", "0"),
        v4("send_redirects", "0"),
        v4("accept_source_route", "0"),
    ];
    if ipv6 {
        settings.extend([
            v6("disable_ipv6", "0"),
            // No addresses but those that we give.
            v6("addr_gen_mode", "1"),
            v6("forwarding", "1"),
            v6("accept_ra", "0"),
            v6("accept_redirects", "0"),
        ]);
    }
    settings
}

/// How long an address may take to come into use before we go on without it.
const SETTLE_TIME: Duration = Duration::from_secs(1);

/// The way back from one change.
#[derive(Debug)]
enum Undo {
    /// It goes with a device that another change is about.
    Nothing,
    DeleteLink(IfName),
    SetLink(u32, LinkChange),
    DeleteAddress(Address),
    AddAddress(Address),
    DeleteRoute(Route),
    SetRoute(Route),
    Setting {
        key: String,
        before: String,
    },
}

/// Changes in one namespace, in the order they were made.
#[derive(Debug, Default)]
pub(super) struct Changes {
    made: Vec<(String, Undo)>,
}

impl Changes {
    /// A line for each change, for people.
    pub(super) fn describe(self) -> Vec<String> {
        self.made.into_iter().map(|(what, _)| what).collect()
    }

    /// Takes over what was noted elsewhere, as if it came now.
    pub(super) fn append(&mut self, later: Self) {
        self.made.extend(later.made);
    }

    /// Notes a device that the caller has made; at once, before anything asks the kernel for its index and may fail.
    pub(super) fn made_link(&mut self, name: &IfName) {
        let undo = Undo::DeleteLink(name.clone());
        self.made.push((format!("device {name}"), undo));
    }

    /// Gives settings their values, on a thread inside the namespace.
    pub(super) fn settings(&mut self, netns: &Netns, settings: &[Setting]) -> Result<(), Error> {
        run_in(netns, || {
            for (key, value) in settings {
                if let sysctl::Ensured::Changed(before) = sysctl::ensure(key, value)? {
                    let undo = Undo::Setting {
                        key: key.clone(),
                        before,
                    };
                    self.made.push((format!("setting {key} = {value}"), undo));
                }
            }
            Ok(())
        })?
    }

    /// Changes of a device what differs from how it was listed.
    pub(super) async fn link(
        &mut self,
        netlink: &Netlink,
        link: &Link,
        wanted: LinkChange,
    ) -> Result<(), Error> {
        let gso =
            |size| link.gso_max_size != size || link.gso_ipv4_max_size.is_some_and(|v4| v4 != size);
        let change = LinkChange {
            up: wanted.up.filter(|&up| up != link.up),
            mtu: wanted.mtu.filter(|&mtu| mtu != link.mtu),
            gso_max_size: wanted.gso_max_size.filter(|&size| gso(size)),
            alias: wanted.alias.filter(|alias| *alias != link.alias),
            name: None,
        };
        if change == LinkChange::default() {
            return Ok(());
        }
        netlink.set_link(link.index, &change).await?;
        let before = LinkChange {
            up: change.up.map(|up| !up),
            mtu: change.mtu.map(|_| link.mtu),
            gso_max_size: change.gso_max_size.map(|_| link.gso_max_size),
            alias: change.alias.as_ref().map(|_| link.alias.clone()),
            name: None,
        };
        self.made.push((
            format!("device {}: {change}", link.name),
            Undo::SetLink(link.index, before),
        ));
        Ok(())
    }

    /// Gives a device a token bucket, unless it has it. It goes with the device: nothing is to be undone.
    pub(super) async fn bucket(
        &mut self,
        netlink: &Netlink,
        link: &Link,
        wanted: &Bucket,
    ) -> Result<(), Error> {
        let found = netlink.bucket(link.index).await?;
        if !found.is_some_and(|found| found.agrees(wanted)) {
            netlink.set_bucket(link.index, wanted).await?;
            let (name, rate) = (&link.name, wanted.rate);
            let what = format!("device {name}: at most {rate} bytes a second");
            self.made.push((what, Undo::Nothing));
        }
        Ok(())
    }

    /// Redirects what a device receives to another one, unless it is. That goes with the device.
    pub(super) async fn redirect(
        &mut self,
        netlink: &Netlink,
        from: &Link,
        to: &Link,
    ) -> Result<(), Error> {
        if netlink.redirected(from.index).await? != Some(to.index) {
            netlink.redirect(from.index, to.index).await?;
            let what = format!("device {}: received by {}", from.name, to.name);
            self.made.push((what, Undo::Nothing));
        }
        Ok(())
    }

    /// Gives a device an address, and waits until the host takes packets for it.
    pub(super) async fn address(
        &mut self,
        netlink: &Netlink,
        address: &Address,
    ) -> Result<(), Error> {
        if netlink.ensure_address(address).await? == Ensured::Made {
            self.made.push((
                format!("address {address}"),
                Undo::DeleteAddress(address.clone()),
            ));
            settle(netlink, address).await?;
        }
        Ok(())
    }

    /// Takes an address from a device.
    pub(super) async fn no_address(
        &mut self,
        netlink: &Netlink,
        address: Address,
    ) -> Result<(), Error> {
        match netlink.delete_address(address.link, address.net).await {
            Err(error) if error.is_not_found() => {}
            deleted => {
                deleted?;
                self.made
                    .push((format!("no address {address}"), Undo::AddAddress(address)));
            }
        }
        Ok(())
    }

    /// Makes a route. One to the same destinations over the same device is ours and gives way, others are an error.
    pub(super) async fn route(&mut self, netlink: &Netlink, route: &Route) -> Result<(), Error> {
        let what = format!("route {route}");
        match netlink.ensure_route(route).await {
            Ok(Ensured::Kept) => {}
            Ok(Ensured::Made) => self.made.push((what, Undo::DeleteRoute(route.clone()))),
            Err(exists @ netlink::Error::Exists(_)) => {
                let found = match route.link {
                    Some(link) => netlink.routes_over(link, Some(route.table)).await?,
                    None => Vec::new(),
                };
                let Some(before) = found.into_iter().find(|found| found.to == route.to) else {
                    return Err(exists.into());
                };
                netlink.replace_route(route).await?;
                self.made.push((what, Undo::SetRoute(before)));
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Deletes a route.
    pub(super) async fn no_route(&mut self, netlink: &Netlink, route: Route) -> Result<(), Error> {
        match netlink.delete_route(&route).await {
            Err(error) if error.is_not_found() => {}
            deleted => {
                deleted?;
                self.made
                    .push((format!("no route {route}"), Undo::SetRoute(route)));
            }
        }
        Ok(())
    }

    /// Undoes everything, the last change first, and returns the error that was the reason. What cannot be undone
    /// does not stop the rest.
    pub(super) async fn undo(self, netns: &Netns, netlink: &Netlink, cause: Error) -> Error {
        let mut left = Vec::new();
        for (what, undo) in self.made.into_iter().rev() {
            if let Err(error) = undo.run(netns, netlink).await {
                left.push(format!("{what}: {error}"));
            }
        }
        match (left.is_empty(), cause) {
            (true, cause) => cause,
            (false, Error::HalfMade { cause, left: more }) => {
                left.extend(more);
                Error::HalfMade { cause, left }
            }
            (false, cause) => Error::HalfMade {
                cause: Box::new(cause),
                left,
            },
        }
    }
}

/// The kernel makes the local route of an IPv6 address a moment later, in the background.
async fn settle(netlink: &Netlink, address: &Address) -> Result<(), Error> {
    let local = |route: &Route| route.kind == Kind::Local && route.to.addr() == address.net.addr();
    let deadline = Instant::now() + SETTLE_TIME;
    while address.net.addr().is_ipv6() && Instant::now() < deadline {
        let found = netlink.routes_over(address.link, Some(LOCAL_TABLE)).await?;
        if found.iter().any(local) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

impl Undo {
    async fn run(self, netns: &Netns, netlink: &Netlink) -> Result<(), Error> {
        let undone = match self {
            Self::Nothing => return Ok(()),
            Self::DeleteLink(name) => netlink.delete_link_named(&name).await,
            Self::SetLink(link, before) => netlink.set_link(link, &before).await,
            Self::DeleteAddress(address) => netlink.delete_address(address.link, address.net).await,
            Self::AddAddress(address) => netlink.add_address(&address).await,
            Self::DeleteRoute(route) => netlink.delete_route(&route).await,
            Self::SetRoute(route) => netlink.replace_route(&route).await,
            Self::Setting { key, before } => {
                return Ok(run_in(netns, || sysctl::write(&key, &before))??);
            }
        };
        match undone {
            // Gone by itself: what was on a device went with it.
            Err(error) if error.is_not_found() => Ok(()),
            undone => Ok(undone?),
        }
    }
}
