//! Who is picked from, seen from where a connection comes from.

use crate::table::{Entry, Origin, Target, Way};

/// The targets that a front picks from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice<'a> {
    /// Everybody from the same.
    One(&'a [Target]),
    /// Containers and the host from the first, others from the second.
    Two(&'a [Target], &'a [Target]),
}

impl<'a> Choice<'a> {
    pub(super) fn of(entry: &'a Entry, way: Way) -> Self {
        let (inside, outside) = (
            entry.uses_local(way, Origin::Container),
            entry.uses_local(way, Origin::Outside),
        );
        let set = |local| {
            if local {
                &entry.local[..]
            } else {
                &entry.cluster[..]
            }
        };
        if inside == outside {
            Self::One(set(inside))
        } else {
            Self::Two(set(inside), set(outside))
        }
    }

    /// Whether somebody gets an endpoint.
    pub(super) const fn leads(self) -> bool {
        match self {
            Self::One(targets) | Self::Two(targets, _) => !targets.is_empty(),
        }
    }

    /// Whether somebody gets no endpoint.
    pub(super) const fn leaves_out(self) -> bool {
        match self {
            Self::One(targets) | Self::Two(_, targets) => targets.is_empty(),
        }
    }
}
