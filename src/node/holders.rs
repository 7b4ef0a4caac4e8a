//! Who holds which floating address, out of what all members tell: pure, and the same on every node that heard the same.
//!
//! A claim stands on the sheet of its container's node and in that node's book. It counts if its address is in a pool and
//! no member has given it to a container, or to itself, out of its own deeds: so a member that lies can take a floating
//! address, and no other. Of all claims that count, and of all that are told to have ended, the newest says who has the
//! address ([`Word`]): if that one has ended, nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use weave_model::{Block, ClusterRange, EndedClaim, Floating, MAX_ENDED, MAX_FLOATING, NodeId};
use weave_proxy::declared::Member;
use weave_router::core::view::{Owner, View};

use super::book::{Book, Entry};

/// What a member says of a floating address: that it claims it, or that its claim has ended. A later word is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Word {
    /// The stamp of the claim.
    pub(super) stamp: u64,
    /// Whose it is.
    pub(super) node: NodeId,
    /// Whether it has ended.
    pub(super) ended: bool,
}

/// The last word on each floating address.
pub(super) type Holders = BTreeMap<IpAddr, Word>;

/// Who has an address.
pub(super) fn holder(holders: &Holders, ip: IpAddr) -> Option<NodeId> {
    let word = holders.get(&ip).filter(|word| !word.ended)?;
    Some(word.node)
}

/// What a member says of floating addresses: no more of each container, and of claims that ended, than it may.
fn words(member: &Member) -> impl Iterator<Item = (IpAddr, Word)> {
    let node = member.id;
    let containers = member.sheet.containers.iter();
    let claims = containers.flat_map(|one| one.floating.iter().take(MAX_FLOATING));
    let claims = claims.map(|claim| (claim.ip, claim.stamp, false));
    let ended = member.sheet.ended.iter().take(MAX_ENDED);
    let ended = ended.map(|end| (end.ip, end.stamp, true));
    claims
        .chain(ended)
        .map(move |(ip, stamp, ended)| (ip, Word { stamp, node, ended }))
}

/// The last word on each floating address. `owner` says whose an offset is by deed.
pub(super) fn holders(
    pools: &[Block],
    range: &ClusterRange,
    members: &[Member],
    owner: impl Fn(u32) -> Option<NodeId>,
) -> Holders {
    let mut holders = Holders::new();
    let mut given: BTreeMap<NodeId, BTreeSet<u32>> = BTreeMap::new();
    let mut is_given = |offset| {
        let Some(owner) = owner(offset) else {
            return false;
        };
        let of_owner = || given_by(range, members.iter().find(|member| member.id == owner));
        given
            .entry(owner)
            .or_insert_with(of_owner)
            .contains(&offset)
    };
    for member in members {
        for (ip, word) in words(member) {
            let offset = range.offset(ip);
            let offset = offset.filter(|offset| pools.iter().any(|pool| pool.contains(*offset)));
            if offset.is_some_and(|offset| !is_given(offset)) {
                let last = holders.entry(ip).or_insert(word);
                *last = word.max(*last);
            }
        }
    }
    holders
}

/// The offsets that a member says it has given away, or has itself.
fn given_by(range: &ClusterRange, member: Option<&Member>) -> BTreeSet<u32> {
    let sheets = member.iter().map(|member| &member.sheet);
    let ips = sheets.flat_map(|sheet| {
        let containers = sheet
            .containers
            .iter()
            .flat_map(|one| one.ips.iter().copied());
        containers.chain(sheet.own.iter().copied().map(IpAddr::V4))
    });
    ips.filter_map(|ip| range.offset(ip)).collect()
}

/// The same, as a node sees it.
pub(super) fn holders_now(
    view: &View,
    book: &Book,
    range: &ClusterRange,
    members: &[Member],
) -> Holders {
    let pools = book
        .networks()
        .known
        .pools()
        .filter_map(|pool| range.block(pool.range));
    let pools: Vec<Block> = pools.collect();
    let owner = |offset| {
        Some(match view.owner(offset)? {
            Owner::Me => view.me,
            Owner::Member(place) => view.members[place as usize].id,
        })
    };
    holders(&pools, range, members, owner)
}

/// Whose an address is, by deed or because it floats.
pub(super) fn owner_of(
    view: &View,
    range: &ClusterRange,
    holders: &Holders,
    ip: IpAddr,
) -> Option<Owner> {
    let place = |id: &NodeId| view.members.binary_search_by_key(id, |member| member.id);
    match holder(holders, ip) {
        Some(id) if id == view.me => Some(Owner::Me),
        Some(id) => place(&id).ok().map(|place| Owner::Member(place as u32)),
        None => view.owner(range.offset(ip)?),
    }
}

