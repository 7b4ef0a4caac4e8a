//! What an operator or a runtime can ask of the core, what it answers, and why it refuses: the cause, then the fix.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use weave_model::api::{Code, Refusal};
use weave_model::{BadRange, Block, ClusterRange, NodeId, NodeName, Token};

use crate::mesh::tokens::{self, TokenInfo};

/// How long a member may take to confirm what it was told.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// The most addresses at which a node looks for members because it was told to.
pub const MAX_DIALLED: usize = 64;

/// The longest id of an allocation, in bytes.
pub const MAX_ID: usize = 512;

/// A command. Each is answered by one [`super::CoreEvent::Reply`], when what it did is durable.
#[derive(Clone, Debug)]
pub enum Command {
    /// Makes a cluster with this node as its first member.
    Init {
        /// Its IPv4 addresses.
        v4: Ipv4Net,
        /// Its IPv6 addresses; when absent a unique local /48 (RFC 4193) made from the cluster's key.
        v6: Option<Ipv6Net>,
    },
    /// Makes a join token.
    TokenCreate {
        /// How long it is good.
        ttl: Duration,
        /// How many nodes may join with it.
        uses: u32,
        /// Where joiners find this node; when empty its own endpoints.
        addresses: Vec<SocketAddr>,
    },
    /// Lists the join tokens of this node, those that are used up, expired or taken back included.
    TokenList,
    /// Takes a join token back.
    TokenRevoke {
        /// The start of its id, 4 hex digits or more.
        id: String,
    },
    /// Looks for members at an address of this node's choice, from now on and after restarts.
    Connect {
        /// A UDP address.
        address: SocketAddr,
    },
    /// Undoes [`Command::Connect`], and what the token of the join said.
    Forget {
        /// As it was given.
        address: SocketAddr,
    },
    /// Gives the cluster another secret.
    SecretRotate {
        /// How long the one before is accepted beside it.
        overlap: Duration,
    },
    /// Makes another member an admin: it may invite and remove, and make admins itself.
    AdminAdd {
        /// Its name, or the start of its id.
        node: String,
    },
    /// Removes a member for good.
    Remove {
        /// Its name, or the start of its id.
        node: String,
        /// Who shall take its addresses, likewise; when absent whoever gave them to it.
        heir: Option<String>,
    },
    /// Leaves the cluster: the addresses go to another member, everything is forgotten.
    Leave {
        /// Also with containers that have addresses, as the last admin, and when nobody can take the addresses.
        force: bool,
    },
    /// Joins the cluster that a token invites to, unless its range is in use on this host.
    Join {
        /// The token.
        token: Token,
        /// What this host has addresses in or routes to.
        taken: Vec<Taken>,
    },
    /// Gives an address to a container's interface. The same id gets the same address again.
    Allocate {
        /// Names the interface, such as "container,interface".
        id: String,
        /// The offset it must be.
        want: Option<u32>,
        /// Where it must lie if none is wanted: in one of these runs of offsets, by their first and last; anywhere when
        /// empty.
        among: Vec<(u32, u32)>,
        /// The area that it must lie in; in none when absent.
        area: Option<Block>,
    },
    /// Keeps parts of the range for networks of their own: offsets of an area are given only when it is named, and each
    /// member gets a part of each area. Replaces what was said before.
    SetAreas {
        /// The areas; none overlaps another.
        areas: Vec<Block>,
    },
    /// Takes an interface's address back; one that has none is no error.
    Release {
        /// As in [`Command::Allocate`].
        id: String,
    },
    /// Lists the addresses that are given.
    Leases,
    /// Pings a member inside its session, and times the answer.
    Ping {
        /// The member.
        peer: NodeId,
        /// How long to wait for the answer.
        patience: Duration,
    },
    /// Says where this node can be reached, the likeliest first. Known to the others soon after.
    SetEndpoints {
        /// UDP addresses of this host.
        endpoints: Vec<SocketAddr>,
    },
    /// Says what this node tells the others of its containers and Services: at most
    /// [`crate::mesh::sheet::MAX_CONTENT`] bytes, in a form that the mesh does not look at. Known to them soon after.
    SetSheet {
        /// All of it.
        content: Vec<u8>,
    },
}

