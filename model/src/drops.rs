//! Why a packet was dropped: data, not an error, counted per reason.

use serde::{Deserialize, Serialize};

/// A reason for dropping a packet. Every drop in the data path has one, and every one is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Drop {
    /// Shorter than its headers say.
    TooShort,
    /// A version or type of datagram that this build does not know.
    UnknownType,
    /// No session has the index that the datagram names.
    UnknownSession,
    /// The lane does not exist in that session.
    UnknownLane,
    /// The tag does not match: forged, corrupt, or sealed with another key.
    Forged,
    /// The counter was seen before or lies behind the window.
    Replay,
    /// The session's keys are used up or too old.
    Expired,
    /// The sealed content is of a kind that this build does not know.
    UnknownKind,
    /// The inner packet is not well-formed IPv4 or IPv6, or does not match what the slice says of it.
    Malformed,
    /// The inner source does not belong to the node that sent it.
    ForeignSource,
    /// The inner destination does not belong to this node.
    NotOurs,
    /// No member owns the destination.
    NoRoute,
    /// The destination's owner has no session with this node yet.
    NoSession,
    /// A slice of the packet did not arrive in time.
    Incomplete,
    /// The packet is larger than a peer may send, or than fits a datagram.
    TooBig,
    /// The kernel refused to take the packet.
    Refused,
    /// A queue was full.
    QueueFull,
    /// More came than may: broadcasts of a container, control messages of a member, handshakes of strangers.
    RateLimited,
    /// A kind of broadcast or multicast that stays on its own host (IGMP, MLD, neighbour discovery).
    LinkScope,
    /// Congestion was met on the way and the packet's ends do not speak ECN.
    Congested,
    /// A handshake message with a wrong MAC, stamp or content.
    BadHandshake,
    /// The opening of a handshake that has yet to show a cookie of this run: each peer's first after a start, and replays.
    Unproven,
    /// An envelope to hand on whose receiver has no session of its own with this node, or whose sender is not who handed
    /// it over.
    NotRelayed,
    /// An envelope that was handed on as often as one may.
    TooManyHops,
    /// More envelopes came from a member than are handed on for it.
    RelayLimit,
    /// A relayed datagram from a node that is no member, or of a kind that is never relayed.
    UnknownOrigin,
    /// The handshake of a node that was removed from the cluster.
    Removed,
    /// The inner source and destination are in different networks.
    OtherNetwork,
    /// The handshake of a member by a secret of the cluster that is accepted no longer.
    OldSecret,
}

impl Drop {
    /// Every reason, in the order of their counters.
    pub const ALL: [Self; 29] = [
        Self::TooShort,
        Self::UnknownType,
        Self::UnknownSession,
        Self::UnknownLane,
        Self::Forged,
        Self::Replay,
        Self::Expired,
        Self::UnknownKind,
        Self::Malformed,
        Self::ForeignSource,
        Self::NotOurs,
        Self::NoRoute,
        Self::NoSession,
        Self::Incomplete,
        Self::TooBig,
        Self::Refused,
        Self::QueueFull,
        Self::RateLimited,
        Self::LinkScope,
        Self::Congested,
        Self::BadHandshake,
        Self::Unproven,
        Self::NotRelayed,
        Self::TooManyHops,
        Self::RelayLimit,
        Self::UnknownOrigin,
        Self::Removed,
        Self::OtherNetwork,
        Self::OldSecret,
    ];

    /// The name used in `weavectl status -o json` and as the metric's label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TooShort => "too_short",
            Self::UnknownType => "unknown_type",
            Self::UnknownSession => "unknown_session",
            Self::UnknownLane => "unknown_lane",
            Self::Forged => "forged",
            Self::Replay => "replay",
            Self::Expired => "expired",
            Self::UnknownKind => "unknown_kind",
            Self::Malformed => "malformed",
            Self::ForeignSource => "foreign_source",
            Self::NotOurs => "not_ours",
            Self::NoRoute => "no_route",
            Self::NoSession => "no_session",
            Self::Incomplete => "incomplete",
            Self::TooBig => "too_big",
            Self::Refused => "refused",
            Self::QueueFull => "queue_full",
            Self::RateLimited => "rate_limited",
            Self::LinkScope => "link_scope",
            Self::Congested => "congested",
            Self::BadHandshake => "bad_handshake",
            Self::Unproven => "unproven",
            Self::NotRelayed => "not_relayed",
            Self::TooManyHops => "too_many_hops",
            Self::RelayLimit => "relay_limit",
            Self::UnknownOrigin => "unknown_origin",
            Self::Removed => "removed",
            Self::OtherNetwork => "other_network",
            Self::OldSecret => "old_secret",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_names_agree() {
        for (place, reason) in Drop::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, place);
        }
    }
}
