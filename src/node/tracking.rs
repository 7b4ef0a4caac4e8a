//! Whether the kernel has room for more connections.
//!
//! It follows every connection of this host (conntrack), those to Services and those of containers, and no more than
//! `net.netfilter.nf_conntrack_max`, which is one number for all network namespaces. When that many are followed, those that
//! stand go on and the first packet of every other one vanishes, in silence: to whoever tries, the network is broken. The
//! kernel counts these packets, so that a moment without room is seen too.

use weave_linux::conntrack::Load;

use crate::obstacle::Obstacle;

/// From this share on there is little room, in percent.
const LITTLE: u64 = 90;

/// Below this share there is enough again, so that a share that goes up and down a little is told once.
const ENOUGH: u64 = 80;

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
    last: Option<Load>,
    room: Room,
    /// The worst that was told since there was enough.
    told: Room,
}

impl TrackingWatch {
    /// Takes what the kernel says now, nothing where it follows no connections; what is amiss. The log is told when it gets
    /// worse, and when it is well again.
    pub(super) fn look(&mut self, now: Option<Load>) -> Option<Obstacle> {
        let room = now.map_or(Room::Enough, |now| room(now, self.last, self.room));
        let obstacle = now.and_then(|now| obstacle(now, room));
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

fn room(now: Load, before: Option<Load>, was: Room) -> Room {
    let Some(most) = now.limit.filter(|most| *most > 0) else {
        return Room::Enough;
    };
    let share = if was == Room::Enough { LITTLE } else { ENOUGH };
    let is_little = now.entries * 100 >= most * share;
    // Packets are dropped for other reasons too, but then there is room.
    let has_dropped = before.is_some_and(|before| now.dropped > before.dropped);
    if !is_little {
        Room::Enough
    } else if now.entries >= most || has_dropped {
        Room::None
    } else {
        Room::Little
    }
}

fn obstacle(now: Load, room: Room) -> Option<Obstacle> {
    let (entries, most) = (now.entries, now.limit?);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(entries: u64, dropped: u64) -> Option<Load> {
        Some(Load {
            entries,
            limit: Some(1000),
            dropped,
            ..Load::default()
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
}
