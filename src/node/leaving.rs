//! Leaving the cluster, this host's side: the containers first, the router's part, then the host as it was before.

use weave_model::api::{Code, IpamFindings, LeaveAnswer, LeaveRequest, NodeRef, Refusal};
use weave_model::{ContainerName, IfName};
use weave_router::core::command::{Command, Reply};

use super::Node;
use super::book::Declarations;
use super::desk::Job;
use super::resolve::Records;
use super::works::{Works, strange_reply};

impl Node {
    /// Leaves the cluster for good.
    pub async fn leave(&self, request: LeaveRequest) -> Result<LeaveAnswer, Refusal> {
        self.ask(|reply| Job::Leave(request, reply)).await
    }

    /// Looks whether the journal of attachments, the leases and the kernel agree.
    pub async fn check_ipam(&self) -> Result<IpamFindings, Refusal> {
        self.ask(Job::CheckIpam).await
    }
}

impl Works {
    /// Leaves the cluster. Without `force` nothing is detached: containers are a reason to stay.
    pub(super) async fn leave(&mut self, request: LeaveRequest) -> Result<LeaveAnswer, Refusal> {
        let range = self.range()?;
        let force = request.force;
        let detached = if force {
            self.detach_all().await?
        } else {
            self.without_containers()?;
            0
        };
        let command = Command::Leave { force };
        let Reply::Left { heir } = self.router.command(command).await? else {
            return Err(strange_reply());
        };
        for error in self.side.leave(range).await {
            tracing::warn!(%error, "not everything of the cluster can be taken off this host");
        }
        self.told.clear();
        *self.book.networks_mut() = Records::default();
        *self.book.services_mut() = Declarations::default();
        self.side.networks.clear();
        if let Err(refusal) = self.save() {
            tracing::warn!(%refusal, "the networks and services of that cluster are not forgotten yet");
        }
        self.look_after().await;
        let heir = heir.map(|(id, name)| NodeRef {
            id,
            name: Some(name),
        });
        Ok(LeaveAnswer { heir, detached })
    }

    fn without_containers(&self) -> Result<(), Refusal> {
        let names: Vec<String> = self
            .book
            .entries()
            .map(|entry| entry.attachment.name.to_string())
            .chain(self.book.host().map(|_| "the host itself".to_owned()))
            .collect();
        if names.is_empty() {
            return Ok(());
        }
        let shown = names[..names.len().min(3)].join(", ");
        let more = if names.len() > 3 { " and others" } else { "" };
        Err(Refusal::new(
            Code::Conflict,
            format!("addresses of this node are in use by {shown}{more}"),
            "detach them (weavectl detach, weavectl hide), or let it be done: weavectl leave --force",
        ))
    }

    async fn detach_all(&mut self) -> Result<u32, Refusal> {
        let all: Vec<(ContainerName, IfName)> = self
            .book
            .entries()
            .map(|entry| {
                (
                    entry.attachment.name.clone(),
                    entry.attachment.ifname.clone(),
                )
            })
            .collect();
        for (name, ifname) in &all {
            self.detach(name, Some(ifname)).await?;
        }
        if self.book.host().is_some() {
            self.hide().await?;
        }
        Ok(all.len() as u32)
    }
}
