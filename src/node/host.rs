//! This host's part: forwarding, the cluster's routes, the rules, and the gap in other people's firewalls.
//!
//! [`HostSide::ensure`] looks at all of it and puts right what is not; it runs at start, after every change of the
//! cluster and every few seconds. What cannot be put right becomes an [`Obstacle`] in the node's status, and the rest
//! goes on.

use std::time::Duration;

use tokio::task::{JoinError, JoinHandle};
use tokio::time::timeout;
use weave_linux::nft::{self, Found};
use weave_model::ClusterRange;
use weave_model::api::{Code, Refusal};
use weave_router::attach::{self, Host, HostSpec};
use weave_router::hostfw::{self, HostFirewall};
use weave_router::publish::{PublishRules, Target};
use weave_router::rules::{AttachRules, NetworkRules};

use super::containers;
use crate::config::Config;
use crate::obstacle::Obstacle;

/// The router's TUN device.
pub(crate) const TUN: &str = "weave0";

/// What the names of the host's ends of containers' pairs begin with.
const VETHS: &str = "wv";

/// What helps when the kernel refuses our rules.
pub(super) const RULES_FIX: &str = "look at the log of the kernel, and at: nft list ruleset";

/// How long the desk waits for the host's firewall programs.
const FIREWALL_WAIT: Duration = Duration::from_secs(1);

/// The host, and our table of rules on it.
pub(super) struct HostSide {
    /// Devices, addresses and routes.
    pub(super) host: Host,
    nft: nft::Socket,
    firewall: Firewall,
    mtu: u16,
    port: u16,
    /// TCP ports of the node that containers must not reach: metrics and the page.
    closed_tcp: Vec<u16>,
    /// The networks besides the default one.
    pub(super) networks: Vec<NetworkRules>,
    /// Whether the host has IPv6, as it was seen last.
    ipv6: bool,
}

/// The way through other people's firewalls.
enum Firewall {
    Idle(HostFirewall),
    /// At work on a thread of its own.
    Working(JoinHandle<Worked>),
    /// Its thread panicked, which was reported when it happened.
    Lost,
}

type Worked = (HostFirewall, Result<Vec<String>, hostfw::Error>);

/// Takes back what was changed in the host's firewall, on a thread of its own.
fn close(mut firewall: HostFirewall) -> JoinHandle<Worked> {
    tokio::task::spawn_blocking(move || {
        let done = firewall.remove();
        (firewall, done)
    })
}

