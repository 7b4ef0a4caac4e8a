//! What clients and endpoints can do to the relay of Services: any order of datagrams, answers, refusals, silence, changes
//! of endpoints and want of room.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use weave_model::{Affinity, Balance, Engine, TrafficPolicy};
use weave_proxy::relay::pick::{Balancer, Set};
use weave_proxy::relay::sessions::{Flow, SHORT, SILENT, STREAM, Sessions, YOUNG};
use weave_proxy::table::{Entry, Target};

use super::Input;

/// The most sessions of the world.
const MOST: usize = 5;
/// How many endpoints a datagram may be given to.
const TRIES: usize = 4;

/// The sessions of a front and the balancer behind it, as the relay's threads use them, beside a naive copy of what must
/// be so: who has a session, with which endpoint, since when, and whether it was answered.
struct World {
    sessions: Sessions<(SocketAddr, SocketAddr)>,
    balancer: Balancer,
    listed: BTreeSet<SocketAddr>,
    model: BTreeMap<SocketAddr, Known>,
    now: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    endpoint: SocketAddr,
    began: Instant,
    last: Instant,
    answered: bool,
    stream: bool,
}

impl Known {
    fn over(&self) -> Instant {
        self.last + if self.stream { STREAM } else { SHORT }
    }

    fn note(&mut self, now: Instant) {
        self.last = now;
        self.stream |= self.answered && now > self.began + YOUNG;
    }

    /// Since when it may make room.
    fn idle(&self) -> Instant {
        match (self.answered, self.stream) {
            (false, _) => self.last,
            (true, false) => self.last + SILENT,
            (true, true) => self.last + SHORT,
        }
    }
}

fn endpoint(number: u8) -> SocketAddr {
    SocketAddr::from(([10, 32, 0, number % 6], 53))
}

fn client(number: u8) -> SocketAddr {
    SocketAddr::from(([172, 16, 0, number % 8], 40_000))
}

const fn flow(client: SocketAddr) -> Flow {
    Flow {
        client,
        front: client,
    }
}

fn entry(input: &mut Input<'_>) -> Entry {
    let (which, how) = (input.u8(), input.u8());
    let all = (0..6).filter(|number| which & 1 << number != 0);
    let target = |number| Target {
        address: endpoint(number),
        local: number % 2 == 0,
    };
    let cluster: Vec<Target> = all.map(target).collect();
    Entry {
        fronts: Vec::new(),
        local: cluster.iter().copied().filter(|one| one.local).collect(),
        any: !cluster.is_empty(),
        serving: cluster.iter().map(|one| one.address.ip()).collect(),
        cluster,
        internal: TrafficPolicy::Cluster,
        external: TrafficPolicy::Cluster,
        affinity: if how & 4 == 0 {
            Affinity::None
        } else {
            Affinity::ClientIp { seconds: 20 }
        },
        source_ranges: Vec::new(),
        engine: Engine::Relay,
        balance: [Balance::Least, Balance::Latency, Balance::Maglev][usize::from(how % 3)],
        loopback: false,
    }
}