/// The stamp of a claim that outdoes the last word on its address: the time, in milliseconds since the Unix epoch, or
/// later.
///
/// # Errors
/// The last word, if nothing is newer.
pub(super) fn next_stamp(last: Option<&Word>, me: NodeId, now: u64) -> Result<u64, Word> {
    let Some(last) = last else { return Ok(now) };
    let word = Word {
        stamp: now.max(last.stamp.saturating_add(1)),
        node: me,
        ended: false,
    };
    if word > *last {
        Ok(word.stamp)
    } else {
        Err(*last)
    }
}

/// Whether a claim of this node is the last word on its address.
pub(super) fn holds(holders: &Holders, claim: &Floating, me: NodeId) -> bool {
    let word = Word {
        stamp: claim.stamp,
        node: me,
        ended: false,
    };
    holders.get(&claim.ip) == Some(&word)
}

/// The claims of this node that do not hold.
pub(super) fn lost(book: &Book, holders: &Holders, me: NodeId) -> Vec<(Entry, Floating)> {
    let lost = |entry: &Entry| {
        let also = entry.attachment.also.iter();
        let lost = also.filter(|claim| !holds(holders, claim, me));
        let lost = lost.map(|claim| (entry.clone(), claim.clone()));
        lost.collect::<Vec<_>>()
    };
    book.entries().flat_map(lost).collect()
}

/// Forgets the ends of claims of this node that need not be told any more. Whether there were any.
pub(super) fn forget_ended(
    book: &mut Book,
    (holders, members): (&Holders, &[Member]),
    me: NodeId,
    now: u64,
) -> bool {
    let word = |end: &EndedClaim| Word {
        stamp: end.stamp,
        node: me,
        ended: true,
    };
    let is_outdone = |end: &EndedClaim| holders.get(&end.ip).is_some_and(|last| *last > word(end));
    let outdoes = |end: &EndedClaim| {
        let mut all = members.iter().flat_map(words);
        all.any(|(ip, other)| ip == end.ip && !other.ended && other < word(end))
    };
    book.ended_mut().forget(now, is_outdone, outdoes)
}

#[cfg(test)]
mod tests {
    use weave_model::{Sheet, SheetContainer};

    use super::super::book::tests::{entry, node, range};
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn claim(text: &str, stamp: u64) -> Floating {
        Floating {
            ip: ip(text),
            pool: "vips".parse().unwrap(),
            stamp,
        }
    }

    /// That node's word that it has an address.
    fn word(stamp: u64, id: u8) -> Word {
        Word {
            stamp,
            node: node(id),
            ended: false,
        }
    }

    /// A member with one container.
    fn member(id: u8, own: &str, floating: &[Floating]) -> Member {
        let container = SheetContainer {
            name: "web".parse().unwrap(),
            ips: vec![ip(own)],
            floating: floating.to_vec(),
            labels: BTreeMap::new(),
        };
        Member {
            id: node(id),
            name: format!("host{id}").parse().unwrap(),
            reachable: true,
            sheet: Sheet {
                containers: vec![container],
                ..Sheet::default()
            },
        }
    }

    /// Node 1 owns everything.
    fn said(members: &[Member]) -> Holders {
        let pool = range().block("10.45.0.0/26".parse().unwrap()).unwrap();
        holders(&[pool], &range(), members, |_| Some(node(1)))
    }

    #[test]
    fn the_newest_claim_holds_and_of_two_as_new_that_of_the_greater_node() {
        let of = |first, second| {
            let one = member(1, "10.32.0.2", &[claim("10.45.0.9", first)]);
            let two = member(2, "10.36.0.2", &[claim("10.45.0.9", second)]);
            let orders = [[one.clone(), two.clone()], [two, one]].map(|members| said(&members));
            assert_eq!(orders[0], orders[1]);
            orders[0][&ip("10.45.0.9")]
        };
        assert_eq!(of(8, 7), word(8, 1));
        assert_eq!(of(7, 8), word(8, 2));
        assert_eq!(of(7, 7), word(7, 2));
    }

    #[test]
    fn only_addresses_of_pools_can_be_claimed_and_none_that_its_owner_has_given() {
        let claims = [
            "10.32.0.2",
            "10.32.0.1",
            "fd00::2",
            "10.45.0.64",
            "10.45.0.2",
            "fd00::d:2",
            "192.0.2.1",
            "10.45.0.63",
            "fd00::d:3f",
        ]
        .map(|text| claim(text, 9));
        // The pool was made over an address that the owner had given.
        let owner = member(1, "10.45.0.2", &[]);
        let liar = member(2, "10.36.0.2", &claims);
        let found = said(&[owner, liar.clone()]);
        let ips: Vec<String> = found.keys().map(ToString::to_string).collect();
        assert_eq!(ips, ["10.45.0.63", "fd00::d:3f"]);
        // Whoever is not the owner cannot keep an address from others by saying that it gave it.
        let other = member(3, "10.45.0.63", &[]);
        assert_eq!(said(&[liar, other])[&ip("10.45.0.63")], word(9, 2));
    }

