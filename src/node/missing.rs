//! Which interfaces of attachments are missing, and since when: pure, looks in, what is gone for good out.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use weave_model::{ContainerName, IfName};

/// How long an interface must have been missing.
const PAUSE: Duration = Duration::from_secs(4);

/// Which interfaces were missing, and since when.
#[derive(Debug, Default)]
pub(super) struct Missing(BTreeMap<Key, Instant>);

/// A container and its interface.
pub(super) type Key = (ContainerName, IfName);

impl Missing {
    /// Takes what is missing now, and gives what was missing long enough. What is there again starts anew.
    pub(super) fn look(&mut self, missing: impl Iterator<Item = Key>, now: Instant) -> Vec<Key> {
        let known = std::mem::take(&mut self.0);
        let since = |key: &Key| known.get(key).copied().unwrap_or(now);
        self.0 = missing
            .map(|key| (since(&key), key))
            .map(|(at, key)| (key, at))
            .collect();
        let long = self
            .0
            .iter()
            .filter(|(_, at)| now.duration_since(**at) >= PAUSE);
        long.map(|(key, _)| key.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        (name.parse().unwrap(), IfName::eth0())
    }

    #[test]
    fn two_looks_with_time_between_them_free_and_one_does_not() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut missing = Missing::default();
        let mut look = |keys: &[&str], ms| {
            let long = missing.look(keys.iter().map(|name| key(name)), after(ms));
            long.into_iter()
                .map(|(name, _)| name.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(look(&["a"], 0), [""; 0]);
        assert_eq!(look(&["a"], 10), [""; 0], "too soon");
        assert_eq!(look(&["b"], 3000), [""; 0], "a is back");
        assert_eq!(look(&["a", "b"], 5000), [""; 0], "a starts anew");
        assert_eq!(look(&["a", "b"], 7000), ["b"]);
        assert_eq!(look(&["a"], 9000), ["a"]);
    }
}