/// A range that this host uses for something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The addresses.
    pub net: IpNet,
    /// What uses them, for people: "the route 10.40.0.0/16 over eth0".
    pub by: String,
}

/// How it stands with the cluster's secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretState {
    /// Which secret is the current one; they are counted from 1.
    pub epoch: u32,
    /// Until when the one before is accepted, since the Unix epoch; absent if it is not.
    pub previous_until: Option<Duration>,
    /// The members whose records do not show the current one, by id.
    pub behind: Vec<NodeId>,
}

/// The answer to a command that was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// This node is a member now ([`Command::Init`], [`Command::Join`]).
    Member {
        /// This node.
        node: NodeId,
        /// The cluster's addresses.
        range: ClusterRange,
    },
    /// The token, and when it expires, since the Unix epoch.
    Token(Token, Duration),
    /// Tokens: all of them ([`Command::TokenList`]), or the one that was taken back.
    Tokens(Vec<TokenInfo>),
    /// The member that was named, as it is known here.
    Node {
        /// Its id.
        id: NodeId,
        /// Its label.
        name: NodeName,
    },
    /// How it stands with the cluster's secret ([`Command::SecretRotate`]).
    Secret(SecretState),
    /// The member that was removed ([`Command::Remove`]).
    Removed {
        /// Its id.
        id: NodeId,
        /// Its label.
        name: NodeName,
        /// Who takes its addresses, once all living members know of it.
        heir: (NodeId, NodeName),
    },
    /// This node is in no cluster any more ([`Command::Leave`]).
    Left {
        /// Who has its addresses now; `None` if there was nobody.
        heir: Option<(NodeId, NodeName)>,
    },
    /// The offset that the interface has.
    Address(u32),
    /// The offset that the interface had, if it had one.
    Released(Option<u32>),
    /// Every interface that has an address, and its offset ([`Command::Leases`]).
    Leases(Vec<(String, u32)>),
    /// How long it took until the answer was there, and at which address the member sees this node
    /// ([`Command::Ping`]).
    Pong {
        /// The round-trip time.
        rtt: Duration,
        /// The source of the ping's datagram, as the member saw it; absent if a relay stands between.
        observed: Option<SocketAddr>,
    },
    /// Nothing more to say.
    Done,
}

