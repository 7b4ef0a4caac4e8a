//! How long an endpoint may take to answer a connection, and how many are tried for one client.
//!
//! As long as no byte has passed, a client cannot tell which endpoint it has, so another one may take its place. The
//! times are those of the proxy that Kubernetes had in user space.

use std::net::SocketAddr;
use std::time::Duration;

/// How long the first, second, ... endpoint may take.
const PATIENCE: [Duration; 4] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
];

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

    /// How long the next try may take; `None` when there were enough.
    pub(super) fn patience(&self) -> Option<Duration> {
        PATIENCE.get(self.tried.len()).copied()
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
        while let Some(time) = dial.patience() {
            all += time;
            dial.failed(SocketAddr::from(([10, 0, 0, 1], 80)));
        }
        assert_eq!((dial.tried().len(), all), (4, Duration::from_millis(3750)));
    }
}
