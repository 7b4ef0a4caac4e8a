//! What Docker asks a plugin for networks and addresses, as the node understands it.
//!
//! Docker sends every call as an HTTP POST of JSON to `/<Interface>.<Method>` (plugin API, version 1.1 and later;
//! moby `daemon/libnetwork/drivers/remote/api` and `ipams/remote/api`). [`Call::read`] takes such a name and its body
//! and gives a checked value, or nothing for a name that this plugin does not serve. Keys that are not known are
//! skipped: every version of Docker adds some. What is absent, `null` and, for addresses, the empty text mean the same.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::de::{Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::nets::Net;
use crate::{CniName, Mac, NetworkName, parse_net};

mod options;

pub use options::NetworkOptions;

/// Where Docker looks for the plugin of the driver `weave`.
pub const DEFAULT_SOCKET: &str = "/run/docker/plugins/weave.sock";

/// The address space of every pool of ours, by which an address manager is known again in [`PoolData`].
pub const ADDRESS_SPACE: &str = "weave";

/// One call, read and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// `Plugin.Activate`: which interfaces there are.
    Activate,
    /// `NetworkDriver.GetCapabilities`.
    DriverCapabilities,
    /// `IpamDriver.GetCapabilities`.
    IpamCapabilities,
    /// `IpamDriver.GetDefaultAddressSpaces`.
    AddressSpaces,
    /// `IpamDriver.RequestPool`.
    RequestPool(PoolRequest),
    /// `IpamDriver.ReleasePool`.
    ReleasePool(PoolRef),
    /// `IpamDriver.RequestAddress`.
    RequestAddress(AddressRequest),
    /// `IpamDriver.ReleaseAddress`.
    ReleaseAddress(AddressRef),
    /// `NetworkDriver.CreateNetwork`.
    CreateNetwork(NetworkRequest),
    /// `NetworkDriver.DeleteNetwork`.
    DeleteNetwork(NetworkRef),
    /// `NetworkDriver.CreateEndpoint`.
    CreateEndpoint(EndpointRequest),
    /// `NetworkDriver.EndpointOperInfo`.
    EndpointInfo(EndpointRef),
    /// `NetworkDriver.DeleteEndpoint`.
    DeleteEndpoint(EndpointRef),
    /// `NetworkDriver.Join`.
    Join(JoinRequest),
    /// `NetworkDriver.Leave`.
    Leave(EndpointRef),
    /// What this plugin hears and has nothing to do for: nodes that Docker discovers, and ports to publish, which
    /// Docker does itself.
    Heard,
}

impl Call {
    /// Reads a call: the last part of its path, such as `NetworkDriver.Join`, and its body. `None` where there is no
    /// such call.
    ///
    /// # Errors
    /// Of the deserializer, where the body is not what that call takes.
    pub fn read<'de, D: Deserializer<'de>>(name: &str, body: D) -> Result<Option<Self>, D::Error> {
        let skip = |body: D, call: Self| IgnoredAny::deserialize(body).map(|_| call);
        let call = match name {
            "Plugin.Activate" => skip(body, Self::Activate)?,
            "NetworkDriver.GetCapabilities" => skip(body, Self::DriverCapabilities)?,
            "IpamDriver.GetCapabilities" => skip(body, Self::IpamCapabilities)?,
            "IpamDriver.GetDefaultAddressSpaces" => skip(body, Self::AddressSpaces)?,
            "IpamDriver.RequestPool" => Self::RequestPool(Deserialize::deserialize(body)?),
            "IpamDriver.ReleasePool" => Self::ReleasePool(Deserialize::deserialize(body)?),
            "IpamDriver.RequestAddress" => Self::RequestAddress(Deserialize::deserialize(body)?),
            "IpamDriver.ReleaseAddress" => Self::ReleaseAddress(Deserialize::deserialize(body)?),
            "NetworkDriver.CreateNetwork" => Self::CreateNetwork(Deserialize::deserialize(body)?),
            "NetworkDriver.DeleteNetwork" => Self::DeleteNetwork(Deserialize::deserialize(body)?),
            "NetworkDriver.CreateEndpoint" => Self::CreateEndpoint(Deserialize::deserialize(body)?),
            "NetworkDriver.EndpointOperInfo" => Self::EndpointInfo(Deserialize::deserialize(body)?),
            "NetworkDriver.DeleteEndpoint" => Self::DeleteEndpoint(Deserialize::deserialize(body)?),
            "NetworkDriver.Join" => Self::Join(Deserialize::deserialize(body)?),
            "NetworkDriver.Leave" => Self::Leave(Deserialize::deserialize(body)?),
            "NetworkDriver.DiscoverNew"
            | "NetworkDriver.DiscoverDelete"
            | "NetworkDriver.ProgramExternalConnectivity"
            | "NetworkDriver.RevokeExternalConnectivity" => skip(body, Self::Heard)?,
            _ => return Ok(None),
        };
        Ok(Some(call))
    }
}