/// Why a command was not done. The text is the cause; [`CommandError::fix`] says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// There is a cluster already.
    #[error("this node is already a member of a cluster with the range {0}")]
    AlreadyMember(Ipv4Net),
    /// There is no cluster yet.
    #[error("this node is not a member of a cluster")]
    NotMember,
    /// Another init or join is not finished.
    #[error("an init or a join is already under way")]
    Underway,
    /// The range cannot be a cluster's.
    #[error("{0}")]
    BadRange(#[from] BadRange),
    /// This node may not sign in the cluster's name.
    #[error("this node is not an admin: it cannot invite or remove nodes")]
    NotAdmin {
        /// The names of those that may.
        admins: Vec<String>,
    },
    /// No token that is remembered here starts so.
    #[error("no token of this node has an id that starts with \"{0}\" and 4 digits or more")]
    UnknownToken(String),
    /// Several do.
    #[error("several tokens of this node have ids that start with \"{0}\"")]
    AmbiguousToken(String),
    /// No member is called so.
    #[error("no member has the name, or an id that starts with, \"{0}\"")]
    UnknownNode(String),
    /// Several are.
    #[error("\"{given}\" means several members: {}", .ids.join(", "))]
    AmbiguousNode {
        /// What was said.
        given: String,
        /// The starts of their ids.
        ids: Vec<String>,
    },
    /// The member that was named is not reached just now.
    #[error("there is no connection to {0} just now")]
    NotConnected(String),
    /// It did not say that it has done it.
    #[error("{node} did not confirm within {} seconds", PATIENCE.as_secs())]
    NotConfirmed {
        /// Its name.
        node: String,
    },
    /// A node is removed by another.
    #[error("a node does not remove itself")]
    Oneself,
    /// The heir is the node that is removed.
    #[error("{0} cannot take the addresses of itself")]
    HeirOfItself(String),
    /// Its removal would be too long.
    #[error("that admin let in and removed more nodes than a removal can list")]
    TooManyKept,
    /// All members keep each removal.
    #[error(
        "{0} nodes were removed from this cluster or have left it, and every member keeps note of each for ever: it takes no more"
    )]
    TooManyRemoved(usize),
    /// An admin has removed this node.
    #[error("this node was removed from the cluster")]
    Removed,
    /// Its disk was put back to an older copy.
    #[error(
        "this node's state is older than what the other members know of it: it uses no addresses until all have told"
    )]
    InDoubt,
    /// A copy of its state runs elsewhere, and began earlier.
    #[error("another process with this node's identity runs at {}, and has run longer", list(.0))]
    GaveWay(Vec<SocketAddr>),
    /// Containers have addresses here.
    #[error("{0} addresses of this node are in use")]
    InUse(u32),
    /// Nobody could invite or remove any more.
    #[error("this node is the last admin: nobody could invite or remove nodes without it")]
    LastAdmin,
    /// There is no other member.
    #[error("this node is the only member: its cluster ends with it")]
    LastMember,
    /// No member is connected.
    #[error("no member is connected that could take the addresses of this node")]
    NobodyToTake,
    /// A leave is under way.
    #[error("this node is leaving the cluster")]
    Leaving,
    /// A chain of certificates may have no more links.
    #[error("this node is an admin by way of too many others to make another one")]
    ChainTooLong,
    /// The terms of a token are out of bounds.
    #[error("a token is good for 1 second to 365 days and for 1 to 10000 nodes")]
    TokenTerms,
    /// The terms of a change of the secret are out of bounds.
    #[error("the secret before may be accepted for 1 second to 365 days")]
    OverlapTerms,
    /// The secret was changed a short while ago.
    #[error("the cluster's secret was changed before, and the one before that is accepted for another {} s", .0.as_secs().max(1))]
    Overlapping(Duration),
    /// Nobody told this node of that address.
    #[error("this node was not told to look for members at {0}")]
    UnknownAddress(SocketAddr),
    /// There are enough.
    #[error("this node was told of {MAX_DIALLED} addresses already")]
    TooManyAddresses,
    /// Nobody could reach this node by the token.
    #[error("this node knows no address at which a joiner could reach it")]
    NoEndpoint,
    /// The inviter said no.
    #[error("{}", refused(*.0))]
    Refused(tokens::Refusal),
    /// Somebody else answered.
    #[error(
        "{0} belongs to another cluster than the one that the token names; nothing was told to it"
    )]
    WrongCluster(SocketAddr),
    /// The cluster's range is in use on this host. This node stays outside.
    #[error("the cluster's range {range} overlaps {by} on this host")]
    RangeTaken {
        /// The range.
        range: IpNet,
        /// What it overlaps.
        by: String,
    },
    /// Nobody answered.
    #[error("no node answered at {}, or the token is unknown there", list(.0))]
    NoAnswer(Vec<SocketAddr>),
    /// Joined, but without addresses so far.
    #[error("the node joined the cluster, but no member could give it addresses yet")]
    NoAddresses,
    /// The node is a member, but none of the members that it knows talks to it.
    #[error("the node was let in, but no member has a session with it since")]
    Unanswered,
    /// All own addresses are in use.
    #[error("no address is free on this node: {used} of {capacity} are in use")]
    Exhausted {
        /// How many are in use.
        used: u32,
        /// How many there are.
        capacity: u32,
    },
    /// Another container has it.
    #[error("the address {address} is taken by {holder}")]
    AddressTaken {
        /// The address.
        address: Ipv4Addr,
        /// Who has it.
        holder: String,
    },
    /// The interface has another.
    #[error("{id} already has the address {address}")]
    HasOther {
        /// The interface.
        id: String,
        /// What it has.
        address: Ipv4Addr,
    },
    /// Nobody may have it.
    #[error("the address {0} is the network's own, its gateway's or its broadcast address")]
    Reserved(Ipv4Addr),
    /// It lies outside of the range.
    #[error("the address lies outside of the cluster's range {0}")]
    Outside(Ipv4Net),
    /// It lies in the range of another network than it was asked for.
    #[error("the address {0} is not one of that network")]
    OtherNetwork(Ipv4Addr),
    /// Another node owns it.
    #[error("the address {address} belongs to the node {node}")]
    Elsewhere {
        /// The address.
        address: Ipv4Addr,
        /// The name of its owner.
        node: String,
    },
    /// No member that is known owns it.
    #[error("the address {0} belongs to no member that this node knows")]
    Unowned(Ipv4Addr),
    /// There is more to tell of containers and Services than a node may.
    #[error("this node has too many containers and services to tell the others of")]
    SheetTooLong,
    /// The id is too long to be journalled.
    #[error("the interface's id is longer than {MAX_ID} bytes")]
    BadId,
    /// The member did not answer a ping in time.
    #[error("no answer within {} ms", .0.as_millis())]
    NoPong(Duration),
    /// The node's state cannot be saved.
    #[error("the node cannot save its state: {0}")]
    Storage(String),
    /// The node ends before it could do it.
    #[error("the node is stopping")]
    Stopping,
}

