//! The servers that let people look, and the watch behind them. None of them is needed for the network: what cannot be
//! served is a problem that `status` shows, not an end.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config;
use crate::health;
use crate::metrics;
use crate::node::Node;
use crate::obstacle::Obstacle;
use crate::vital::Vitals;

/// How long a scrape in progress may take at the end.
const DRAIN: Duration = Duration::from_millis(500);

/// How long until it is tried again to listen where that was not possible.
const AGAIN: Duration = Duration::from_secs(2);

/// What runs beside the node API.
#[derive(Debug)]
pub struct Sight {
    stopping: watch::Sender<bool>,
    metrics: JoinSet<()>,
    others: JoinSet<()>,
}

impl Sight {
    /// Starts the watch, the metrics, the page and what load balancers ask.
    pub async fn start(node: &Node, config: &config::Sight, vitals: &Vitals) -> Self {
        let (stopping, stopped) = watch::channel(false);
        let (mut metrics, mut others) = (JoinSet::new(), JoinSet::new());
        let (watch, part) = (node.clone().watch(), vitals.part("the watch of flows"));
        others.spawn(async move {
            watch.await;
            drop(part);
        });
        if let Some(at) = config.metrics {
            let door = Door::new(node, at, "metrics").await;
            let (node, token) = (node.clone(), config.metrics_token.clone());
            metrics.spawn(async move {
                metrics::serve(door.open().await, node, token, stopped).await;
            });
        }
        if let Some(at) = config.dashboard {
            let door = Door::new(node, at, "dashboard").await;
            if let Some(listener) = &door.listener {
                listens(node, listener);
            }
            let node = node.clone();
            others.spawn(async move {
                let listener = door.open().await;
                listens(&node, &listener);
                if let Err(error) = node.dashboard().serve(listener).await {
                    tracing::warn!(%error, "the page ended");
                }
            });
        }
        let engine = node.service_engine();
        if let Some(at) = config.health {
            let door = Door::new(node, at, "health").await;
            let engine = engine.clone();
            others.spawn(async move { health::serve(door.open().await, engine).await });
        }
        let (node, part) = (node.clone(), vitals.part("the health-check node ports"));
        others.spawn(async move {
            let tell = |port: u16, obstacle: Option<Obstacle>| {
                let what = format!("health-check node port {port}");
                match obstacle {
                    Some(obstacle) => node.cannot_serve(&what, obstacle),
                    None => node.serves(&what),
                }
            };
            health::serve_node_ports(engine, tell).await;
            drop(part);
        });
        Self {
            stopping,
            metrics,
            others,
        }
    }

    /// Ends all of it; scrapes in progress are answered.
    pub async fn stop(mut self) {
        self.stopping.send_replace(true);
        let drained = async { while self.metrics.join_next().await.is_some() {} };
        // A reader that does not take its answer is left to itself.
        let _ = tokio::time::timeout(DRAIN, drained).await;
        self.metrics.shutdown().await;
        self.others.shutdown().await;
    }
}

/// The page is there: whoever asks for a login is told where.
fn listens(node: &Node, listener: &TcpListener) {
    if let Ok(at) = listener.local_addr() {
        node.page_listens(at);
    }
}

/// The address of one of the servers, which may not be this host's yet when it starts.
struct Door {
    node: Node,
    at: SocketAddr,
    flag: &'static str,
    listener: Option<TcpListener>,
}

impl Door {
    /// Tries once, so that what can be served is from the start.
    async fn new(node: &Node, at: SocketAddr, flag: &'static str) -> Self {
        let mut door = Self {
            node: node.clone(),
            at,
            flag,
            listener: None,
        };
        door.try_once().await;
        door
    }

    /// Tries until it can be listened at; meanwhile the node says that it cannot.
    async fn open(mut self) -> TcpListener {
        loop {
            if let Some(listener) = self.listener {
                return listener;
            }
            tokio::time::sleep(AGAIN).await;
            self.try_once().await;
        }
    }

    async fn try_once(&mut self) {
        let Self { at, flag, .. } = self;
        match TcpListener::bind(*at).await {
            Ok(listener) => {
                self.node.serves(flag);
                self.listener = Some(listener);
            }
            Err(error) => {
                let cause = format!("the {flag} cannot be served at {at}: {error}");
                let fix = format!("choose another address with --{flag}, or --{flag} off");
                self.node.cannot_serve(flag, Obstacle::new(cause, fix));
            }
        }
    }
}
