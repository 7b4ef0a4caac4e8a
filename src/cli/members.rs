//! The verbs about who is in the cluster, who may invite, and whose addresses are whose.

use weave_model::api::{
    AdminRequest, Admins, Ipam, IpamFindings, LeaveAnswer, LeaveRequest, NodeRef, RemovalAnswer,
    RemovalRequest, TokenAnswer, TokenEntry, TokenList, TokenRequest, TokenState,
};

use super::args::{AdminCommand, IpamCommand, TokenCommand};
use super::client::{Client, percent_encoded};
use super::failure::Exit;
use super::print;
use super::shown::{Answer, Shown};
use super::table::Table;
use crate::duration::human;

/// Does `weavectl token ...`.
pub(super) fn token(client: &Client<'_>, shown: &Shown, command: &TokenCommand) -> Answer {
    match command {
        TokenCommand::Create { ttl, uses } => {
            let request = TokenRequest {
                ttl_s: ttl.as_secs(),
                uses: *uses,
            };
            create_token(&client.post("/tokens", &request)?, shown)
        }
        TokenCommand::List(_) => shown.answer(&client.get("/tokens")?, tokens),
        TokenCommand::Revoke { id } => {
            let path = format!("/tokens/{}", percent_encoded(id));
            shown.answer(&client.delete(&path)?, |token: &TokenEntry| {
                format!(
                    "token {} is revoked: nobody joins with it any more\n",
                    &token.id
                )
            })
        }
    }
}

fn create_token(answer: &TokenAnswer, shown: &Shown) -> Answer {
    use std::io::IsTerminal as _;
    if shown.is_human() && std::io::stdout().is_terminal() {
        print::to_stdout(&format!("{}\n", answer.token))?;
        eprintln!("{}", print::invitation(answer, print::now()));
        return Ok((String::new(), Exit::Ok));
    }
    shown.answer(answer, |answer| format!("{}\n", answer.token))
}

fn tokens(list: &TokenList) -> String {
    if list.tokens.is_empty() {
        return "no tokens were made here; make one with: weavectl token create\n".to_owned();
    }
    let mut table = Table::new(&["ID", "STATE", "USED", "EXPIRES", "JOINED"]);
    let now = print::now();
    for token in &list.tokens {
        let state = match token.state {
            TokenState::Good => "good",
            TokenState::UsedUp => "used up",
            TokenState::Expired => "expired",
            TokenState::Revoked => "revoked",
        };
        let left = token.expires_at.saturating_sub(now);
        let joined: Vec<String> = token.joined.iter().map(label).collect();
        table.row([
            token.id[..token.id.len().min(12)].to_owned(),
            state.to_owned(),
            format!("{}/{}", token.joined.len(), token.uses),
            if left > 0 {
                format!("in {}", human(left))
            } else {
                String::new()
            },
            joined.join(" "),
        ]);
    }
    table.render()
}

/// A node's name, or the start of its id when it is not known any more.
pub(super) fn label(node: &NodeRef) -> String {
    node.name
        .as_ref()
        .map_or_else(|| node.id.short(), ToString::to_string)
}

/// Does `weavectl admin ...`.
pub(super) fn admin(client: &Client<'_>, shown: &Shown, command: &AdminCommand) -> Answer {
    match command {
        AdminCommand::Add { node } => {
            let request = AdminRequest { node: node.clone() };
            shown.answer(&client.post("/admins", &request)?, |node: &NodeRef| {
                format!(
                    "{} is an admin: it may invite and remove nodes\n",
                    label(node)
                )
            })
        }
        AdminCommand::List(_) => shown.answer(&client.get("/admins")?, |list: &Admins| {
            if list.admins.is_empty() {
                return print::NO_CLUSTER.to_owned();
            }
            let mut table = Table::new(&["NAME", "ID"]);
            for node in &list.admins {
                table.row([label(node), node.id.short()]);
            }
            table.render()
        }),
    }
}

/// Does `weavectl rmpeer ...`.
pub(super) fn remove(client: &Client<'_>, shown: &Shown, node: &str, heir: Option<&str>) -> Answer {
    let request = RemovalRequest {
        node: node.to_owned(),
        heir: heir.map(str::to_owned),
    };
    let done: RemovalAnswer = client.post("/removals", &request)?;
    shown.answer(&done, |done| {
        format!(
            "{} is removed; {} takes its addresses once all members have confirmed\n",
            label(&done.removed),
            label(&done.heir)
        )
    })
}

/// Does `weavectl leave`.
pub(super) fn leave(client: &Client<'_>, shown: &Shown, force: bool) -> Answer {
    let done: LeaveAnswer = client.post("/leave", &LeaveRequest { force })?;
    shown.answer(&done, |done| {
        let heir = done.heir.as_ref().map_or_else(
            || "nobody took its addresses".to_owned(),
            |heir| format!("{} has its addresses", label(heir)),
        );
        format!("this node has left its cluster; {heir}\n")
    })
}

/// Does `weavectl ipam ...`.
pub(super) fn ipam(client: &Client<'_>, shown: &Shown, command: Option<&IpamCommand>) -> Answer {
    match command {
        None | Some(IpamCommand::Show(_)) => shown.answer(&client.get("/ipam")?, owners),
        Some(IpamCommand::Check) => {
            let found: IpamFindings = client.get("/ipam/check")?;
            let exit = if found.findings.is_empty() {
                Exit::Ok
            } else {
                Exit::Degraded
            };
            let (text, _) = shown.answer(&found, findings)?;
            Ok((text, exit))
        }
    }
}

fn owners(ipam: &Ipam) -> String {
    let mut table = Table::new(&["NODE", "ADDRESSES", "USED", "FREE", "BLOCKS"]);
    let list = |nets: &[ipnet::Ipv4Net]| {
        let nets: Vec<String> = nets.iter().map(ToString::to_string).collect();
        nets.join(" ")
    };
    let number = |number: Option<u32>| number.map_or_else(String::new, |n| n.to_string());
    for node in &ipam.nodes {
        table.row([
            label(&node.node),
            node.addresses.to_string(),
            number(node.used),
            number(node.free),
            list(&node.blocks),
        ]);
    }
    if ipam.unowned_addresses > 0 {
        let addresses = ipam.unowned_addresses.to_string();
        let blank = String::new;
        table.row([
            "(nobody)".to_owned(),
            addresses,
            blank(),
            blank(),
            list(&ipam.unowned),
        ]);
    }
    table.render()
}

fn findings(found: &IpamFindings) -> String {
    if found.findings.is_empty() {
        return format!(
            "all agree: journal, leases and kernel, {} interfaces\n",
            found.checked
        );
    }
    let mut table = Table::new(&["OF", "WRONG"]);
    for finding in &found.findings {
        table.row([finding.of.clone(), finding.wrong.clone()]);
    }
    table.render()
}
