//! Finding out about other members: who is meant by a name, and how long a ping to it takes.

use std::time::Duration;

use weave_model::api::{Code, PingRequest, Pong, Refusal, Trace, TraceRequest};
use weave_router::core::command::{Command, Reply};
use weave_router::core::view::Member;

use super::Node;
use super::desk::Job;

impl Node {
    /// The member of a name, or of the first digits of an id.
    pub(super) fn member(&self, name: &str) -> Result<Member, Refusal> {
        let view = self.shared.router.view();
        let named = view.members.iter().filter(|member| {
            member.name.as_str() == name
                || name.len() >= 6 && member.id.to_string().starts_with(name)
        });
        let mut named: Vec<&Member> = named.collect();
        match (named.pop(), named.is_empty()) {
            (Some(member), true) => Ok(member.clone()),
            (None, _) if view.name.as_str() == name => {
                let cause = format!("{name} is this node itself");
                Err(Refusal::new(
                    Code::Invalid,
                    cause,
                    "name another member: weavectl peers",
                ))
            }
            (None, _) => {
                let cause = format!("no member of the cluster is called {name}");
                Err(Refusal::new(
                    Code::NotFound,
                    cause,
                    "see who there is with: weavectl peers",
                ))
            }
            (Some(_), false) => {
                let cause = format!("several members are called {name}");
                Err(Refusal::new(
                    Code::Conflict,
                    cause,
                    "give the id of one: weavectl peers",
                ))
            }
        }
    }

    /// Follows a packet from a container of this node, without sending one.
    pub async fn trace(&self, request: TraceRequest) -> Result<Trace, Refusal> {
        self.ask(|reply| Job::Trace(request, reply)).await
    }

    /// Pings a member inside its session.
    pub async fn ping(&self, name: &str, request: PingRequest) -> Result<Pong, Refusal> {
        let member = self.member(name)?;
        let command = Command::Ping {
            peer: member.id,
            patience: Duration::from_millis(request.patience_ms.into()),
        };
        match self.shared.router.command(command).await? {
            Reply::Pong { rtt, observed } => Ok(Pong {
                name: member.name,
                endpoint: member.endpoint,
                observed,
                rtt_us: rtt.as_micros().min(u32::MAX.into()) as u32,
            }),
            _ => Err(Refusal::new(
                Code::Failed,
                "the router gave an answer that does not fit",
                "look at the log of weaved",
            )),
        }
    }
}
