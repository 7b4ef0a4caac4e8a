//! Membership and ownership: who belongs to the cluster, and which addresses are whose.
//!
//! Bottom-up: [`codec`] reads and writes bytes; [`cluster`] is the cluster's key and its certificates, [`authority`] who
//! may sign them, [`secret`] how they give the cluster another secret, [`removal`] their end, and [`version`] which of two
//! words is the newer; [`deed`] is one proof of ownership, [`deeds`] all that a node has; [`record`] is what a node says of
//! itself, [`sheet`] what it tells of its containers and Services, [`quarantine`] where all are read; [`message`] and
//! [`parts`] are what members send each other, [`inquiry`] how they ask all the others; [`tokens`] are the invitations and
//! [`join`] is how they are used; [`topology`] says who keeps a session with whom; [`flood`] what to send to whom, and
//! when, after [`digest`] has shown what differs; [`links`] is who reaches whom, and [`paths`] chooses the way to each
//! peer; [`echo`] times pings that were asked for.

pub mod cluster;
pub mod authority;
pub mod secret;
pub mod removal;
pub mod topology;
pub mod codec;
pub mod deed;
pub mod deeds;
pub mod digest;
pub mod inquiry;
pub mod echo;
pub mod flood;
pub mod join;
pub mod message;
pub mod links;
mod measure;
pub mod parts;
pub mod paths;
pub mod quarantine;
pub mod record;
pub mod sheet;
pub mod tokens;
pub mod version;
