//! `weaved`: checks, starts the parts in order, waits for a signal, stops them in reverse.
//!
//! Everything here runs on one thread; the router has threads of its own. When `weaved` ends, by a signal or by a
//! kill, devices, addresses, routes and rules stay, so that the containers of this host keep talking to each other;
//! the next start adopts them.

use std::io::IsTerminal as _;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser as _;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing_subscriber::EnvFilter;

use crate::api::{self, Socket, SocketError};
use crate::claim::{Claim, claim_network};
use crate::config::{Config, Flags};
use crate::docker;
use crate::node::Node;
use crate::notify;
use crate::obstacle::Obstacle;
use crate::preflight;
use crate::sight::Sight;
use crate::vital::{self, Vitals};

/// How long a process that was killed may still hold its sockets.
const LAST_BREATH: Duration = Duration::from_secs(1);

/// How long relayed connections may take to end when the node stops.
const DRAIN: Duration = Duration::from_secs(5);

/// How often the overlay's threads are looked at.
const HEALTH: Duration = Duration::from_secs(1);

/// How long a thread for what would block stays when there is nothing to do: longer than between two looks at the flows, so
/// that there always is one. A host that has as many threads as it may have gives no other.
const THREAD_STAYS: Duration = Duration::from_secs(180);

/// How long work that blocks may go on after all else has ended.
const UNFINISHED: Duration = Duration::from_millis(500);

/// How long the end may take once a part has ended by itself.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Runs `weaved` with the process's arguments: 0 after a signal, 1 if it cannot run, 2 if it is told nonsense.
pub fn main() -> ExitCode {
    let flags = Flags::parse();
    let config = match Config::load(flags) {
        Ok(config) => config,
        Err(obstacle) => return report(&obstacle, 2),
    };
    let filter = match EnvFilter::try_new(&config.log) {
        Ok(filter) => filter,
        Err(error) => {
            let cause = format!("\"{}\" is not a log filter: {error}", config.log);
            return report(
                &Obstacle::new(cause, "try --log info, or --log weave_router=debug,info"),
                2,
            );
        }
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(coloured())
        .init();
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(obstacle) => report(&obstacle, 1),
    }
}

/// Colour is for people who did not say no to it (<https://no-color.org>).
fn coloured() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty())
}

fn report(obstacle: &Obstacle, code: u8) -> ExitCode {
    eprintln!("weaved: {}\nfix: {}", obstacle.cause, obstacle.fix);
    ExitCode::from(code)
}

fn run(config: Config) -> Result<(), Obstacle> {
    preflight::check_host()?;
    preflight::check_state_dir(&config.state_dir)?;
    let _network = take_network()?;
    let socket = bind(&config.socket).map_err(|error| no_socket(&error))?;
    preflight::check_port(config.overlay.listen)?;
    let runtime = Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(THREAD_STAYS)
        .build()
        .map_err(|error| {
            Obstacle::new(
                format!("cannot start: {error}"),
                "raise the limits of this process",
            )
        })?;
    let ended = runtime.block_on(async {
        let (listener, _file) = socket.into_listener().map_err(|error| {
            Obstacle::new(
                format!("cannot serve the API: {error}"),
                "raise the limit of open files",
            )
        })?;
        let mut ends = Ends::watch()?;
        let docker = config.docker.clone();
        let looks = config.sight.clone();
        let vitals = Vitals::default();
        vitals.watch_threads();
        let (node, desk) = Node::start(config, &vitals).await?;
        let services = node.service_engine();
        let plugin =
            docker::Plugin::start(&docker, node.clone()).map_err(|error| no_plugin(&error))?;
        let sight = Sight::start(&node, &looks, &vitals).await;
        tracing::info!("ready");
        notify::tell(notify::State::Ready);
        let watched = node.clone();
        let (told, end) = oneshot::channel();
        let stop = async move {
            let end = tokio::select! {
                () = ends.wait() => Ok(()),
                part = broken(&watched, &vitals) => {
                    vital::end_within(LAST_WORDS);
                    Err(ended(&part))
                }
            };
            notify::tell(notify::State::Stopping);
            // The receiver waits for it to the end.
            let _ = told.send(end);
        };
        api::serve(listener, node, stop).await;
        plugin.stop().await;
        // While the overlay still carries what is open, and load balancers are told to go elsewhere.
        let drained = tokio::task::spawn_blocking(move || services.drain(DRAIN)).await;
        if let Ok(1..) = drained {
            tracing::warn!("relayed connections of services are still open at the end, and break");
        }
        sight.stop().await;
        desk.stop().await;
        end.await.unwrap_or(Ok(()))
    });
    runtime.shutdown_timeout(UNFINISHED);
    ended
}

/// Waits until something has ended by itself that must not, and says what.
async fn broken(node: &Node, vitals: &Vitals) -> String {
    let overlay = async {
        let mut watch = tokio::time::interval(HEALTH);
        while node.is_healthy() {
            watch.tick().await;
        }
    };
    tokio::select! {
        part = vitals.ended() => part,
        () = overlay => "a thread of the overlay".to_owned(),
    }
}

/// Half a node would lose a part of the flows, or of the requests, without a word: whoever started `weaved` must start it
/// again.
fn ended(part: &str) -> Obstacle {
    let cause = format!("{part} ended by itself");
    tracing::error!(part, "ended by itself: stopping");
    Obstacle::new(
        cause,
        "start weaved again, as systemd does, and report what the log says above",
    )
}

/// Takes the network namespace; from a weaved that was just killed, when that is gone.
fn take_network() -> Result<Claim, Obstacle> {
    let until = Instant::now() + LAST_BREATH;
    loop {
        match claim_network() {
            Err(_) if Instant::now() < until => thread::sleep(LAST_BREATH / 10),
            claimed => return claimed,
        }
    }
}

/// Takes the socket; from a weaved that was just killed, when that is gone.
fn bind(path: &Path) -> Result<Socket, SocketError> {
    let until = Instant::now() + LAST_BREATH;
    loop {
        match Socket::bind(path) {
            Err(SocketError::Taken(_)) if Instant::now() < until => thread::sleep(LAST_BREATH / 10),
            bound => return bound,
        }
    }
}

fn no_socket(error: &SocketError) -> Obstacle {
    let fix = match error {
        SocketError::Taken(_) => "stop that one, or give this one its own --socket and --state-dir",
        SocketError::Foreign(_) => "move that file away, or give another path with --socket",
        SocketError::Failed { .. } => "give a path in a writable directory with --socket",
    };
    Obstacle::new(error.to_string(), fix)
}

fn no_plugin(error: &SocketError) -> Obstacle {
    Obstacle::new(
        error.to_string(),
        "give Docker's plugin another path with --docker-plugin=PATH, or turn it off: --docker-plugin=off",
    )
}

/// The signals that end `weaved`.
struct Ends {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Ends {
    fn watch() -> Result<Self, Obstacle> {
        let watch = |kind| {
            signal(kind).map_err(|error| {
                Obstacle::new(
                    format!("cannot watch for signals: {error}"),
                    "start it again",
                )
            })
        };
        Ok(Self {
            terminate: watch(SignalKind::terminate())?,
            interrupt: watch(SignalKind::interrupt())?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => tracing::info!("stopping: SIGTERM"),
            _ = self.interrupt.recv() => tracing::info!("stopping: SIGINT"),
        }
    }
}
