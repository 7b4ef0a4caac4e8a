//! What the CNI plugin and the node say to one another (CNI specification 1.1.0), and an attachment as a CNI result.
//!
//! ADD is an ordinary request to attach, with an owner. DEL, CHECK and GC name attachments by what the runtime knows
//! of them, the container's id and the interface, and never touch one that was attached by hand. A DEL that finds no
//! node leaves a [`CniRef`] as a file in [`CNI_JOURNAL`].

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::Attachment;
use crate::{CniName, IfName};

/// The folder beside the node's socket where DEL leaves what it could not tell the node. Each file is a [`CniRef`] as
/// JSON; its name begins with the file name of the socket and a dot.
pub const CNI_JOURNAL: &str = "cni-journal";

/// One attachment as a runtime names it; the body of `POST /v1/cni/del`, which frees it and is fine with none, and of
/// `POST /v1/cni/check`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CniRef {
    /// What the runtime calls the container.
    pub container: CniName,
    /// The interface in it.
    pub ifname: IfName,
}

/// `POST /v1/cni/gc`: frees all attachments of one network of the runtime but those it still knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CniGcRequest {
    /// The name of the network in the runtime's configuration.
    pub network: CniName,
    /// The attachments that stay.
    pub keep: Vec<CniRef>,
}

/// The answer to `POST /v1/cni/check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CniFindings {
    /// The attachment as it should be; absent when there is none.
    pub attachment: Option<Attachment>,
    /// What is not as it should be, one line each; empty when all is.
    pub wrong: Vec<String>,
}

/// The result of ADD, in the shape of CNI 1.1.0; `weavectl attach -o json` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CniResult {
    /// The version of the specification, "1.1.0".
    pub cni_version: String,
    /// The host's end first, then the container's.
    pub interfaces: Vec<CniInterface>,
    /// The IPv4 address first, then the IPv6 one.
    pub ips: Vec<CniIp>,
    /// The default routes, in the same order; none where the container had one before.
    pub routes: Vec<CniRoute>,
    /// Always empty here.
    pub dns: CniDns,
}

/// An interface that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniInterface {
    /// Its name.
    pub name: String,
    /// Its hardware address.
    pub mac: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The namespace it is in; absent for the host's end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
}

/// An address that was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniIp {
    /// The address and its prefix length.
    pub address: IpNet,
    /// The gateway of its default route.
    pub gateway: IpAddr,
    /// The index in [`CniResult::interfaces`] of the interface that has it.
    pub interface: usize,
}

/// A route that was made in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniRoute {
    /// Where it leads.
    pub dst: IpNet,
    /// The next hop.
    pub gw: IpAddr,
}

/// The name servers of the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniDns {
    /// Their addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<IpAddr>,
}

impl From<&Attachment> for CniResult {
    fn from(attachment: &Attachment) -> Self {
        let host = CniInterface {
            name: attachment.host_ifname.to_string(),
            mac: attachment.host_mac.clone(),
            mtu: attachment.mtu,
            sandbox: None,
        };
        let container = CniInterface {
            name: attachment.ifname.to_string(),
            mac: attachment.mac.clone(),
            mtu: attachment.mtu,
            sandbox: Some(attachment.netns.clone()),
        };
        let v4 = (IpNet::from(attachment.ip), IpAddr::from(attachment.gateway));
        let v6 = attachment
            .ip6
            .map(|ip6| (IpNet::from(ip6), IpAddr::from(attachment.gateway6)));
        let addresses = || std::iter::once(v4).chain(v6);
        let also = attachment.also.iter().map(|floating| match floating.ip {
            IpAddr::V4(_) => (IpNet::from(floating.ip), v4.1),
            IpAddr::V6(_) => (IpNet::from(floating.ip), attachment.gateway6.into()),
        });
        let everywhere = |gw: IpAddr| match gw {
            IpAddr::V4(_) => IpNet::V4(Ipv4Net::default()),
            IpAddr::V6(_) => IpNet::V6(Ipv6Net::default()),
        };
        let defaults = addresses().filter(|_| attachment.default_route);
        Self {
            cni_version: "1.1.0".to_owned(),
            interfaces: vec![host, container],
            ips: addresses()
                .chain(also)
                .map(|(address, gateway)| CniIp {
                    address,
                    gateway,
                    interface: 1,
                })
                .collect(),
            routes: defaults
                .map(|(_, gw)| CniRoute {
                    dst: everywhere(gw),
                    gw,
                })
                .collect(),
            dns: CniDns::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment() -> Attachment {
        Attachment {
            name: "web1".parse().unwrap(),
            netns: "/run/netns/web1".to_owned(),
            ifname: "eth0".parse().unwrap(),
            mac: "02:00:0a:20:00:02".to_owned(),
            mtu: 1500,
            host_ifname: "wv0123456789".parse().unwrap(),
            host_mac: "02:00:00:00:00:01".to_owned(),
            network: "default".parse().unwrap(),
            ip: "10.32.0.2/12".parse().unwrap(),
            gateway: "10.32.0.1".parse().unwrap(),
            ip6: Some("fd00::2/128".parse().unwrap()),
            also: Vec::new(),
            gateway6: "fe80::1".parse().unwrap(),
            default_route: true,
            labels: [("app".parse().unwrap(), "web".parse().unwrap())].into(),
            aliases: [].into(),
            publish: Vec::new(),
            bandwidth: crate::Bandwidth::default(),
            owner: None,
            attached_at: 0,
            alive: true,
        }
    }

    #[test]
    fn what_the_container_has_not_is_not_in_it() {
        let attachment = Attachment {
            ip6: None,
            default_route: false,
            ..attachment()
        };
        let result = CniResult::from(&attachment);
        assert_eq!((result.ips.len(), result.routes.len()), (1, 0));
    }

    #[test]
    fn floating_addresses_are_among_the_rest_by_the_same_gateways() {
        let floating = ["10.45.0.9", "fd00::d:9"].map(|ip| crate::Floating {
            ip: ip.parse().unwrap(),
            pool: "vips".parse().unwrap(),
            stamp: 7,
        });
        let attachment = Attachment {
            also: floating.to_vec(),
            ..attachment()
        };
        let result = CniResult::from(&attachment);
        let ips = result
            .ips
            .iter()
            .map(|ip| format!("{} {}", ip.address, ip.gateway));
        assert_eq!(
            ips.skip(2).collect::<Vec<_>>(),
            ["10.45.0.9/32 10.32.0.1", "fd00::d:9/128 fe80::1"]
        );
        assert_eq!(result.routes.len(), 2, "they are no default routes");
    }

    #[test]
    fn shape_is_that_of_cni_1_1() {
        let expected = serde_json::json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "wv0123456789", "mac": "02:00:00:00:00:01", "mtu": 1500},
                {"name": "eth0", "mac": "02:00:0a:20:00:02", "mtu": 1500, "sandbox": "/run/netns/web1"}
            ],
            "ips": [
                {"address": "10.32.0.2/12", "gateway": "10.32.0.1", "interface": 1},
                {"address": "fd00::2/128", "gateway": "fe80::1", "interface": 1}
            ],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.32.0.1"}, {"dst": "::/0", "gw": "fe80::1"}],
            "dns": {}
        });
        assert_eq!(
            serde_json::to_value(CniResult::from(&attachment())).unwrap(),
            expected
        );
    }
}
