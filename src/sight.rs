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
        if let Some(listener) = listen(node, config.metrics, "metrics").await {
            let token = config.metrics_token.clone();
            metrics.spawn(metrics::serve(listener, node.clone(), token, stopped));
        }
        if let Some(listener) = listen(node, config.dashboard, "dashboard").await {
            if let Ok(at) = listener.local_addr() {
                node.page_listens(at);
            }
            let page = node.dashboard();
            others.spawn(async move {
                if let Err(error) = page.serve(listener).await {
                    tracing::warn!(%error, "the page ended");
                }
            });
        }
        let engine = node.service_engine();
        if let Some(listener) = listen(node, config.health, "health").await {
            others.spawn(health::serve(listener, engine.clone()));
        }
        let (told, tell) = (node.clone(), vitals.part("the health-check node ports"));
        others.spawn(async move {
            health::serve_node_ports(engine, |obstacle| told.cannot_serve(obstacle)).await;
            drop(tell);
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

/// Listens for one of the servers; `None` if it is off, or cannot, which the node then says.
async fn listen(node: &Node, at: Option<SocketAddr>, flag: &str) -> Option<TcpListener> {
    let at = at?;
    match TcpListener::bind(at).await {
        Ok(listener) => Some(listener),
        Err(error) => {
            let cause = format!("the {flag} cannot be served at {at}: {error}");
            let fix = format!("choose another address with --{flag}, or --{flag} off");
            node.cannot_serve(Obstacle::new(cause, fix));
            None
        }
    }
}
