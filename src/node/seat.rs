//! A container of the node's own: a namespace without a name or a process, attached for as long as somebody holds it.
//!
//! The namespace lives by its descriptor, so it goes with the node however that ends, and with it the pair; what then is
//! left in the book is freed like any attachment whose interface is gone.

use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;

use rand::RngExt as _;
use tokio::runtime::Handle;
use weave_linux::netns::Netns;
use weave_model::api::{AttachRequest, Attachment, Code, Refusal};
use weave_model::{ContainerName, IfName, NetworkName};

use super::{AwayNode, Node};

/// What the names of these containers begin with.
const PREFIX: &str = "weave-test-";

/// An attached namespace. Dropping it detaches it, soon after.
#[derive(Debug)]
pub(super) struct Seat {
    node: AwayNode,
    attachment: Attachment,
    netns: Arc<Netns>,
}

impl Seat {
    /// Makes a namespace and attaches it.
    pub(super) async fn take(node: &Node) -> Result<Self, Refusal> {
        let netns = Netns::create().map_err(|error| {
            let cause = format!("no namespace for a container of the node's own: {error}");
            Refusal::new(
                Code::Failed,
                cause,
                "look at the log of weaved and of the kernel",
            )
        })?;
        let digits: u32 = rand::rng().random();
        let name: ContainerName = format!("{PREFIX}{digits:08x}")
            .parse()
            .expect("letters, digits and dashes are a container's name");
        let request = AttachRequest {
            netns: format!("/proc/self/fd/{}", netns.as_fd().as_raw_fd()),
            name,
            ip: None,
            more_ips: Vec::new(),
            also: Vec::new(),
            ranges: Vec::new(),
            mac: None,
            mtu: None,
            ifname: IfName::eth0(),
            network: NetworkName::default_network(),
            labels: [].into(),
            aliases: [].into(),
            publish: Vec::new(),
            bandwidth: weave_model::Bandwidth::default(),
            owner: None,
        };
        let attachment = node.attach(request).await?;
        Ok(Self {
            node: node.away(),
            attachment,
            netns: Arc::new(netns),
        })
    }

    /// Its namespace.
    pub(super) fn netns(&self) -> Arc<Netns> {
        Arc::clone(&self.netns)
    }

    /// Its addresses, IPv4 first.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let Attachment { ip, ip6, .. } = &self.attachment;
        let v6 = ip6.map(|ip6| IpAddr::from(ip6.addr()));
        [Some(IpAddr::from(ip.addr())), v6].into_iter().flatten()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        // Without a node there is nobody to ask: it is stopping, and the next start frees what is left.
        let (Some(node), Ok(runtime)) = (self.node.back(), Handle::try_current()) else {
            return;
        };
        let name = self.attachment.name.clone();
        let netns = Arc::clone(&self.netns);
        runtime.spawn(async move {
            if let Err(refusal) = node.detach(name, None).await {
                tracing::warn!(%refusal, "a container of the node's own cannot be detached");
            }
            drop(netns);
        });
    }
}
