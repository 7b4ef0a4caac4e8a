//! Where this node looks for members because it was told to: one address more, one less.

use std::net::SocketAddr;

use weave_model::api::{Refusal, Target, TargetRequest, Targets};
use weave_router::core::command::Command;
use weave_router::core::dialled::Discovery;

use super::Node;
use super::members::node_ref;

impl Node {
    /// The addresses.
    pub fn targets(&self) -> Targets {
        let view = self.shared.router.view();
        let target = |(address, found): (&SocketAddr, &Option<_>)| Target {
            address: *address,
            peer: found.map(|id| node_ref(&view, id)),
        };
        Targets {
            discovery: view.discovery == Discovery::On,
            targets: view.dialled.iter().map(target).collect(),
        }
    }

    /// Looks for members at one more.
    pub async fn connect(&self, request: TargetRequest) -> Result<Targets, Refusal> {
        let address = request.address;
        let command = Command::Connect { address };
        self.shared.router.command(command).await?;
        Ok(self.targets())
    }

    /// Looks for them at one less.
    pub async fn forget(&self, address: SocketAddr) -> Result<Targets, Refusal> {
        let command = Command::Forget { address };
        self.shared.router.command(command).await?;
        Ok(self.targets())
    }
}
