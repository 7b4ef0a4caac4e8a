//! Tokens, admins and removals: what concerns the cluster and not this host, so that it goes past the desk, straight to the
//! router. An answer may be seconds in coming, and no container waits for it.

use weave_model::NodeId;
use weave_model::api::{
    AdminRequest, Admins, NodeRef, Problem, Refusal, RemovalAnswer, RemovalRequest, TokenEntry,
    TokenList, TokenState,
};
use weave_router::core::command::{Command, CommandError, Reply};
use weave_router::core::view::View;
use weave_router::mesh::tokens::{self, TokenInfo};

use super::Node;
use super::works::strange_reply;

impl Node {
    /// The join tokens that were made here; none while there is no cluster.
    pub async fn tokens(&self) -> Result<TokenList, Refusal> {
        if self.shared.router.view().range.is_none() {
            let tokens = Vec::new();
            return Ok(TokenList { tokens });
        }
        let tokens = self.token_command(Command::TokenList).await?;
        Ok(TokenList { tokens })
    }

    /// Takes a join token back.
    pub async fn revoke_token(&self, id: String) -> Result<TokenEntry, Refusal> {
        let mut tokens = self.token_command(Command::TokenRevoke { id }).await?;
        tokens.pop().ok_or_else(strange_reply)
    }

    async fn token_command(&self, command: Command) -> Result<Vec<TokenEntry>, Refusal> {
        let Reply::Tokens(tokens) = self.shared.router.command(command).await? else {
            return Err(strange_reply());
        };
        let view = self.shared.router.view();
        Ok(tokens.iter().map(|info| entry(&view, info)).collect())
    }

    /// Makes a member an admin.
    pub async fn add_admin(&self, request: AdminRequest) -> Result<NodeRef, Refusal> {
        let node = request.node;
        match self
            .shared
            .router
            .command(Command::AdminAdd { node })
            .await?
        {
            Reply::Node { id, name } => Ok(NodeRef {
                id,
                name: Some(name),
            }),
            _ => Err(strange_reply()),
        }
    }

    /// Removes a member for good.
    pub async fn remove(&self, request: RemovalRequest) -> Result<RemovalAnswer, Refusal> {
        let RemovalRequest { node, heir } = request;
        let command = Command::Remove { node, heir };
        let Reply::Removed { id, name, heir } = self.shared.router.command(command).await? else {
            return Err(strange_reply());
        };
        let of = |(id, name)| NodeRef {
            id,
            name: Some(name),
        };
        Ok(RemovalAnswer {
            removed: of((id, name)),
            heir: of(heir),
        })
    }

    /// The admins of the cluster.
    pub fn admins(&self) -> Admins {
        let view = self.shared.router.view();
        let me = view.admin.then(|| node_ref(&view, view.me));
        let others = view.members.iter().filter(|member| member.admin);
        let others = others.map(|member| node_ref(&view, member.id));
        Admins {
            admins: me.into_iter().chain(others).collect(),
        }
    }
}

/// What is amiss with who is a member, as far as this node can tell.
pub(super) fn problems(view: &View) -> Vec<Problem> {
    let removed = view.removed.then(|| Problem {
        cause: CommandError::Removed.to_string(),
        fix: CommandError::Removed.fix(),
    });
    let twin = view.twin.iter().map(|at| twin_problem(at, view.gave_way));
    let waiting = view.waiting.iter().map(|waiting| {
        let name = |id: &NodeId| label(&node_ref(view, *id));
        let silent: Vec<String> = waiting.silent.iter().map(name).collect();
        let of = NodeRef {
            id: waiting.of,
            name: waiting.name.clone(),
        };
        if waiting.of == view.me {
            let cause = format!("{}: not yet {}", CommandError::InDoubt, silent.join(", "));
            let fix = "start or connect them; those that are gone: weavectl rmpeer NODE".to_owned();
            return Problem { cause, fix };
        }
        Problem {
            cause: format!(
                "the addresses of {}, which was removed, wait until this is confirmed by {}",
                label(&of),
                silent.join(", ")
            ),
            fix: "start or connect them; those that are gone: weavectl rmpeer NODE".to_owned(),
        }
    });
    let unread = (view.quarantined > 0).then(|| Problem {
        cause: format!(
            "{} of what members say of themselves cannot be read: reading it fails here, which is a fault of weaved",
            view.quarantined
        ),
        fix: "install a newer weaved here; weavectl report gathers what is needed to find the fault".to_owned(),
    });
    let all = removed.into_iter().chain(twin).chain(waiting);
    all.chain(unread).collect()
}

/// Two processes have one identity.
fn twin_problem(at: &[std::net::SocketAddr], gave_way: bool) -> Problem {
    let error = CommandError::GaveWay(at.to_vec());
    if gave_way {
        return Problem {
            cause: error.to_string(),
            fix: error.fix(),
        };
    }
    let at: Vec<String> = at.iter().map(ToString::to_string).collect();
    Problem {
        cause: format!("another process has this node's identity, at {}", at.join(", ")),
        fix: "stop the copy; to make it a node of its own: weavectl leave --force there, then weavectl join TOKEN".to_owned(),
    }
}

/// A node's name, or the start of its id.
pub(super) fn label(node: &NodeRef) -> String {
    let name = node.name.as_ref().map(ToString::to_string);
    name.unwrap_or_else(|| node.id.short())
}

/// A node by its id and, if it is known, its name.
pub(super) fn node_ref(view: &View, id: NodeId) -> NodeRef {
    let name = if id == view.me {
        Some(view.name.clone())
    } else {
        view.member(id).map(|member| member.name.clone())
    };
    NodeRef { id, name }
}

fn entry(view: &View, info: &TokenInfo) -> TokenEntry {
    let state = match info.dead {
        None | Some(tokens::Refusal::Unable) => TokenState::Good,
        Some(tokens::Refusal::UsedUp) => TokenState::UsedUp,
        Some(tokens::Refusal::Expired) => TokenState::Expired,
        Some(tokens::Refusal::Revoked) => TokenState::Revoked,
    };
    TokenEntry {
        id: info.id.to_string(),
        state,
        expires_at: info.expires.as_secs(),
        uses: info.uses,
        joined: info.joined.iter().map(|id| node_ref(view, *id)).collect(),
    }
}