fn or_panic(ended: Result<Worked, JoinError>) -> Worked {
    ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

impl HostSide {
    /// Opens what is needed to change the host of the calling thread's network namespace. Changes nothing.
    pub(super) fn open(config: &Config) -> Result<Self, Obstacle> {
        let tun = TUN.parse().expect("a short word is an interface name");
        let host = Host::open(tun)
            .map_err(|error| Obstacle::new(error.to_string(), "look at the log of the kernel"))?;
        let nft = nft::Socket::open().map_err(|error| {
            let cause = format!("missing kernel feature: nftables: {error}");
            Obstacle::new(cause, "load the kernel module: modprobe nf_tables")
        })?;
        let firewall = Firewall::Idle(HostFirewall::new(TUN, VETHS));
        Ok(Self {
            host,
            nft,
            firewall,
            mtu: config.overlay.mtu,
            port: config.overlay.listen.port(),
            closed_tcp: config.sight.ports(),
            networks: Vec::new(),
            ipv6: true,
        })
    }

    /// Whether the host has IPv6.
    pub(super) const fn ipv6(&self) -> bool {
        self.ipv6
    }

    /// Puts right what is not as it should be for the cluster; what cannot be is returned.
    pub(super) async fn ensure(
        &mut self,
        range: ClusterRange,
        exposed: Option<u32>,
    ) -> Vec<Obstacle> {
        let mut obstacles = Vec::new();
        let spec = HostSpec {
            range,
            mtu: self.mtu.into(),
            exposed,
        };
        match self.host.prepare(&spec).await {
            Ok(prepared) => {
                self.ipv6 = prepared.ipv6;
                if !prepared.changed.is_empty() {
                    tracing::info!(changes = ?prepared.changed, "put right on this host");
                }
                obstacles.extend(prepared.overlap.map(|overlap| obstacle(&overlap)));
            }
            Err(error) => obstacles.push(obstacle(&error)),
        }
        if let Err(error) = self.ensure_rules(range) {
            obstacles.push(Obstacle::new(error.to_string(), RULES_FIX));
        }
        obstacles.extend(self.ensure_way_through().await);
        obstacles
    }

    /// Runs the host's own firewall programs on a thread of their own. They may wait for each other's lock for seconds:
    /// what is not done by [`FIREWALL_WAIT`] is seen at the next look.
    async fn ensure_way_through(&mut self) -> Option<Obstacle> {
        let mut work = match std::mem::replace(&mut self.firewall, Firewall::Lost) {
            Firewall::Idle(mut firewall) => tokio::task::spawn_blocking(move || {
                let done = firewall.ensure();
                (firewall, done)
            }),
            Firewall::Working(work) => work,
            Firewall::Lost => return None,
        };
        let Ok(ended) = timeout(FIREWALL_WAIT, &mut work).await else {
            self.firewall = Firewall::Working(work);
            return None;
        };
        let (firewall, done) = ended.ok()?;
        self.firewall = Firewall::Idle(firewall);
        match done {
            Ok(commands) => {
                for command in commands {
                    tracing::info!(command, "changed the host's firewall");
                }
                None
            }
            Err(error) => {
                let cause = format!("the host's firewall may drop containers' packets: {error}");
                let fix = format!(
                    "accept what is forwarded to and from {TUN} and {VETHS}+ in that firewall"
                );
                Some(Obstacle::new(cause, fix))
            }
        }
    }

    /// Takes off the host what the cluster needed there: routes, addresses, rules, the way through other firewalls. The
    /// TUN device stays, it is the router's. What fails does not stop the rest.
    pub(super) async fn leave(&mut self, range: ClusterRange) -> Vec<String> {
        let errors = self.host.clear().await;
        let mut failed: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let removed = self.rules(range).rule_set().remove(&self.nft);
        failed.extend(removed.err().map(|error| error.to_string()));
        match std::mem::replace(&mut self.firewall, Firewall::Lost) {
            Firewall::Idle(firewall) => self.firewall = Firewall::Working(close(firewall)),
            // What is being made now is removed behind it.
            Firewall::Working(work) => {
                self.firewall = Firewall::Working(tokio::spawn(async move {
                    let (firewall, _) = or_panic(work.await);
                    or_panic(close(firewall).await)
                }));
            }
            Firewall::Lost => {}
        }
        failed
    }

    /// Looks at our table of rules, and changes nothing.
    pub(super) fn find_rules(&self, range: ClusterRange) -> Result<Found, nft::Error> {
        self.rules(range).rule_set().check(&self.nft)
    }

    fn rules(&self, range: ClusterRange) -> AttachRules {
        AttachRules {
            tun: TUN.to_owned(),
            veths: VETHS.to_owned(),
            range,
            networks: self.networks.clone(),
            closed_udp: vec![self.port],
            closed_tcp: self.closed_tcp.clone(),
        }
    }

    /// Makes the table of published ports what they ask for; without any there is none.
    pub(super) fn ensure_published(
        &self,
        range: ClusterRange,
        targets: Vec<Target>,
    ) -> Result<(), nft::Error> {
        let needless = targets.is_empty();
        let rules = published(range, targets);
        if !needless {
            return rules.ensure(&self.nft).map(drop);
        }
        match self.nft.table(rules.table())? {
            Some(_) => rules.remove(&self.nft),
            None => Ok(()),
        }
    }

    /// Looks at the table of published ports, and changes nothing.
    pub(super) fn find_published(
        &self,
        range: ClusterRange,
        targets: Vec<Target>,
    ) -> Result<Found, nft::Error> {
        published(range, targets).check(&self.nft)
    }

    /// Makes sure that the rules are in place before a container comes: without them it could use another's address and
    /// reach the node's own ports.
    pub(super) fn guard(&self, range: ClusterRange) -> Result<(), Refusal> {
        self.ensure_rules(range).map_err(|error| {
            let cause = format!("the rules that guard the other containers cannot be made, so nothing is attached: {error}");
            let fix = format!("{RULES_FIX}; then attach again");
            Refusal::new(Code::Failed, cause, fix)
        })
    }

    fn ensure_rules(&self, range: ClusterRange) -> Result<(), nft::Error> {
        match self.rules(range).rule_set().ensure(&self.nft)? {
            Found::Right => {}
            found => tracing::info!(?found, table = weave_router::rules::TABLE, "made the rules"),
        }
        Ok(())
    }
}

fn published(range: ClusterRange, targets: Vec<Target>) -> nft::RuleSet {
    let veths = VETHS.to_owned();
    PublishRules {
        veths,
        range,
        targets,
    }
    .rule_set()
}

fn obstacle(error: &attach::Error) -> Obstacle {
    let refusal = containers::refused(error);
    Obstacle::new(refusal.message, refusal.fix)
}
