//! Deleting a device without waiting for what the kernel does when it is long gone.
//!
//! A device is unlisted at once: no look-up finds it, its name, addresses and routes are free. Only then, and without
//! the lock that other changes need, the kernel waits until no core may still have a reference (`netdev_run_todo`, an
//! RCU barrier: 10 to 40 ms), and answers whoever asked. So a thread of its own asks, and whoever looks whether the device
//! is gone goes on earlier. Nothing can go wrong any more in between.

use std::sync::Arc;
use std::time::Duration;

use netlink_packet_core::NLM_F_ACK;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkMessage;

use super::ask;
use super::{Error, Netlink};
use crate::netns::{Netns, run_in};

/// How often to look whether the device is gone: a look waits in the kernel while the device is taken apart.
const LOOK: Duration = Duration::from_micros(500);

impl Netlink {
    /// Deletes a device of this socket's namespace, which is `netns`, and returns when it is gone. `NotFound` if it was
    /// gone already.
    ///
    /// # Errors
    /// When the kernel refuses, or no socket can be opened.
    pub async fn take_link(&self, netns: &Arc<Netns>, index: u32) -> Result<(), Error> {
        let netns = Arc::clone(netns);
        let mut deleting = tokio::task::spawn_blocking(move || delete(&netns, index));
        loop {
            tokio::select! {
                biased;
                deleted = &mut deleting => {
                    return deleted.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
                }
                () = tokio::time::sleep(LOOK) => {}
            }
            if self.link_at(index).await?.is_none() && !deleting.is_finished() {
                return Ok(());
            }
        }
    }
}

fn delete(netns: &Netns, index: u32) -> Result<(), Error> {
    let doing = format!("delete device {index}");
    let mut message = LinkMessage::default();
    message.header.index = index;
    let deleted = run_in(netns, || {
        let socket = ask::open()?;
        ask::ask(&socket, RouteNetlinkMessage::DelLink(message), NLM_F_ACK)
    });
    let deleted = deleted.map_err(|error| Error::failed(&doing, std::io::Error::other(error)))?;
    deleted
        .map(drop)
        .map_err(|error| Error::answered(&doing, error))
}