impl World {
    fn new(input: &mut Input<'_>) -> Self {
        let entry = entry(input);
        Self {
            sessions: Sessions::new(MOST),
            balancer: Balancer::new((&entry).into()),
            listed: entry.cluster.iter().map(|one| one.address).collect(),
            model: BTreeMap::new(),
            now: Instant::now(),
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let (what, who) = (input.u8(), client(input.u8()));
        match what % 6 {
            0 | 1 => self.ask(who, input),
            2 => self.answer(who),
            3 => self.refuse(who, input),
            4 => self.pass(Duration::from_secs(input.u8().into())),
            _ => self.change(input),
        }
        self.check();
    }

    fn pick(&mut self, who: SocketAddr, tried: &[SocketAddr], draw: u64) -> Option<SocketAddr> {
        let all = (Set::Cluster, |_: &Target| true);
        let picked = self.balancer.pick(who, all, tried, self.now, draw);
        let Some(picked) = picked else {
            assert!(self.listed.is_empty(), "somebody could be picked");
            return None;
        };
        assert!(self.listed.contains(&picked.address));
        let others = self.listed.iter().any(|one| !tried.contains(one));
        assert!(!others || !tried.contains(&picked.address), "one twice");
        Some(picked.address)
    }

    fn ask(&mut self, who: SocketAddr, input: &mut Input<'_>) {
        let draw = input.u64();
        if let Some(id) = self.sessions.find(&flow(who)) {
            self.sessions.handle_question(id, self.now);
            let known = self.model.get_mut(&who).expect("the model has it");
            known.note(self.now);
            return;
        }
        assert!(!self.model.contains_key(&who));
        if self.sessions.is_full() && !self.make_room() {
            return;
        }
        let Some(endpoint) = self.pick(who, &[], draw) else {
            return;
        };
        let (_, before) = self.sessions.begin(flow(who), (who, endpoint), self.now);
        assert!(before.is_none());
        let known = Known {
            endpoint,
            began: self.now,
            last: self.now,
            answered: false,
            stream: false,
        };
        self.model.insert(who, known);
    }

    /// Who makes room was not answered, if there is one, and has been idle for longest; one that works does not.
    fn make_room(&mut self) -> bool {
        let way = |known: &Known| (known.answered, known.idle());
        let first = self.model.values().map(way).min().expect("it is full");
        let may = !first.0 || first.1 <= self.now;
        let Some((who, _)) = self.sessions.make_room(self.now) else {
            assert!(!may, "somebody had to make room");
            return false;
        };
        assert!(may && way(&self.model[&who]) == first);
        self.ended(who);
        true
    }

    fn ended(&mut self, who: SocketAddr) {
        let known = self.model.remove(&who).expect("the model has it");
        self.balancer.handle_end(known.endpoint);
    }

    fn answer(&mut self, who: SocketAddr) {
        let Some(id) = self.sessions.find(&flow(who)) else {
            return;
        };
        let known = self.model.get_mut(&who).expect("the model has it");
        let is_first = self.sessions.handle_answer(id, self.now);
        assert_eq!(is_first, !known.answered);
        let took = self.now.saturating_duration_since(known.last);
        known.note(self.now);
        known.answered = true;
        let endpoint = known.endpoint;
        self.balancer
            .handle_answer(endpoint, who.ip(), took, self.now);
    }

    fn refuse(&mut self, who: SocketAddr, input: &mut Input<'_>) {
        let Some(id) = self.sessions.find(&flow(who)) else {
            return;
        };
        let mut tried = Vec::new();
        let refusals = 1 + usize::from(input.u8()) % TRIES;
        for _ in 0..refusals {
            let endpoint = self.model[&who].endpoint;
            self.balancer.handle_end(endpoint);
            self.balancer.handle_failure(endpoint, self.now);
            tried.push(endpoint);
            match self.pick(who, &tried, input.u64()) {
                Some(next) => {
                    self.model.get_mut(&who).expect("the model has it").endpoint = next;
                    self.sessions.get_mut(id).expect("it is there").1 = next;
                }
                None => {
                    self.sessions.end(id);
                    self.model.remove(&who);
                    return;
                }
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        while let Some((who, _)) = self.sessions.poll_over(self.now) {
            assert!(self.model[&who].over() <= self.now, "before its time");
            self.ended(who);
        }
        assert!(self.model.values().all(|known| known.over() > self.now));
        let first = self.model.values().map(Known::over).min();
        assert!(first.is_none() || self.sessions.poll_timeout() <= first);
    }

    fn change(&mut self, input: &mut Input<'_>) {
        let entry = entry(input);
        self.listed = entry.cluster.iter().map(|one| one.address).collect();
        self.balancer.update((&entry).into(), self.now);
        for id in self.sessions.ids() {
            let (who, endpoint) = *self.sessions.get_mut(id).expect("it is there");
            if !self.listed.contains(&endpoint) {
                self.sessions.end(id);
                self.ended(who);
            }
        }
    }

    /// What is open at the endpoints is what sessions have, and nothing is kept of those that are gone.
    fn check(&mut self) {
        assert!(self.sessions.len() <= MOST);
        assert_eq!(self.sessions.len(), self.model.len());
        let seen = self.balancer.seen(self.now);
        for one in &seen {
            let open = self
                .model
                .values()
                .filter(|known| known.endpoint == one.address);
            assert_eq!(one.open as usize, open.count(), "{one:?}");
            assert!(one.open > 0 || self.listed.contains(&one.address));
        }
        let ejected = seen
            .iter()
            .filter(|one| one.ejected && self.listed.contains(&one.address));
        assert!(ejected.count() <= self.listed.len());
    }
}

pub(super) fn sessions(data: &[u8]) {
    let mut input = Input(data);
    let mut world = World::new(&mut input);
    while !input.is_empty() {
        world.step(&mut input);
    }
}

pub(super) fn sessions_seeds() -> Vec<Vec<u8>> {
    let ask = |who: u8| [&[0, who][..], &[who.wrapping_mul(37); 8]].concat();
    let all = |balance: u8| vec![0x3f, balance];
    let many: Vec<u8> = (0..8).flat_map(ask).collect();
    vec![
        [all(0), many.clone()].concat(),
        [all(1), many.clone(), vec![2, 1, 2, 2, 4, 0, 31], ask(7)].concat(),
        [
            all(2),
            ask(1),
            vec![3, 1, 3],
            vec![9; 40],
            vec![5, 0, 0x01, 4],
        ]
        .concat(),
        [all(4), many, vec![4, 0, 200, 5, 0, 0, 0], ask(3)].concat(),
    ]
}
