//! The only door to the kernel, and the only unsafe code of Weave: small safe wrappers, each around one facility.
//!
//! Nothing here knows what the rest of Weave is about: it takes addresses, names and bytes.

mod ifname;

pub mod clock;
pub mod conntrack;
pub mod descriptors;
pub mod file;
pub mod intercept;
pub mod myself;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod packet;
pub mod pipe;
pub mod poll;
pub mod processes;
pub mod sniff;
pub mod sockets;
pub mod sysctl;
pub mod tun;
pub mod udp;
pub mod uevent;
pub mod unix;
pub mod uplink;