impl Call {
    /// What it is called in counts.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Activate => "activate",
            Self::DriverCapabilities => "driver_capabilities",
            Self::IpamCapabilities => "ipam_capabilities",
            Self::AddressSpaces => "address_spaces",
            Self::RequestPool(_) => "request_pool",
            Self::ReleasePool(_) => "release_pool",
            Self::RequestAddress(_) => "request_address",
            Self::ReleaseAddress(_) => "release_address",
            Self::CreateNetwork(_) => "create_network",
            Self::DeleteNetwork(_) => "delete_network",
            Self::CreateEndpoint(_) => "create_endpoint",
            Self::EndpointInfo(_) => "endpoint_info",
            Self::DeleteEndpoint(_) => "delete_endpoint",
            Self::Join(_) => "join",
            Self::Leave(_) => "leave",
            Self::Heard => "heard",
        }
    }
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub const fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// What Docker calls a pool of ours: the range of a network in one family, as text `weave/NETWORK/v4` or `/v6`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolId {
    /// The network.
    pub network: NetworkName,
    /// Which of its two ranges.
    pub family: Family,
}

impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            Family::V4 => "v4",
            Family::V6 => "v6",
        };
        write!(f, "{ADDRESS_SPACE}/{}/{family}", self.network)
    }
}

/// The text is no pool of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a pool of Weave's")]
pub struct BadPool(String);

impl FromStr for PoolId {
    type Err = BadPool;

    fn from_str(text: &str) -> Result<Self, BadPool> {
        let parts: Vec<&str> = text.split('/').collect();
        let family = match parts.last() {
            Some(&"v4") => Family::V4,
            Some(&"v6") => Family::V6,
            _ => return Err(BadPool(text.to_owned())),
        };
        match parts[..] {
            [ADDRESS_SPACE, network, _] => network
                .parse()
                .map(|network| Self { network, family })
                .map_err(|_| BadPool(text.to_owned())),
            _ => Err(BadPool(text.to_owned())),
        }
    }
}

impl Serialize for PoolId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PoolId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// Asks for a range to give a network's containers addresses from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "WrittenRequest")]
pub struct PoolRequest {
    /// The range that somebody asks for (`--subnet`); any when absent.
    pub pool: Option<IpNet>,
    /// The part of it to give addresses from (`--ip-range`).
    pub sub_pool: Option<IpNet>,
    /// Options for the address manager (`--ipam-opt`).
    pub options: BTreeMap<String, String>,
    /// Whether it is for IPv6.
    pub v6: bool,
}

/// As Docker writes it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct WrittenRequest {
    #[serde(default, deserialize_with = "net")]
    pool: Option<IpNet>,
    #[serde(default, deserialize_with = "net")]
    sub_pool: Option<IpNet>,
    #[serde(default, deserialize_with = "nullable")]
    options: BTreeMap<String, String>,
    #[serde(default)]
    v6: bool,
}

/// The parts of a request for a pool do not go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum BadRequest {
    #[error("a range of the other family, {0}, is asked for")]
    Family(IpNet),
    #[error("{part} is not a part of {pool}")]
    Part { part: IpNet, pool: IpNet },
    #[error("a part of a range, {0}, is asked for without the range")]
    NoPool(IpNet),
}

impl TryFrom<WrittenRequest> for PoolRequest {
    type Error = BadRequest;

    fn try_from(written: WrittenRequest) -> Result<Self, BadRequest> {
        let WrittenRequest {
            pool,
            sub_pool,
            options,
            v6,
        } = written;
        let mut nets = pool.into_iter().chain(sub_pool);
        if let Some(other) = nets.find(|net| net.addr().is_ipv6() != v6) {
            return Err(BadRequest::Family(other));
        }
        match (sub_pool, pool) {
            (Some(part), Some(pool)) if !pool.contains(&part) => {
                Err(BadRequest::Part { part, pool })
            }
            (Some(part), None) => Err(BadRequest::NoPool(part)),
            _ => Ok(Self {
                pool,
                sub_pool,
                options,
                v6,
            }),
        }
    }
}

/// Names a pool.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PoolRef {
    /// The pool.
    #[serde(rename = "PoolID")]
    pub pool: PoolId,
}

