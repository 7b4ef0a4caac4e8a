//! The rules of deeds as a small model, explored exhaustively: every order of losses, duplicates, crashes, one disk that
//! is rolled back, one removal and one copy of a node that is started beside it, for three nodes and one block.
//!
//! The model is not the code: it is what the code has to keep to. That the model can tell right from wrong is shown by
//! the mutants, each of which breaks one rule and is caught; the code itself is held against the same invariant in
//! virtual time (`tests/sim`). What counts is [`State::users`]: who would use the block now.
//!
//! The rules: a gift is saved before it is sent; a grant is believed if its version is the highest seen and its donor
//! signed it in its present boot; a block is used once its title is saved; a node whose disk was rolled back uses and
//! gives nothing before all others have told it what they know, and nobody tells while something is yet to be saved; an
//! heir takes a block when all living nodes know of the removal, and only if the newest deed of all that they know names
//! the removed node; the first node may renew the block while it uses it, by a version above all before, and forgets what
//! that makes void; of two processes with one identity the one that began later gives nothing before they have met, and
//! nothing is its own from then on, and the other goes on when all have told what they know.
//!
//! What two such processes use before they have met nobody can know, so the second one counts from then on.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use stateright::{Checker, Model, Property};

const NODES: usize = 3;
/// The node that is removed, and the one that inherits.
const VICTIM: usize = 2;
const HEIR: usize = 1;
/// A second process with the identity and a disk of the first node.
const TWIN: usize = NODES;
const PROCESSES: usize = NODES + 1;

/// Who a process says it is.
const fn identity(process: usize) -> usize {
    process % NODES
}

/// Counter, then boot: as in `weave_router::mesh::deed::Version`.
type Version = (u8, u8);

/// A deed of the block: who has it by which version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Deed {
    version: Version,
    owner: usize,
    donor: usize,
}

/// What a node has on its disk, or in memory: the newest deed that it received, and the newest that it signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Book {
    title: Option<Deed>,
    gift: Option<Deed>,
    knows_removal: bool,
}

