//! What a host has to be like before a node is started on it, looked at point by point.
//!
//! Nothing is taken from a list of module names: each facility of the kernel is used once, the way a node uses it, in
//! network namespaces that are made for it and vanish with it (`kernel.rs`). What is particular to this host (ports,
//! ranges, other networks, firewall, clock, uplink) is read where it stands (`host.rs`). The host is as it was afterwards.
//! Every point that is not fulfilled comes with what to do about it.

mod host;
mod kernel;

use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::Serialize;

use crate::obstacle::Obstacle;
use crate::preflight;

/// How a node is going to be started.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The UDP address it will listen on.
    pub listen: SocketAddr,
    /// The IPv4 range of the cluster that it will make or join.
    pub range: Ipv4Net,
    /// The IPv6 range, if it is chosen already.
    pub range6: Option<Ipv6Net>,
    /// Where it will keep its state.
    pub state_dir: PathBuf,
    /// Where container runtimes look for network configurations.
    pub conf_dir: PathBuf,
}

/// How a point stands, the better first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As it should be.
    Ok,
    /// A node runs, but something will be slower, missing or in the way.
    Warning,
    /// A node cannot run, or its containers cannot talk.
    Failure,
}

/// One point that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Point {
    /// Names the point for programs; it stays the same over versions.
    pub id: &'static str,
    /// How it stands.
    pub state: State,
    /// What was seen, in one line.
    pub found: String,
    /// What to do about it, in one line; absent when there is nothing to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Point {
    fn ok(id: &'static str, found: impl Into<String>) -> Self {
        let found = found.into();
        Self {
            id,
            state: State::Ok,
            found,
            fix: None,
        }
    }

    fn warning(id: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            state: State::Warning,
            fix: Some(fix.into()),
            ..Self::ok(id, found)
        }
    }

    fn failure(id: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            state: State::Failure,
            ..Self::warning(id, found, fix)
        }
    }

    /// What keeps `weaved` from starting is a failure, with its own words.
    fn of(id: &'static str, found: impl Into<String>, checked: Result<(), Obstacle>) -> Self {
        match checked {
            Ok(()) => Self::ok(id, found),
            Err(obstacle) => Self::failure(id, obstacle.cause, obstacle.fix),
        }
    }
}

/// All points, and the worst of their states.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Points {
    /// The worst.
    pub state: State,
    /// Each point, in the order in which they were looked at.
    pub points: Vec<Point>,
}

impl Points {
    fn new(points: Vec<Point>) -> Self {
        let worst = points.iter().map(|point| point.state).max();
        Self {
            state: worst.unwrap_or(State::Ok),
            points,
        }
    }
}

/// Looks at the host of the calling thread's network namespace. Must be called in a tokio runtime.
pub async fn before_start(plan: &Plan) -> Points {
    let found = "CAP_NET_ADMIN, CAP_NET_RAW and CAP_SYS_ADMIN";
    let privileges = Point::of("privileges", found, preflight::check_privileges());
    let may = privileges.state == State::Ok;
    let mut points = vec![privileges, kernel::release()];
    if may {
        points.extend(kernel::facilities(plan).await);
    } else {
        let fix = "run this as root to have the kernel's facilities tried";
        points.push(Point::failure("facilities", "not tried", fix));
    }
    points.extend(host::points(plan).await);
    Points::new(points)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_point_is_the_verdict() {
        let fine = Point::ok("a", "as it should be");
        let slow = Point::warning("b", "slow", "buy a faster one");
        let broken = Point::of("c", "", Err(Obstacle::new("broken", "mend it")));
        let state =
            |points: &[&Point]| Points::new(points.iter().copied().cloned().collect()).state;
        assert_eq!(state(&[]), State::Ok);
        assert_eq!(state(&[&fine]), State::Ok);
        assert_eq!(state(&[&slow, &fine]), State::Warning);
        assert_eq!(state(&[&slow, &broken, &fine]), State::Failure);
        assert_eq!(broken.fix.as_deref(), Some("mend it"));
    }
}