/// Asks for an address of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AddressRequest {
    /// The pool.
    #[serde(rename = "PoolID")]
    pub pool: PoolId,
    /// The address that somebody asks for (`--ip`); any when absent.
    #[serde(default, deserialize_with = "text")]
    pub address: Option<IpAddr>,
    /// For what it is.
    #[serde(default, deserialize_with = "nullable")]
    pub options: AddressOptions,
}

/// For what an address is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct AddressOptions {
    /// The hardware address of the container's interface: the same for both families, so it tells which two addresses
    /// belong together.
    #[serde(
        default,
        rename = "com.docker.network.endpoint.macaddress",
        deserialize_with = "text"
    )]
    pub mac: Option<Mac>,
    /// `com.docker.network.gateway` for the gateway's address.
    #[serde(default, rename = "RequestAddressType", deserialize_with = "nullable")]
    kind: String,
}

impl AddressOptions {
    /// Whether it is for the gateway.
    pub fn is_gateway(&self) -> bool {
        self.kind == "com.docker.network.gateway"
    }
}

/// Names an address of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AddressRef {
    /// The pool.
    #[serde(rename = "PoolID")]
    pub pool: PoolId,
    /// The address.
    pub address: IpAddr,
}

/// Makes a network.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct NetworkRequest {
    /// What Docker calls it: 64 hex digits.
    #[serde(rename = "NetworkID")]
    pub network: CniName,
    /// What was asked for with it.
    #[serde(default, rename = "Options", deserialize_with = "nullable")]
    pub options: NetworkOptions,
    /// Its IPv4 ranges.
    #[serde(default, rename = "IPv4Data", deserialize_with = "nullable")]
    pub v4: Vec<PoolData>,
    /// Its IPv6 ranges.
    #[serde(default, rename = "IPv6Data", deserialize_with = "nullable")]
    pub v6: Vec<PoolData>,
}

/// One range of a network.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PoolData {
    /// Whose the addresses are: [`ADDRESS_SPACE`] for ours.
    #[serde(default, deserialize_with = "nullable")]
    pub address_space: String,
    /// The range.
    #[serde(deserialize_with = "required_net")]
    pub pool: IpNet,
}

/// Names a network.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct NetworkRef {
    /// The network.
    #[serde(rename = "NetworkID")]
    pub network: CniName,
}

/// Makes an endpoint: a container's place on a network, before there is a container.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct EndpointRequest {
    /// The network.
    #[serde(rename = "NetworkID")]
    pub network: CniName,
    /// What Docker calls the endpoint: 64 hex digits.
    #[serde(rename = "EndpointID")]
    pub endpoint: CniName,
    /// What its interface will be.
    #[serde(default, rename = "Interface", deserialize_with = "nullable")]
    pub interface: Interface,
}

/// An endpoint's interface; what is absent is for the driver to say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Interface {
    /// The IPv4 address, with the prefix length of the range.
    #[serde(default, rename = "Address", deserialize_with = "net")]
    pub v4: Option<Ipv4Net>,
    /// The IPv6 address.
    #[serde(default, rename = "AddressIPv6", deserialize_with = "net")]
    pub v6: Option<Ipv6Net>,
    /// The hardware address.
    #[serde(default, rename = "MacAddress", deserialize_with = "text")]
    pub mac: Option<Mac>,
}

/// Names an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct EndpointRef {
    /// The network.
    #[serde(rename = "NetworkID")]
    pub network: CniName,
    /// The endpoint.
    #[serde(rename = "EndpointID")]
    pub endpoint: CniName,
}

/// Asks for the interface of an endpoint, which Docker then moves into the container.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct JoinRequest {
    /// The endpoint.
    #[serde(flatten)]
    pub endpoint: EndpointRef,
    /// The path at which the container's network namespace is, or will be.
    #[serde(rename = "SandboxKey")]
    pub sandbox: String,
}

/// A value that is written as text; an empty text is none.
fn text<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    match Option::<String>::deserialize(deserializer)? {
        Some(text) if !text.is_empty() => text.parse().map(Some).map_err(D::Error::custom),
        _ => Ok(None),
    }
}

/// A range, or an address with the length of its prefix; an empty text is none.
fn net<'de, D: Deserializer<'de>, N: Net>(deserializer: D) -> Result<Option<N>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    let text = text.filter(|text| !text.is_empty());
    let read = |text: String| {
        parse_net(&text).map_err(|bad| D::Error::custom(format!("\"{text}\" is {bad}")))
    };
    text.map(read).transpose()
}

/// A range that has to be there.
fn required_net<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpNet, D::Error> {
    net(deserializer)?.ok_or_else(|| D::Error::custom("a pool is empty"))
}

/// A value for which `null` stands where it is empty, as Go writes it.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests;