impl CommandError {
    /// What to do about it, in one line.
    pub fn fix(&self) -> String {
        match self {
            Self::AlreadyMember(_) => "to leave it: weavectl leave",
            Self::NotMember => "make a cluster with `weavectl init`, or join one with `weavectl join TOKEN`",
            Self::Underway => "wait for it to end",
            Self::BadRange(_) => "choose another range, such as --range 10.32.0.0/12",
            Self::NotAdmin { admins } if admins.is_empty() => "do it on the node that made the cluster",
            Self::NotAdmin { admins } => {
                return format!("do it on {}, or there first: weavectl admin add THIS-NODE", admins.join(" or "));
            }
            Self::UnknownToken(_) => "list them with `weavectl token list`; a token is known only where it was made",
            Self::AmbiguousToken(_) => "give more digits of the id",
            Self::UnknownNode(_) => "list the members with `weavectl peers`",
            Self::AmbiguousNode { .. } => "name it by the start of its id instead",
            Self::NotConnected(_) => "see `weavectl connections`, and try again when there is one",
            Self::NotConfirmed { .. } => "see `weavectl connections` and try again, or: weavectl leave --force",
            Self::Oneself => "leave the cluster with `weavectl leave`, or remove this node from another admin",
            Self::HeirOfItself(_) => "name another member with --heir, or leave it out",
            Self::TooManyKept => "leave it a member, and stop it; let nodes in from other admins",
            Self::TooManyRemoved(_) => "leave it a member, and stop it; start nodes that come and go with the state directory that they had before; or make a new cluster",
            Self::Removed => "to use it again: weavectl leave --force, then weavectl join TOKEN with a new token",
            Self::InDoubt => "wait; if `weavectl status` names members that are gone: weavectl rmpeer NODE",
            Self::GaveWay(_) => "stop that one and restart this one; or make this one a node of its own: weavectl leave --force, then weavectl join TOKEN",
            Self::InUse(_) => "detach the containers that `weavectl ps` lists, or detach all: weavectl leave --force",
            Self::LastAdmin => "make another admin first: weavectl admin add NODE; or leave anyway: weavectl leave --force",
            Self::LastMember => "if that is meant: weavectl leave --force",
            Self::NobodyToTake => {
                "see `weavectl connections`; or leave with --force, and run `weavectl rmpeer` for this node on a member"
            }
            Self::Leaving => "wait until it has left, then join again with a new token",
            Self::ChainTooLong => "do it on the node that made the cluster, or on an admin that was made there",
            Self::TokenTerms => "choose --ttl and --uses within these bounds",
            Self::OverlapTerms => "choose --overlap within these bounds",
            Self::Overlapping(_) => "wait until it is over: a third secret would shut out who has missed the second",
            Self::UnknownAddress(_) => "list them with `weavectl targets`; leave the port out if it is 6783",
            Self::TooManyAddresses => "forget one that is not needed: weavectl forget ADDRESS",
            Self::NoEndpoint => "start weaved with --advertise ADDRESS",
            Self::Refused(tokens::Refusal::Unable) => "look at `weavectl status` on the inviter, then join again",
            Self::Refused(_) => "make a new token on a member with `weavectl token create`",
            Self::WrongCluster(_) => "check the address, or make a new token in the right cluster",
            Self::RangeTaken { .. } => "remove that route or address from this host, then join again with the same token",
            Self::NoAnswer(_) => "check that weaved runs there, that UDP passes, and that the token was made there within its time",
            Self::Unanswered => {
                "check that UDP passes both ways; if the inviter was put back to an older copy it forgot this node: run `weavectl leave --force` here, then join anew"
            }
            Self::NoAddresses => "addresses are still being asked for; see `weavectl status`",
            Self::Exhausted { .. } => "detach containers, or wait: more addresses were asked for from the other members",
            Self::AddressTaken { .. } => "choose another address, or detach its holder first",
            Self::SheetTooLong => "remove services that were made here and name many endpoints, use fewer labels, or detach containers",
            Self::BadId => "use a shorter container name",
            Self::HasOther { .. } => "detach it first, or attach it without naming an address",
            Self::OtherNetwork(_) => "see the ranges with `weavectl network list`",
            Self::Reserved(_) | Self::Outside(_) => "choose another address, or let the node choose",
            Self::Elsewhere { node, .. } => return format!("attach the container on {node}, or choose another address"),
            Self::Unowned(_) => "choose another address, or wait until its owner is known",
            Self::NoPong(_) => "see the session with `weavectl connections`; one lost packet means little",
            Self::Stopping => "ask again when it has started",
            Self::Storage(_) => "free space on the disk of the state directory, or repair it; the node goes on by itself",
        }
        .to_owned()
    }