    #[test]
    fn a_node_has_lost_what_another_claimed_later_and_what_is_in_no_pool() {
        let mut web = entry("web", "eth0", 1);
        web.attachment.also = vec![
            claim("10.45.0.7", 5),
            claim("10.45.0.8", 5),
            claim("10.45.0.9", 5),
        ];
        let mut book = Book::default();
        book.insert(web);
        let holders = Holders::from([(ip("10.45.0.7"), word(5, 1)), (ip("10.45.0.8"), word(6, 2))]);
        let lost: Vec<IpAddr> = lost(&book, &holders, node(1))
            .into_iter()
            .map(|(_, claim)| claim.ip)
            .collect();
        assert_eq!(lost, [ip("10.45.0.8"), ip("10.45.0.9")]);
        book.drop_claims(&lost);
        let also: Vec<&Floating> = book
            .entries()
            .flat_map(|entry| &entry.attachment.also)
            .collect();
        assert_eq!(also, [&claim("10.45.0.7", 5)]);
        assert_eq!(Book::from_bytes(&book.to_bytes()).unwrap(), book);
    }

    #[test]
    fn a_claim_that_ended_outdoes_older_ones_and_no_newer() {
        let mut ended = member(2, "10.36.0.2", &[]);
        let vip = ip("10.45.0.9");
        ended.sheet.ended = vec![EndedClaim { ip: vip, stamp: 6 }];
        let last = |stamp| {
            let back = member(1, "10.32.0.2", &[claim("10.45.0.9", stamp)]);
            said(&[back, ended.clone()])
        };
        assert_eq!(holder(&last(5), vip), None);
        assert_eq!(holder(&last(7), vip), Some(node(1)));
        // Whoever comes back loses it for good, and a claim that comes after is newer.
        let mut web = entry("web", "eth0", 1);
        web.attachment.also = vec![claim("10.45.0.9", 5)];
        let mut book = Book::default();
        book.insert(web);
        assert_eq!(lost(&book, &last(5), node(1)).len(), 1);
        assert_eq!(next_stamp(last(5).get(&vip), node(1), 3), Ok(7));
    }

    #[test]
    fn an_end_is_told_until_something_newer_is_said() {
        let mut book = Book::default();
        let now = 1000;
        book.ended_mut().note(&[claim("10.45.0.9", 6)], now);
        let month = now + 31 * 24 * 3_600_000;
        let mut told = |others: &[Member], now| {
            let mut me = member(2, "10.36.0.2", &[]);
            me.sheet.ended = book.ended().told().collect();
            let members = [&[me][..], others].concat();
            forget_ended(&mut book, (&said(&members), &members), node(2), now);
            book.ended().told().count()
        };
        let other = |stamp| member(1, "10.32.0.2", &[claim("10.45.0.9", stamp)]);
        assert_eq!(told(&[], now + 1), 1);
        assert_eq!(told(&[other(5)], month), 1, "it still outdoes a claim");
        assert_eq!(told(&[other(7)], now + 1), 0, "another is newer");
        book.ended_mut().note(&[claim("10.45.0.9", 6)], now);
        assert!(forget_ended(&mut book, (&said(&[]), &[]), node(2), month));
    }

    #[test]
    fn a_claim_is_newer_than_the_last_word_unless_nothing_is() {
        let ends = |node| Word {
            ended: true,
            ..word(9, node)
        };
        assert_eq!(next_stamp(None, node(2), 7), Ok(7));
        assert_eq!(next_stamp(Some(&word(5, 1)), node(2), 7), Ok(7));
        assert_eq!(next_stamp(Some(&ends(2)), node(2), 7), Ok(10));
        let last = word(u64::MAX, 1);
        assert_eq!(next_stamp(Some(&last), node(2), 7), Ok(u64::MAX));
        let last = word(u64::MAX, 3);
        assert_eq!(next_stamp(Some(&last), node(2), 7), Err(last));
        assert_eq!(next_stamp(Some(&word(u64::MAX, 2)), node(2), 7).ok(), None);
    }

    #[test]
    fn of_a_member_that_says_more_than_it_may_the_rest_does_not_count() {
        let many = |from: u8| (0..20).map(move |n| claim(&format!("10.45.0.{}", from + n), 9));
        let mut greedy = member(2, "10.36.0.2", &many(10).collect::<Vec<_>>());
        assert_eq!(said(std::slice::from_ref(&greedy)).len(), MAX_FLOATING);
        greedy.sheet.containers.clear();
        let end = |n: usize| EndedClaim {
            ip: ip(&format!("10.45.0.{}", if n < MAX_ENDED { 1 } else { 2 })),
            stamp: 9,
        };
        greedy.sheet.ended = (0..MAX_ENDED + 9).map(end).collect();
        assert_eq!(said(&[greedy]).len(), 1);
    }
}
