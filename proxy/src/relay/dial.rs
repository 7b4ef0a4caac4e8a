//! How long an endpoint may take to answer a connection, and how many are tried for one client.
//!
//! As long as no byte has passed, a client cannot tell which endpoint it has, so another one may take its place. The
//! times are those of the proxy that Kubernetes had in user space, but for an endpoint that is so far away that it takes
//! connections more slowly: it may take several times as long as it did.

use std::net::SocketAddr;
use std::time::Duration;

/// How long the first, second, ... endpoint may take.
const PATIENCE: [Duration; 4] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
];

/// How many times as long as before an endpoint may take to take a connection, where that is more than it may else.
const SLOWER: u32 = 3;
/// But not longer than this.
const FAR: Duration = Duration::from_secs(1);

/// The tries of one connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Dial {
    tried: Vec<SocketAddr>,
}

impl Dial {
    /// Those that were tried without success.
    pub(super) fn tried(&self) -> &[SocketAddr] {
        &self.tried
    }

    /// Whether there were enough.
    pub(super) fn is_over(&self) -> bool {
        self.tried.len() >= PATIENCE.len()
    }

    /// How long the next try may take, at an endpoint that took so long before, if that is known.
    pub(super) fn patience(&self, usual: Option<Duration>) -> Duration {
        let patience = PATIENCE.get(self.tried.len()).copied().unwrap_or_default();
        patience.max((usual.unwrap_or_default() * SLOWER).min(FAR))
    }

    /// A try came to nothing.
    pub(super) fn failed(&mut self, endpoint: SocketAddr) {
        self.tried.push(endpoint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_waits_less_than_four_seconds_for_four_tries() {
        let mut dial = Dial::default();
        let mut all = Duration::ZERO;
        while !dial.is_over() {
            all += dial.patience(Some(Duration::from_millis(80)));
            dial.failed(SocketAddr::from(([10, 0, 0, 1], 80)));
        }
        assert_eq!((dial.tried().len(), all), (4, Duration::from_millis(3750)));
    }

    #[test]
    fn an_endpoint_that_is_far_away_has_longer_and_never_less() {
        let mut dial = Dial::default();
        for (usual, patience) in [(280, 840), (10, 250), (5_000, 1000)] {
            let usual = Duration::from_millis(usual);
            assert_eq!(dial.patience(Some(usual)), Duration::from_millis(patience));
        }
        (0..3).for_each(|_| dial.failed(SocketAddr::from(([10, 0, 0, 1], 80))));
        let last = dial.patience(Some(Duration::from_millis(280)));
        assert_eq!(last, Duration::from_secs(2));
    }
}