    const fn code(&self) -> Code {
        match self {
            Self::AlreadyMember(_)
            | Self::Underway
            | Self::AddressTaken { .. }
            | Self::AmbiguousToken(_)
            | Self::AmbiguousNode { .. }
            | Self::HasOther { .. } => Code::Conflict,
            Self::Elsewhere { .. } | Self::RangeTaken { .. } => Code::Conflict,
            Self::UnknownToken(_) | Self::UnknownNode(_) => Code::NotFound,
            Self::UnknownAddress(_) => Code::NotFound,
            Self::TooManyAddresses => Code::Invalid,
            Self::Removed | Self::TooManyKept | Self::Leaving => Code::Conflict,
            Self::TooManyRemoved(_) => Code::Conflict,
            Self::Overlapping(_)
            | Self::InUse(_)
            | Self::LastAdmin
            | Self::LastMember
            | Self::GaveWay(_) => Code::Conflict,
            Self::NobodyToTake | Self::InDoubt => Code::NotReady,
            Self::Oneself | Self::HeirOfItself(_) => Code::Invalid,
            Self::BadRange(_)
            | Self::TokenTerms
            | Self::OverlapTerms
            | Self::BadId
            | Self::SheetTooLong
            | Self::Reserved(_)
            | Self::OtherNetwork(_)
            | Self::Outside(_) => Code::Invalid,
            Self::Stopping | Self::NotMember | Self::NotAdmin { .. } | Self::NoEndpoint => {
                Code::NotReady
            }
            Self::NotConnected(_) | Self::ChainTooLong => Code::NotReady,
            Self::Exhausted { .. } | Self::NoAddresses | Self::Unanswered | Self::Unowned(_) => {
                Code::NotReady
            }
            Self::Refused(_)
            | Self::WrongCluster(_)
            | Self::NoAnswer(_)
            | Self::NoPong(_)
            | Self::NotConfirmed { .. } => Code::Remote,
            Self::Storage(_) => Code::Failed,
        }
    }
}

impl From<CommandError> for Refusal {
    fn from(error: CommandError) -> Self {
        Self::new(error.code(), error.to_string(), error.fix())
    }
}

const fn refused(refusal: tokens::Refusal) -> &'static str {
    match refusal {
        tokens::Refusal::Expired => "the token has expired",
        tokens::Refusal::UsedUp => {
            "the token is used up: as many nodes have joined with it as it was made for"
        }
        tokens::Refusal::Unable => "the inviter cannot save its state just now",
        tokens::Refusal::Revoked => "the token was revoked on the inviter",
    }
}

fn list(addresses: &[SocketAddr]) -> String {
    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

/// The address at an offset, for messages.
pub(super) fn shown(range: &ClusterRange, offset: u32) -> Result<Ipv4Addr, CommandError> {
    let address = range.v4_at(offset);
    let inside = offset < range.size() && range.offset(IpAddr::V4(address)) == Some(offset);
    if inside {
        Ok(address)
    } else {
        Err(CommandError::Outside(range.v4()))
    }
}
