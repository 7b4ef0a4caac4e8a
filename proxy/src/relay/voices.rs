//! The shell: sockets that have the fronts' addresses, by which answers leave.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use weave_linux::intercept::datagrams;

use super::shared::Shared;

/// The sockets of one thread, each there as long as a session answers by it.
#[derive(Debug)]
pub(super) struct Voices {
    all: HashMap<SocketAddr, (UdpSocket, usize)>,
    shared: Arc<Shared>,
}

impl Voices {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            all: HashMap::new(),
            shared,
        }
    }

    /// How many descriptors one more session that answers as this front takes.
    pub(super) fn needs(&self, front: SocketAddr) -> usize {
        usize::from(!self.all.contains_key(&front))
    }

    /// One more session answers as this front; what that [`needs`](Self::needs) the caller has taken.
    pub(super) fn join(&mut self, front: SocketAddr) -> io::Result<()> {
        if let Some((_, users)) = self.all.get_mut(&front) {
            *users += 1;
            return Ok(());
        }
        self.all.insert(front, (datagrams::speak(front)?, 1));
        Ok(())
    }

    /// One session less does.
    pub(super) fn leave(&mut self, front: SocketAddr) {
        let Some((_, users)) = self.all.get_mut(&front) else {
            return;
        };
        *users -= 1;
        if *users == 0 {
            self.all.remove(&front);
            self.shared.budget.give(1);
        }
    }

    /// Says something to a client; whether it went out.
    pub(super) fn say(&self, front: SocketAddr, client: SocketAddr, bytes: &[u8]) -> bool {
        let voice = self.all.get(&front);
        voice.is_some_and(|(socket, _)| socket.send_to(bytes, client).is_ok())
    }
}
