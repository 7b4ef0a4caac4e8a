//! Claims of floating addresses that ended on this node, kept for a time: pure.
//!
//! What such a claim had outdone may come back: that of a node that was down, or cut off, all the while. So the end is told
//! to the others like the claim was, and outdoes what the claim did. It is kept until something newer is said of the
//! address, or for [`KEPT`]; longer while somebody still tells an older claim. Of more than [`MAX_ENDED`] the oldest go.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use weave_model::{EndedClaim, Floating, MAX_ENDED};

/// How long an end is kept.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// The last claim that ended here, by address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ended(BTreeMap<IpAddr, End>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct End {
    /// The stamp of the claim.
    stamp: u64,
    /// When it ended, in milliseconds since the Unix epoch.
    at: u64,
}

impl Ended {
    /// Notes that claims end at `now`, in milliseconds since the Unix epoch.
    pub(super) fn note(&mut self, claims: &[Floating], now: u64) {
        for &Floating { ip, stamp, .. } in claims {
            // A clock that was wrong when the address was claimed may be right by now.
            let at = now.max(stamp);
            let end = self.0.entry(ip).or_insert(End { stamp, at });
            *end = End {
                stamp: stamp.max(end.stamp),
                at: at.max(end.at),
            };
        }
        while self.0.len() > MAX_ENDED
            && let Some(oldest) = self.0.iter().min_by_key(|(ip, end)| (end.at, **ip))
        {
            let ip = *oldest.0;
            self.0.remove(&ip);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What the others are told.
    pub(super) fn told(&self) -> impl Iterator<Item = EndedClaim> {
        let told = |(ip, end): (&IpAddr, &End)| EndedClaim {
            ip: *ip,
            stamp: end.stamp,
        };
        self.0.iter().map(told)
    }

    /// Forgets what is not needed: what was outdone, and what has been kept long enough and outdoes nothing. Whether
    /// that was anything.
    pub(super) fn forget(
        &mut self,
        now: u64,
        is_outdone: impl Fn(&EndedClaim) -> bool,
        outdoes: impl Fn(&EndedClaim) -> bool,
    ) -> bool {
        let before = self.0.len();
        self.0.retain(|ip, end| {
            let told = EndedClaim {
                ip: *ip,
                stamp: end.stamp,
            };
            let is_young = now.saturating_sub(end.at) < KEPT.as_millis() as u64;
            !is_outdone(&told) && (is_young || outdoes(&told))
        });
        self.0.len() < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(last: u16, stamp: u64) -> Floating {
        Floating {
            ip: std::net::Ipv4Addr::from(0x0a2d_0000 + u32::from(last)).into(),
            pool: "vips".parse().unwrap(),
            stamp,
        }
    }

    fn stamps(ended: &Ended) -> Vec<u64> {
        ended.told().map(|end| end.stamp).collect()
    }

    #[test]
    fn an_end_is_kept_for_a_month_and_longer_while_it_outdoes_a_claim() {
        let month = KEPT.as_millis() as u64;
        let mut ended = Ended::default();
        ended.note(&[claim(1, 5), claim(2, 6), claim(3, 7)], 100);
        ended.note(&[claim(1, 4)], 90);
        assert_eq!(stamps(&ended), [5, 6, 7], "the newest stamp counts");
        let mut left = |now, outdone: u64, outdoes: u64| {
            ended.forget(now, |end| end.stamp == outdone, |end| end.stamp == outdoes);
            stamps(&ended)
        };
        assert_eq!(left(month, 6, 0), [5, 7]);
        assert_eq!(left(month + 100, 0, 7), [7]);
        assert_eq!(left(month + 100, 0, 0), [0; 0]);
    }

    #[test]
    fn of_too_many_the_oldest_go() {
        let mut ended = Ended::default();
        for last in 0..=MAX_ENDED as u16 {
            let stamp = u64::from(last) + 1;
            ended.note(&[claim(last, stamp)], stamp);
        }
        assert_eq!(stamps(&ended).len(), MAX_ENDED);
        assert_eq!(stamps(&ended)[0], 2);
    }
}
