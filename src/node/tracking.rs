//! Whether the kernel has room for more connections.
//!
//! It follows every connection of this host (conntrack), those to Services and those of containers, and no more than
//! `net.netfilter.nf_conntrack_max`, which is one number for all network namespaces. When that many are followed, those that
//! stand go on and the first packet of every other one vanishes, in silence: to whoever tries, the network is broken. The
//! kernel counts these packets (`drop` in `/proc/net/stat/nf_conntrack`), so that a moment without room is seen too.

use std::fs;

use weave_linux::sysctl;

use crate::obstacle::Obstacle;

/// How many connections are followed in this network namespace.
const ENTRIES: &str = "net/netfilter/nf_conntrack_count";

/// How many may be.
const MOST: &str = "net/netfilter/nf_conntrack_max";

/// A line for each CPU, below the names of the columns.
const STATISTICS: &str = "/proc/net/stat/nf_conntrack";

/// From this share on there is little room, in percent.
const LITTLE: u64 = 90;

/// Below this share there is enough again, so that a share that goes up and down a little is told once.
const ENOUGH: u64 = 80;

/// What the kernel said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tracking {
    /// How many connections it follows.
    entries: u64,
    /// How many it would.
    most: u64,
    /// How many packets it dropped because it could not follow them, since it began to count.
    dropped: u64,
}

/// How much room there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Room {
    /// Enough, or it is not known.
    #[default]
    Enough,
    /// Little.
    Little,
    /// None, now or since the last look.
    None,
}

/// What was seen at the last look.
#[derive(Debug, Default)]
pub(super) struct TrackingWatch {
    last: Option<Tracking>,
    room: Room,
    /// The worst that was told since there was enough.
    told: Room,
}

impl TrackingWatch {
    /// Takes what the kernel says now, nothing where it follows no connections; what is amiss. The log is told when it gets
    /// worse, and when it is well again.
    pub(super) fn look(&mut self, now: Option<Tracking>) -> Option<Obstacle> {
        let room = now.map_or(Room::Enough, |now| now.room(self.last, self.room));
        let obstacle = now.and_then(|now| now.obstacle(room));
        match &obstacle {
            Some(obstacle) if room > self.told => {
                tracing::warn!(fix = obstacle.fix, "{}", obstacle.cause);
                self.told = room;
            }
            None if self.told != Room::Enough => {
                tracing::info!("the kernel has room for more connections again");
                self.told = Room::Enough;
            }
            _ => {}
        }
        (self.last, self.room) = (now, room);
        obstacle
    }
}

impl Tracking {
    /// Asks the kernel; nothing where it follows no connections.
    pub(super) fn read() -> Option<Self> {
        let number = |key| sysctl::read(key).ok()?.trim().parse().ok();
        let statistics = fs::read_to_string(STATISTICS).unwrap_or_default();
        Some(Self {
            entries: number(ENTRIES)?,
            most: number(MOST)?,
            dropped: dropped(&statistics),
        })
    }

    fn room(&self, before: Option<Self>, was: Room) -> Room {
        let share = if was == Room::Enough { LITTLE } else { ENOUGH };
        let is_little = self.entries * 100 >= self.most * share;
        // Packets are dropped for other reasons too, but then there is room.
        let has_dropped = before.is_some_and(|before| self.dropped > before.dropped);
        if self.most == 0 || !is_little {
            Room::Enough
        } else if self.entries >= self.most || has_dropped {
            Room::None
        } else {
            Room::Little
        }
    }

    fn obstacle(&self, room: Room) -> Option<Obstacle> {
        let Self { entries, most, .. } = self;
        let what = match room {
            Room::Enough => return None,
            Room::Little => "has little room for more connections",
            Room::None => {
                "has no room for more connections, so new ones fail and those that stand go on"
            }
        };
        let cause = format!("the kernel {what}: it follows {entries} of at most {most}");
        let fix = format!(
            "see who opens them with: weavectl flows, or let it follow more: sysctl net.netfilter.nf_conntrack_max={}",
            most * 2
        );
        Some(Obstacle::new(cause, fix))
    }
}

/// The sum of the column `drop`, whose numbers are hexadecimal (`ct_cpu_seq_show` in `nf_conntrack_standalone.c`).
fn dropped(statistics: &str) -> u64 {
    let mut lines = statistics.lines();
    let names = lines.next().unwrap_or_default();
    let Some(column) = names.split_whitespace().position(|name| name == "drop") else {
        return 0;
    };
    let of_cpu = |line: &str| {
        let number = line.split_whitespace().nth(column)?;
        u64::from_str_radix(number, 16).ok()
    };
    lines.filter_map(of_cpu).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seen(entries: u64, dropped: u64) -> Option<Tracking> {
        Some(Tracking {
            entries,
            most: 1000,
            dropped,
        })
    }

    #[test]
    fn little_room_and_none_are_told_with_what_to_do() {
        let mut watch = TrackingWatch::default();
        let mut look = |entries, dropped| {
            let obstacle = watch.look(seen(entries, dropped));
            obstacle.map(|obstacle| obstacle.cause)
        };
        assert_eq!(look(899, 5), None);
        assert_eq!(look(899, 9), None, "there is room: it was something else");
        let little = look(900, 9).unwrap();
        assert!(little.contains("little room") && little.contains("900 of at most 1000"));
        assert!(look(950, 10).unwrap().contains("no room"), "there was none");
        assert!(look(950, 10).unwrap().contains("little room"));
        assert!(look(1000, 10).unwrap().contains("new ones fail"));
        assert!(look(800, 10).is_some(), "it would come and go");
        assert_eq!(look(799, 10), None);
        assert_eq!(look(899, 10), None);
        assert_eq!(watch.look(None), None, "nothing is followed");
        let fix = watch.look(seen(1000, 0)).unwrap().fix;
        assert!(fix.contains("nf_conntrack_max=2000"), "{fix}");
    }

    #[test]
    fn what_was_dropped_is_the_sum_over_all_cpus() {
        let text = "entries  clashres found insert_failed drop early_drop\n\
                    00000402  00000000 00000001 00000007 0000000a 00000003\n\
                    00000402  00000000 00000001 00000007 00000010 00000003\n";
        assert_eq!(dropped(text), 26);
        assert_eq!(dropped(""), 0);
        assert_eq!(dropped("entries found\n00000001 00000002\n"), 0);
    }
}
