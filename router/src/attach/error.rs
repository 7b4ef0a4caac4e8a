//! What can stand in the way of attaching a container, by what a person can do about it.

use std::net::IpAddr;

use ipnet::IpNet;
use weave_linux::netlink::{self, IfName};
use weave_linux::netns::{self, NetnsRef};
use weave_linux::sysctl;

/// Why a container cannot be attached, or the host be prepared. Unless it says otherwise, nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The container has a device of that name; another name is needed.
    #[error("{netns} has a device {ifname} already")]
    IfNameTaken {
        /// The container's namespace.
        netns: NetnsRef,
        /// The name that was asked for.
        ifname: IfName,
    },
    /// The host has a device of the name that the outer end would get.
    #[error("the host has a device {0} already")]
    OuterNameTaken(IfName),
    /// The host routes that address to a device already: another container has it.
    #[error("{address} is in use on this host, by {device}")]
    AddressTaken {
        /// The address that was asked for.
        address: IpAddr,
        /// Where it is.
        device: String,
    },
    /// The container shares the host's network, so there is nothing to attach.
    #[error("{0} is the network namespace of the host itself; a container with its own is needed")]
    HostNamespace(NetnsRef),
    /// The cluster's range is in use on this host; the cluster needs another, or the host has to give it up.
    #[error("the range {range} overlaps {with}")]
    Overlap {
        /// The cluster's range.
        range: IpNet,
        /// What it overlaps: a route or an address and its device.
        with: String,
    },
    /// The router's device is not there: nobody has opened it, or somebody deleted it.
    #[error("the host has no TUN device {0}")]
    NoTun(IfName),
    /// There is a device of that name, but it is no outer end of a container.
    #[error("the device {0} is not one of a container's")]
    NotOurs(IfName),
    /// The kernel lacks what it takes to limit a device.
    #[error("this kernel cannot limit the bandwidth of a container: {0}")]
    NoLimits(#[source] netlink::Error),
    /// The namespace cannot be used.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// A setting of the kernel cannot be read or written.
    #[error(transparent)]
    Setting(#[from] sysctl::Error),
    /// The kernel refused a change to devices, addresses or routes.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// A step failed, and what had been done before could not all be undone.
    #[error("{cause}; what was done before could not be undone: {}", left.join("; "))]
    HalfMade {
        /// Which failure it was.
        cause: Box<Self>,
        /// What is left, and why.
        left: Vec<String>,
    },
}
