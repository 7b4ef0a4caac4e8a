//! The cluster's secret: how it stands with it, another one in its place, and who missed that.

use std::time::Duration;

use weave_model::NodeId;
use weave_model::api::{Problem, Refusal, SecretRequest, SecretState};
use weave_router::core::command::{self, Command, CommandError, Reply};
use weave_router::core::view::View;

use super::Node;
use super::members::{label, node_ref};
use super::works::strange_reply;

impl Node {
    /// Which secret of the cluster is in use.
    pub fn secret(&self) -> Result<SecretState, Refusal> {
        let view = self.shared.router.view();
        let state = view.secret.as_ref().ok_or(CommandError::NotMember)?;
        Ok(shown(&view, state))
    }

    /// Gives the cluster another secret.
    pub async fn rotate_secret(&self, request: SecretRequest) -> Result<SecretState, Refusal> {
        let overlap = Duration::from_secs(request.overlap_s);
        let command = Command::SecretRotate { overlap };
        let Reply::Secret(state) = self.shared.router.command(command).await? else {
            return Err(strange_reply());
        };
        Ok(shown(&self.shared.router.view(), &state))
    }
}

fn shown(view: &View, state: &command::SecretState) -> SecretState {
    let behind = state.behind.iter().map(|id| node_ref(view, *id));
    SecretState {
        epoch: state.epoch,
        previous_until_at: state.previous_until.map(|until| until.as_secs()),
        behind: behind.collect(),
    }
}

/// Who is refused for an old secret or a removal: this node, or members.
pub(super) fn problems(view: &View) -> Vec<Problem> {
    let name = |id: &NodeId| label(&node_ref(view, *id));
    let ours = view.outdated.iter().map(|(peer, epoch)| Problem {
        cause: format!(
            "this node missed a change of the cluster's secret: {} has secret number {epoch} and accepts the one of this node no longer",
            name(peer)
        ),
        fix: "make it a node of its own: weavectl leave --force, then weavectl join TOKEN with a new token; and on a member: weavectl rmpeer for what it was".to_owned(),
    });
    let removed = view.dismissed.iter().map(|peer| Problem {
        cause: format!(
            "this node was removed from the cluster while it was away: {} refuses it for that",
            name(peer)
        ),
        fix: "to use it again: weavectl leave --force, then weavectl join TOKEN with a new token"
            .to_owned(),
    });
    let theirs = view.turned_away.iter().map(|id| Problem {
        cause: format!(
            "{} is refused: it missed a change of the cluster's secret, and the one it has is accepted no longer",
            name(id)
        ),
        fix: "weavectl leave --force there; weavectl rmpeer NODE for it here; then let it join with a new token".to_owned(),
    });
    ours.chain(removed).chain(theirs).collect()
}
