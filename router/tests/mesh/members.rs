//! Who may invite, and by what: tokens that are listed and taken back, admins beside the node that made the cluster.

use weave_router::core::command::{Command, CommandError, Reply};
use weave_router::mesh::tokens::{Refusal, TokenInfo};

use super::net::{Answer, Net};
use super::{HOUR, MINUTE, cluster};

fn tokens(net: &mut Net, n: usize) -> Vec<TokenInfo> {
    match net.ask(n, Command::TokenList) {
        Ok(Reply::Tokens(tokens)) => tokens,
        other => panic!("{other:?}"),
    }
}

pub(super) fn add_admin(net: &mut Net, n: usize, node: &str) -> Answer {
    let node = node.to_owned();
    net.ask(n, Command::AdminAdd { node })
}

#[test]
fn tokens_are_listed_and_taken_back() {
    let mut net = Net::new(1, 4);
    net.init(0, "10.32.0.0/16");
    let [used, old, taken] = [1, 1, 2].map(|uses| net.token(0, uses));
    assert!(net.join(1, &used).is_ok());
    assert!(net.join(2, &taken).is_ok());
    let start = taken.id.to_string()[..8].to_owned();
    let revoke = |id: String| Command::TokenRevoke { id };
    let answer = net.ask(0, revoke(start.clone()));
    assert!(matches!(answer, Ok(Reply::Tokens(tokens)) if tokens[0].id == taken.id));
    assert!(net.ask(0, revoke(start)).is_ok(), "again is no error");
    for wrong in ["", "zzzzzz", "0000", &taken.id.to_string()[..3]] {
        let error = CommandError::UnknownToken(wrong.to_owned());
        assert_eq!(net.ask(0, revoke(wrong.to_owned())), Err(error));
    }
    net.crash(0);
    net.start(0);
    let refused = Err(CommandError::Refused(Refusal::Revoked));
    assert_eq!(net.join(3, &taken), refused, "also after a restart");
    net.run(HOUR);
    let dead = |net: &mut Net, id| {
        let all = tokens(net, 0);
        all.iter().find(|info| info.id == id).unwrap().dead
    };
    assert_eq!(dead(&mut net, old.id), Some(Refusal::Expired));
    assert_eq!(dead(&mut net, taken.id), Some(Refusal::Revoked));
    net.run(HOUR * 24);
    let fresh = net.token(0, 1);
    let left: Vec<_> = tokens(&mut net, 0)
        .into_iter()
        .map(|info| info.id)
        .collect();
    assert_eq!(left, [fresh.id], "a day later they are forgotten");
}

#[test]
fn an_admin_that_was_made_invites_and_makes_admins() {
    let mut net = Net::new(2, 6).bad();
    net.init(0, "10.32.0.0/16");
    let token = net.token(0, 3);
    for n in 1..4 {
        assert!(net.join(n, &token).is_ok());
    }
    let create = || Command::TokenCreate {
        ttl: HOUR,
        uses: 1,
        addresses: vec![],
    };
    let admins = vec!["host1".to_owned()];
    assert!(net.run_until(MINUTE, |net| net.view(1).members.len() == 3));
    assert_eq!(
        net.ask(1, create()),
        Err(CommandError::NotAdmin {
            admins: admins.clone()
        })
    );
    assert_eq!(
        add_admin(&mut net, 1, "host3"),
        Err(CommandError::NotAdmin { admins })
    );
    assert!(net.run_until(MINUTE, |net| net.view(0).members.len() == 3));
    let done = add_admin(&mut net, 0, "host2");
    assert!(matches!(done, Ok(Reply::Node { name, .. }) if name.as_str() == "host2"));
    assert!(add_admin(&mut net, 0, "host2").is_ok(), "again is no error");
    let sees = |net: &mut Net| net.view(1).admin;
    assert!(net.run_until(MINUTE, sees));
    net.crash(0);
    let token = net.token(1, 1);
    assert!(net.join(4, &token).is_ok(), "the first node is down");
    let id = net.nodes[2].core.as_ref().unwrap().id().to_string();
    assert!(add_admin(&mut net, 1, &id[..6]).is_ok());
    net.crash(1);
    net.start(1);
    let token = net.token(2, 1);
    assert!(
        net.join(5, &token).is_ok(),
        "by an admin that an admin made"
    );
    net.start(0);
    assert!(
        net.run_until(10 * MINUTE, Net::agrees),
        "all believe one another"
    );
    let admins = net
        .view(5)
        .members
        .iter()
        .filter(|member| member.admin)
        .count();
    assert_eq!(admins, 3);
}

#[test]
fn only_members_that_are_here_become_admins() {
    let mut net = cluster(3, 3, "10.32.0.0/16");
    let unknown = CommandError::UnknownNode("host9".to_owned());
    assert_eq!(add_admin(&mut net, 0, "host9"), Err(unknown));
    let short = net.nodes[1].core.as_ref().unwrap().id().to_string()[..5].to_owned();
    let unknown = CommandError::UnknownNode(short.clone());
    assert_eq!(add_admin(&mut net, 0, &short), Err(unknown));
    assert!(add_admin(&mut net, 0, "host1").is_ok(), "it is one");
    net.cut.extend([(0, 1), (1, 0)]);
    let node = "host2".to_owned();
    assert_eq!(
        add_admin(&mut net, 0, "host2"),
        Err(CommandError::NotConfirmed { node })
    );
    net.run(10 * MINUTE);
    let name = "host2".to_owned();
    assert_eq!(
        add_admin(&mut net, 0, "host2"),
        Err(CommandError::NotConnected(name))
    );
}