impl Book {
    fn newest(&self) -> Option<Deed> {
        self.title.max(self.gift)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Node {
    disk: Book,
    memory: Book,
    boot: u8,
    /// Who has yet to answer before it goes on; a bit for each node.
    barrier: u8,
    /// It does not run, or gave way.
    out: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    nodes: [Node; PROCESSES],
    /// Grants that were sent: each may arrive at any time, again and again, or never.
    wire: Vec<Deed>,
    /// A copy of the first node's disk.
    copy: Option<Book>,
    crashes: u8,
    rolled_back: bool,
    removed: bool,
    inherited: bool,
    cloned: bool,
    /// The two processes with one identity know of each other.
    met: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Give(usize, usize),
    Save(usize),
    Send(usize),
    Arrive(Deed, usize),
    Crash(usize),
    Copy,
    RollBack,
    Answer(usize, usize),
    Remove,
    Hear(usize),
    Inherit,
    Renew(usize),
    Clone,
    Meet,
}

/// Which rule is broken, and what may happen at all.
#[derive(Clone, Copy, Debug, Default)]
struct Rules {
    send_before_save: bool,
    any_version: bool,
    counter_only: bool,
    any_boot: bool,
    barrier_of_one: bool,
    no_barrier: bool,
    answer_unsaved: bool,
    takeover_at_once: bool,
    renew_below: bool,
    renew_unused: bool,
    clone_gives: bool,
    clone_stays: bool,
    clone_believes_its_disk: bool,
    with_rollback: bool,
    with_removal: bool,
    with_renewal: bool,
    with_clone: bool,
}

impl State {
    /// Whether a node would use the block now.
    fn uses(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        let title = node
            .disk
            .title
            .filter(|_| node.memory.title == node.disk.title);
        let kept = |deed: &Deed| node.memory.gift.is_none_or(|gift| gift < *deed);
        let owns = title
            .filter(kept)
            .is_some_and(|deed| deed.owner == identity(n));
        owns && node.barrier == 0 && !node.out
    }

    /// Of two processes with one identity that have not met, the one that began later has just begun: it gives nothing.
    fn pauses(&self, n: usize) -> bool {
        let later = self.nodes[0].boot > self.nodes[TWIN].boot;
        self.cloned && !self.met && (n == TWIN || n == 0 && later)
    }

    /// Everybody has cut it off: what it uses reaches nobody.
    fn is_fenced(&self, n: usize) -> bool {
        let knows = |m: &usize| self.nodes[*m].disk.knows_removal;
        n == VICTIM && (0..NODES).filter(|m| *m != VICTIM).all(|m| knows(&m))
    }

    fn users(&self) -> Vec<usize> {
        let counts = |n: &usize| *n != TWIN || self.met;
        (0..PROCESSES)
            .filter(|n| counts(n) && self.uses(*n) && !self.is_fenced(*n))
            .collect()
    }
}

impl Model for Rules {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let genesis = Deed {
            version: (1, 0),
            owner: 0,
            donor: 0,
        };
        let book = |n| Book {
            title: (n == 0).then_some(genesis),
            ..Book::default()
        };
        let node = |n| Node {
            disk: book(n),
            memory: book(n),
            // No two nodes ever have the same nonce.
            boot: 1 + n as u8,
            barrier: 0,
            out: n == TWIN,
        };
        vec![State {
            nodes: std::array::from_fn(node),
            wire: Vec::new(),
            copy: None,
            crashes: 0,
            rolled_back: false,
            removed: false,
            inherited: false,
            cloned: false,
            met: false,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        let running = (0..PROCESSES).filter(|n| !state.nodes[*n].out);
        for n in running.clone() {
            let others = (0..NODES).filter(|m| *m != identity(n));
            steps.extend(others.clone().map(|to| Step::Give(n, to)));
            steps.extend([Step::Save(n), Step::Send(n), Step::Crash(n), Step::Hear(n)]);
            steps.extend(others.map(|m| Step::Answer(n, m)));
        }
        for deed in &state.wire {
            let theirs = running.clone().filter(|n| identity(*n) == deed.owner);
            steps.extend(theirs.map(|n| Step::Arrive(*deed, n)));
        }
        if self.with_rollback {
            steps.extend([Step::Copy, Step::RollBack]);
        }
        if self.with_removal {
            steps.extend([Step::Remove, Step::Inherit]);
        }
        if self.with_renewal {
            let first = running.filter(|n| identity(*n) == 0);
            steps.extend(first.map(Step::Renew));
        }
        if self.with_clone {
            steps.extend([Step::Clone, Step::Meet]);
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        self.take(&mut state, step)?;
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        if self.no_barrier {
            // Without a barrier two may use the block until they meet; then one must win.
            return vec![Property::always(
                "of two users one wins",
                |_, state: &State| {
                    let users = state.users();
                    let version = |n: &usize| state.nodes[*n].disk.title.map(|deed| deed.version);
                    users.len() < 2 || version(&users[0]) != version(&users[1])
                },
            )];
        }
        vec![Property::always("one user at most", |_, state: &State| {
            state.users().len() < 2
        })]
    }
}

impl Rules {
    fn version(&self, counter: u8, boot: u8) -> Version {
        (counter, if self.counter_only { 0 } else { boot })
    }

    /// `None` for what cannot happen now.
    fn take(&self, state: &mut State, step: Step) -> Option<()> {
        match step {
            Step::Give(n, to) => self.give(state, n, to),
            Step::Save(n) => {
                state.nodes[n].disk = state.nodes[n].memory;
                Some(())
            }
            Step::Send(n) => {
                let node = &state.nodes[n];
                let gift = node.memory.gift?;
                if !self.send_before_save && node.disk.gift != Some(gift) {
                    return None;
                }
                if !state.wire.contains(&gift) {
                    state.wire.push(gift);
                    state.wire.sort_unstable();
                }
                Some(())
            }
            Step::Arrive(deed, n) => self.arrive(state, deed, n),
            Step::Crash(n) => {
                state.crashes += 1;
                (state.crashes <= 2).then(|| self.restart(state, n))
            }
            Step::Copy => {
                let first = state.copy.is_none() && !state.rolled_back;
                state.copy = Some(state.nodes[0].disk);
                first.then_some(())
            }
            Step::RollBack => {
                state.nodes[0].disk = state.copy.take()?;
                state.rolled_back = true;
                self.restart(state, 0);
                if !self.no_barrier {
                    state.nodes[0].barrier = 0b110;
                }
                Some(())
            }
            Step::Answer(n, m) => self.answer(state, n, m),
            Step::Remove => {
                state.removed = true;
                state.nodes[HEIR].memory.knows_removal = true;
                Some(())
            }
            Step::Hear(n) => {
                let heard = state.nodes[HEIR].disk.knows_removal && n != VICTIM;
                state.nodes[n].memory.knows_removal |= heard;
                Some(())
            }
            Step::Inherit => self.inherit(state),
            Step::Renew(n) => self.renew(state, n),
            Step::Clone => self.clone_first(state),
            Step::Meet => self.meet(state),
        }
    }

    /// A copy of the first node's disk, as it is now, is started beside it.
    fn clone_first(&self, state: &mut State) -> Option<()> {
        let first = !state.cloned;
        state.cloned = true;
        state.nodes[TWIN] = Node {
            boot: state.nodes[TWIN].boot,
            ..state.nodes[0]
        };
        self.restart(state, TWIN);
        first.then_some(())
    }

    /// The two processes hear of each other by what members know.
    fn meet(&self, state: &mut State) -> Option<()> {
        if !state.cloned || state.met {
            return None;
        }
        state.met = true;
        let (earlier, later) = match state.nodes[0].boot < state.nodes[TWIN].boot {
            true => (0, TWIN),
            false => (TWIN, 0),
        };
        state.nodes[later].out = !self.clone_stays;
        if !self.clone_believes_its_disk {
            state.nodes[earlier].barrier = 0b110;
        }
        Some(())
    }

    fn give(&self, state: &mut State, n: usize, to: usize) -> Option<()> {
        let cut = state.nodes[n].memory.knows_removal && to == VICTIM;
        let title = state.nodes[n].disk.title?;
        let paused = state.pauses(n) && !self.clone_gives;
        if !state.uses(n) || title.version.0 >= 4 || cut || paused {
            return None;
        }
        let node = &mut state.nodes[n];
        node.memory.gift = Some(Deed {
            version: self.version(title.version.0 + 1, node.boot),
            owner: to,
            donor: identity(n),
        });
        Some(())
    }

    fn arrive(&self, state: &mut State, deed: Deed, n: usize) -> Option<()> {
        let runs = |node: &Node| !node.out && node.boot == deed.version.1;
        let donors = (0..PROCESSES).filter(|n| identity(*n) == deed.donor);
        let of_this_boot = donors.map(|n| &state.nodes[n]).any(runs);
        let node = &mut state.nodes[n];
        let known = node.memory.newest().map(|newest| newest.version);
        let newer = self.any_version || known < Some(deed.version);
        let present = self.any_boot || self.counter_only || of_this_boot;
        let cut = node.memory.knows_removal && deed.donor == VICTIM;
        if !newer || !present || cut || node.barrier != 0 {
            return None;
        }
        if self.any_version {
            node.memory.gift = None;
        }
        node.memory.title = Some(deed);
        Some(())
    }

    /// Comes up again with what the disk says; signs anew what it had signed and knows of no answer to.
    fn restart(&self, state: &mut State, n: usize) {
        let twins = [0, TWIN].map(|twin| state.nodes[twin].boot / PROCESSES as u8);
        let node = &mut state.nodes[n];
        node.out = false;
        // Of two with one identity the later one has the higher nonce.
        node.boot += PROCESSES as u8;
        while identity(n) == 0 && node.boot / PROCESSES as u8 <= twins[0].max(twins[1]) {
            node.boot += PROCESSES as u8;
        }
        node.memory = node.disk;
        if let Some(gift) = &mut node.memory.gift {
            gift.version = self.version(gift.version.0, node.boot);
        }
    }

    /// A node behind the barrier learns what another has on its disk.
    fn answer(&self, state: &mut State, n: usize, m: usize) -> Option<()> {
        let told = state.nodes[m].disk;
        if told != state.nodes[m].memory && !self.answer_unsaved {
            return None;
        }
        let node = &mut state.nodes[n];
        if node.barrier & 1 << m == 0 {
            return None;
        }
        for deed in [told.title, told.gift].into_iter().flatten() {
            if deed.owner == n && Some(deed) > node.memory.title {
                node.memory.title = Some(deed);
            } else if deed.owner != n && Some(deed) > node.memory.newest() {
                node.memory.gift = Some(deed);
            }
        }
        node.disk = node.memory;
        node.barrier &= !(1 << m);
        if self.barrier_of_one {
            node.barrier = 0;
        }
        Some(())
    }

    /// The first node has the key of the cluster.
    fn renew(&self, state: &mut State, n: usize) -> Option<()> {
        let title = state.nodes[n].disk.title?;
        let used = state.uses(n) || self.renew_unused;
        let paused = state.pauses(n);
        if !used || paused || title.version.0 == 1 || title.version.0 >= 4 {
            return None;
        }
        let node = &mut state.nodes[n];
        let counter = match (self.renew_below, self.renew_unused) {
            (true, _) => 1,
            (false, true) => title.version.0 + 2,
            (false, false) => title.version.0 + 1,
        };
        node.memory.title = Some(Deed {
            version: self.version(counter, node.boot),
            owner: 0,
            donor: 0,
        });
        if node.memory.gift < node.memory.title || self.renew_below {
            node.memory.gift = None;
        }
        Some(())
    }

    fn inherit(&self, state: &mut State) -> Option<()> {
        let knows = |n: usize| state.nodes[n].disk.knows_removal;
        let living = || (0..NODES).filter(|n| *n != VICTIM);
        let ready = if self.takeover_at_once {
            knows(HEIR)
        } else {
            living().all(knows) && living().all(|n| state.nodes[n].disk == state.nodes[n].memory)
        };
        if !ready || state.inherited {
            return None;
        }
        let newest = living()
            .filter_map(|n| state.nodes[n].disk.newest())
            .max()?;
        if newest.owner != VICTIM {
            return None;
        }
        state.inherited = true;
        let heir = &mut state.nodes[HEIR];
        let deed = Deed {
            version: self.version(newest.version.0 + 1, heir.boot),
            owner: HEIR,
            donor: VICTIM,
        };
        (heir.memory.title, heir.disk.title) = (Some(deed), Some(deed));
        Some(())
    }
}

/// How long all of it may take, mutants included: a model that nobody waits for is not kept.
const MOST_SECONDS: u64 = 60;

/// What this process has used of all processors, which does not depend on who else does.
fn cpu_seconds() -> u64 {
    const TICKS: u64 = 100;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let used = fields.split(' ').skip(11).take(2);
    used.map(|ticks| ticks.parse::<u64>().unwrap()).sum::<u64>() / TICKS
}

#[track_caller]
fn check_time() {
    let seconds = cpu_seconds();
    assert!(seconds < MOST_SECONDS, "{seconds} s of CPU so far");
}

/// Explores all of it.
#[track_caller]
fn holds(rules: Rules) {
    let checker = rules.checker().threads(2).spawn_bfs().join();
    let broken = checker.discoveries();
    let story = broken
        .values()
        .next()
        .map(|path| path.clone().into_actions());
    assert!(story.is_none(), "{rules:?}: {story:?}");
    assert!(checker.unique_state_count() > 1000, "it was explored");
    println!("{rules:?}: {} states", checker.unique_state_count());
    check_time();
}

/// Finds the shortest way to break it.
#[track_caller]
fn breaks(rules: Rules) {
    let checker = rules.checker().threads(2).spawn_bfs().join();
    assert!(
        !checker.discoveries().is_empty(),
        "{rules:?} went unnoticed"
    );
    check_time();
}

const ROLLBACK: Rules = Rules {
    send_before_save: false,
    any_version: false,
    counter_only: false,
    any_boot: false,
    barrier_of_one: false,
    no_barrier: false,
    answer_unsaved: false,
    takeover_at_once: false,
    renew_below: false,
    renew_unused: false,
    clone_gives: false,
    clone_stays: false,
    clone_believes_its_disk: false,
    with_rollback: true,
    with_removal: false,
    with_renewal: false,
    with_clone: false,
};

const REMOVAL: Rules = Rules {
    with_rollback: false,
    with_removal: true,
    ..ROLLBACK
};

const CLONE: Rules = Rules {
    with_rollback: false,
    with_clone: true,
    ..ROLLBACK
};

#[test]
fn one_node_at_most_uses_a_block_whatever_crashes() {
    holds(Rules::default());
}

#[test]
fn nor_when_a_disk_is_rolled_back() {
    holds(ROLLBACK);
}

#[test]
fn nor_when_a_node_is_removed() {
    holds(REMOVAL);
}

#[test]
fn nor_when_a_copy_of_a_node_is_started() {
    holds(CLONE);
}

#[test]
fn a_copy_that_gives_at_once_is_caught() {
    breaks(Rules {
        clone_gives: true,
        ..CLONE
    });
}

#[test]
fn a_copy_that_does_not_give_way_is_caught() {
    breaks(Rules {
        clone_stays: true,
        ..CLONE
    });
}

#[test]
fn a_copy_that_stays_and_believes_its_disk_is_caught() {
    breaks(Rules {
        clone_believes_its_disk: true,
        ..CLONE
    });
}

#[test]
fn nor_when_what_came_back_is_renewed() {
    let with_renewal = true;
    for rules in [Rules::default(), ROLLBACK, REMOVAL, CLONE] {
        holds(Rules {
            with_renewal,
            ..rules
        });
    }
}

#[test]
fn a_renewal_below_what_came_before_is_caught() {
    breaks(Rules {
        renew_below: true,
        with_renewal: true,
        ..ROLLBACK
    });
}

#[test]
fn a_renewal_of_what_is_another_s_is_caught() {
    breaks(Rules {
        renew_unused: true,
        with_renewal: true,
        ..Rules::default()
    });
}

#[test]
fn without_a_barrier_the_boot_nonce_still_makes_one_win() {
    holds(Rules {
        no_barrier: true,
        ..ROLLBACK
    });
}

#[test]
fn a_grant_that_is_sent_before_it_is_saved_is_caught() {
    breaks(Rules {
        send_before_save: true,
        ..Rules::default()
    });
}

#[test]
fn grants_without_versions_are_caught() {
    breaks(Rules {
        any_version: true,
        ..Rules::default()
    });
}

#[test]
fn versions_that_only_count_are_caught() {
    breaks(Rules {
        counter_only: true,
        no_barrier: true,
        ..ROLLBACK
    });
}

#[test]
fn a_barrier_with_one_other_is_caught() {
    breaks(Rules {
        barrier_of_one: true,
        ..ROLLBACK
    });
}

#[test]
fn an_answer_that_leaves_out_what_is_yet_to_be_saved_is_caught() {
    breaks(Rules {
        answer_unsaved: true,
        ..ROLLBACK
    });
}

#[test]
fn grants_of_an_earlier_boot_are_caught() {
    breaks(Rules {
        any_boot: true,
        ..ROLLBACK
    });
}

#[test]
fn an_heir_that_takes_over_at_once_is_caught() {
    breaks(Rules {
        takeover_at_once: true,
        ..REMOVAL
    });
}
