//! Everything that can happen, at random, from a seed: in the end the two nodes must talk again.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use weave_model::Drop;

use crate::net::{CLUSTER, Link, Net, address, secret};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

struct Storm {
    net: Net,
    rng: StdRng,
    epoch: u32,
    boot: u64,
    number: u64,
}

impl Storm {
    fn new(seed: u64) -> Self {
        let net = Net::pair(seed, Link::default());
        Self {
            net,
            rng: StdRng::seed_from_u64(seed),
            epoch: 1,
            boot: 10,
            number: 0,
        }
    }

    /// One host takes up the cluster's newest secret.
    fn take_up(&mut self, host: usize) {
        let previous = (self.epoch > 1).then(|| secret(self.epoch - 1));
        self.net.hosts[host].sessions.set_cluster(
            CLUSTER,
            secret(self.epoch),
            previous,
            self.net.now,
        );
        self.net.flush(host);
    }

    fn restart(&mut self, host: usize) {
        self.boot += 1;
        self.net.restart(host, self.boot);
        self.take_up(host);
        if self.rng.random_bool(0.7) {
            self.net.connect(host, 1 - host);
        }
    }

    fn roam(&mut self, host: usize) {
        let port = 1024 + self.rng.random_range(0..60_000);
        self.net.hosts[host].address = address(&format!("198.51.100.{}:{port}", host + 1));
    }

    fn talk(&mut self, host: usize) {
        for _ in 0..self.rng.random_range(1..20) {
            self.number += 1;
            let lane = self.rng.random_range(0..2);
            self.net.data(host, lane, self.number);
            self.net.run(self.rng.random_range(0..50) * MS);
        }
    }

    /// Wears out a lane's keys to a random degree.
    fn wear(&mut self, host: usize) {
        if let Some(outbound) = self.net.outbound(host) {
            outbound.reserve(
                self.rng.random_range(0..2),
                self.rng.random_range(1..outbound.limit()),
            );
        }
    }

    fn step(&mut self) {
        let host = self.rng.random_range(0..2);
        match self.rng.next_u32() % 12 {
            0 => self.restart(host),
            1 => self.roam(host),
            2 => self.wear(host),
            3 => {
                // The other host learns of a rotation at once or at the next one.
                self.epoch += 1;
                self.take_up(host);
                self.take_up(1 - host);
            }
            4 => self.net.link = Link::lossy(self.rng.random_range(0.0..0.6)),
            5 => {
                self.net.link = Link {
                    loss: 1.0,
                    ..Link::default()
                }
            }
            6 => self.net.link = Link::default(),
            7 => self.net.connect(host, 1 - host),
            8 => {
                let peer = self.net.hosts[1 - host].id;
                self.net.hosts[host]
                    .sessions
                    .remove_peer(peer, self.net.now);
                self.net.flush(host);
                self.net.introduce(host, 1 - host);
            }
            _ => self.talk(host),
        }
        let most = *[200, 2_000, 20_000, 100_000]
            .get(self.rng.random_range(0..4))
            .unwrap();
        self.net.run(self.rng.random_range(0..most) * MS);
        self.check();
    }

    fn check(&self) {
        for host in &self.net.hosts {
            assert!(
                host.inbound.len() <= 5,
                "sessions pile up: {}",
                host.inbound.len()
            );
            let mut received = host.received.clone();
            received.sort_unstable();
            received.dedup();
            assert_eq!(
                received.len(),
                host.received.len(),
                "a packet was received twice"
            );
        }
        let lost = |why: &Drop| matches!(why, Drop::UnknownSession | Drop::Expired);
        assert!(self.net.refused.iter().all(lost), "{:?}", self.net.refused);
    }
}

#[test]
fn after_every_storm_they_talk() {
    for seed in 0..60 {
        let mut storm = Storm::new(seed);
        for _ in 0..60 {
            storm.step();
        }
        let net = &mut storm.net;
        net.link = Link::default();
        for host in 0..2 {
            net.introduce(host, 1 - host);
            net.connect(host, 1 - host);
        }
        // The mesh pings its peers; whoever gets no answer shakes hands anew.
        for _ in 0..40 {
            for host in 0..2 {
                let peer = net.hosts[1 - host].id;
                net.hosts[host].sessions.send_control(peer, b"?", net.now);
                net.flush(host);
            }
            net.run(SECOND);
        }
        assert!(net.paired(), "seed {seed}: no session");
        net.hosts.iter_mut().for_each(|host| host.received.clear());
        assert!(
            net.data(0, 0, 1) && net.data(1, 0, 2) && net.data(0, 1, 3),
            "seed {seed}"
        );
        net.run(SECOND);
        let received = [0, 1].map(|host| net.hosts[host].received.clone());
        assert_eq!(received, [vec![2], vec![1, 3]], "seed {seed}");
    }
}
