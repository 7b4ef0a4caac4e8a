//! Devices, addresses, routes and neighbours, over rtnetlink.
//!
//! A [`Netlink`] is one socket in one network namespace: the host's, or a container's ([`Netlink::open_in`]). The verbs
//! are methods on it, a file for each noun: [`link`], [`addr`], [`route`], [`neigh`], and how
//! fast a device may carry ([`Bucket`]). `ensure_*` are the idempotent ones: what is there and agrees stays untouched,
//! what is there and differs is an error, never silently overwritten.
//!
//! The wire format is netlink-packet-route's and the socket's task rtnetlink's (RFC 3549, `<linux/rtnetlink.h>`); the
//! messages are put together here, so that every verb says which flags it sends and all failures come out as [`Error`].

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, TokioSocket};
use tokio::task::JoinHandle;

use crate::netns::{self, Netns};

pub mod addr;
pub(crate) mod ask;
mod delete;
mod error;
mod limit;
pub mod link;
pub mod neigh;
pub mod route;

pub use addr::Address;
pub use error::Error;
pub use limit::Bucket;
pub use link::{BadIfName, IfName, Link, VethEnd};
pub use neigh::Neighbour;
pub use route::Route;

/// Whether an `ensure_*` verb had something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ensured {
    /// It was there already, as it should be.
    Kept,
    /// It was missing and has been made.
    Made,
}

/// How often a list is asked for that the kernel says was disturbed by a change, and how long to wait in between: then
/// there is none. Whoever takes what is not on a list for gone must not see half of one.
const DUMP_ATTEMPTS: usize = 10;
const DUMP_PAUSE: Duration = Duration::from_millis(5);

/// How long the kernel may take for each answer. One that it had no memory for never comes.
const PATIENCE: Duration = Duration::from_secs(10);

/// An rtnetlink socket in one network namespace. Clones share it; it closes with the last one.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
    _task: Arc<Task>,
}

/// The task that reads and writes the socket, ended with its last user.
#[derive(Debug)]
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Netlink {
    /// Opens a socket in the calling thread's namespace. Must be called in a tokio runtime, like all of this.
    pub fn open() -> Result<Self, Error> {
        let socket = socket().map_err(|source| Error::failed("open a netlink socket", source))?;
        Self::start(socket)
    }

    /// Opens a socket in another namespace, which this thread does not enter.
    pub fn open_in(netns: &Netns) -> Result<Self, Error> {
        let socket = netns::run_in(netns, socket)?;
        Self::start(socket.map_err(|source| Error::failed("open a netlink socket", source))?)
    }

    fn start(socket: Socket) -> Result<Self, Error> {
        let runtime = tokio::runtime::Handle::try_current()
            .map_err(|missing| Error::failed("open a netlink socket", io::Error::other(missing)))?;
        // SAFETY: into_raw_fd gives the descriptor up, so the new socket is its only owner. The conversion panics
        // outside a runtime (checked above) and if the socket cannot be made non-blocking (it is already).
        let socket = unsafe { TokioSocket::from_raw_fd(socket.into_raw_fd()) };
        let (mut connection, handle, _unasked) = rtnetlink::from_socket(socket);
        // Without these an answer that ends and a socket that dies look the same.
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        Ok(Self {
            handle,
            _task: Arc::new(Task(runtime.spawn(connection))),
        })
    }

    /// Sends a request that changes something, and waits until the kernel has done it.
    ///
    /// `doing` completes "cannot …" in the error.
    async fn change(
        &self,
        doing: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), Error> {
        self.ask(doing, message, NLM_F_REQUEST | NLM_F_ACK | flags)
            .await
            .map(|_| ())
    }

    /// Asks for one object.
    async fn get(
        &self,
        doing: &str,
        message: RouteNetlinkMessage,
    ) -> Result<RouteNetlinkMessage, Error> {
        let (mut answers, _) = self.ask(doing, message, NLM_F_REQUEST | NLM_F_ACK).await?;
        answers.pop().ok_or(Error::Closed)
    }

    /// Asks for all objects of a kind. A list that a change disturbed while it was made is asked for again.
    async fn dump(
        &self,
        doing: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let mut disturbed = Disturbed::default();
        loop {
            let answers = self
                .ask(doing, message.clone(), NLM_F_REQUEST | NLM_F_DUMP)
                .await?;
            if let Some(whole) = disturbed.take(doing, answers)? {
                return Ok(whole);
            }
            tokio::time::sleep(DUMP_PAUSE).await;
        }
    }

    /// Sends a question and collects the answers; the flag says that no change disturbed the list.
    async fn ask(
        &self,
        doing: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(Vec<RouteNetlinkMessage>, bool), Error> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags;
        let mut answers = self
            .handle
            .clone()
            .request(request)
            .map_err(|_| Error::Closed)?;
        let mut found = Vec::new();
        let mut whole = true;
        loop {
            let next = tokio::time::timeout(PATIENCE, answers.next()).await;
            let late = |_| Error::failed(doing, io::ErrorKind::TimedOut.into());
            let Some(answer) = next.map_err(late)? else {
                return Err(Error::Closed);
            };
            whole &= answer.header.flags & NLM_F_DUMP_INTR == 0;
            let end = match answer.payload {
                NetlinkPayload::InnerMessage(inner) => {
                    found.push(inner);
                    continue;
                }
                NetlinkPayload::Error(end) if end.code.is_some() => Err(end.to_io()),
                NetlinkPayload::Done(end) if end.code < 0 => {
                    Err(io::Error::from_raw_os_error(-end.code))
                }
                NetlinkPayload::Overrun(_) => Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
                _ => Ok(()),
            };
            return match end {
                Ok(()) => Ok((found, whole)),
                Err(source) => Err(Error::answered(doing, source)),
            };
        }
    }
}

/// How often a list was disturbed.
#[derive(Debug, Default)]
struct Disturbed(usize);

impl Disturbed {
    /// The list, if it came whole; `None` if it is to be asked for again.
    fn take<T>(
        &mut self,
        doing: &str,
        (answers, whole): (Vec<T>, bool),
    ) -> Result<Option<Vec<T>>, Error> {
        if whole {
            return Ok(Some(answers));
        }
        self.0 += 1;
        if self.0 < DUMP_ATTEMPTS {
            return Ok(None);
        }
        let disturbed = io::Error::from_raw_os_error(libc::EINTR);
        Err(Error::answered(doing, disturbed))
    }
}

/// A socket in the namespace of the calling thread. Strict checking makes the kernel filter dumps as they ask.
fn socket() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.set_non_blocking(true)?;
    socket.set_netlink_get_strict_chk(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_list_is_none() {
        let mut disturbed = Disturbed::default();
        for _ in 1..DUMP_ATTEMPTS {
            let taken = disturbed.take("list", (vec![1], false));
            assert_eq!(taken.expect("it is asked again"), None);
        }
        let whole = disturbed.take("list", (vec![1, 2], true));
        assert_eq!(whole.expect("it came whole in the end"), Some(vec![1, 2]));
        let error = disturbed
            .take("list", (vec![1], false))
            .expect_err("it never came whole");
        assert!(
            matches!(&error, Error::Failed { source, .. } if source.raw_os_error() == Some(libc::EINTR)),
            "{error}"
        );
    }
}
