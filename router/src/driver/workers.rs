//! The data threads: opens their descriptors, starts them, stops them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread::{self, JoinHandle};

use arc_swap::ArcSwap;
use weave_linux::poll::Bell;
use weave_linux::tun::{Tun, TunOptions, TunQueues};
use weave_linux::udp::{Queue, UdpOptions, UdpSocket};

use super::Error;
use crate::path::egress::Egress;
use crate::path::group::{Group, GroupPorts};
use crate::path::ingress::Ingress;
use crate::path::lane;
use crate::path::routes::Routes;
use crate::path::spread::Spread;
use crate::path::stats::{Counters, Sum};
use crate::path::{Door, Input};
use crate::time::Start;
use crate::wire::{LANE_OFFSET, MAX_LANES};

/// Facilities of the kernel that can be done without, each to be refused by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    /// Batches on send.
    pub gso: bool,
    /// Batches on receive.
    pub gro: bool,
    /// Super-packets of UDP.
    pub uso: bool,
    /// Packets of TCP over IPv4 of more than 65,535 bytes.
    pub big_tcp: bool,
    /// One queue, one lane and one thread for each core, at most eight.
    pub multiqueue: bool,
}

impl Default for Offloads {
    fn default() -> Self {
        Self {
            gso: true,
            gro: true,
            uso: true,
            big_tcp: true,
            multiqueue: true,
        }
    }
}

/// What the kernel does for the data threads, of what it was asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Granted {
    /// One call sends many datagrams, on every lane. Lost for good when a device refuses a batch.
    pub gso: bool,
    /// Received datagrams are joined, on every lane.
    pub gro: bool,
    /// Super-packets of TCP come from the TUN device.
    pub tso: bool,
    /// Super-packets of UDP come from it.
    pub uso: bool,
    /// It takes packets of TCP over IPv4 of more than 65,535 bytes.
    pub big_tcp: bool,
    /// Queues of the TUN device, each with its lane and thread.
    pub queues: usize,
}

/// What the data threads are to work on.
#[derive(Clone, Debug)]
pub struct WorkersConfig {
    /// The TUN device's name.
    pub tun: String,
    /// Where to listen for datagrams.
    pub listen: SocketAddr,
    /// What to use of the kernel.
    pub offloads: Offloads,
    /// Told to the control core.
    pub inputs: SyncSender<Input>,
    /// The clock's start.
    pub start: Start,
}

/// The running data threads and what they share.
#[derive(Debug)]
pub struct Workers {
    /// Published routes; store a new one to change them.
    pub routes: Arc<ArcSwap<Routes>>,
    /// One socket for each lane to send on; the first is bound to the node's port.
    pub lanes: Vec<Arc<UdpSocket>>,
    /// What the kernel granted when everything was opened; see [`Workers::granted`].
    opened: Granted,
    /// What the control thread drops.
    pub control: Arc<Counters>,
    /// Where datagrams come in, one for each lane.
    ears: Vec<Arc<UdpSocket>>,
    received: Vec<Arc<Counters>>,
    sent: Vec<Arc<Counters>>,
    /// Where handshakes knock, of all lanes together; the control thread changes its locks.
    pub door: Door,
    bell: Arc<Bell>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Opens everything in the namespace of the calling thread, then starts the threads.
    ///
    /// # Errors
    /// [`Error::Tun`], [`Error::Listen`], [`Error::Socket`]: with what is missing. Nothing is left running.
    pub fn start(config: &WorkersConfig) -> Result<Self, Error> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let count = if config.offloads.multiqueue {
            cores.min(MAX_LANES)
        } else {
            1
        };
        let receivers = listen(config, count)?;
        let lanes = open_lanes(config, &receivers[0], count)?;
        let group = Arc::new(GroupPorts::open().map_err(Error::Socket)?);
        let tun = open_tun(config, count)?;
        let control = Arc::<Counters>::default();
        let mut workers = Self {
            routes: Arc::default(),
            lanes,
            opened: Granted {
                gso: config.offloads.gso,
                gro: receivers.iter().all(|socket| socket.gro()),
                tso: tun.tso,
                uso: tun.uso,
                big_tcp: tun.big_tcp && config.offloads.big_tcp,
                queues: count,
            },
            control: Arc::clone(&control),
            ears: receivers.clone(),
            received: vec![control],
            sent: Vec::new(),
            door: Door::default(),
            bell: Arc::new(Bell::new().map_err(Error::Socket)?),
            threads: Vec::new(),
        };
        let queues = tun.queues.into_iter().map(Arc::new);
        for (lane, (tun, socket)) in queues.zip(receivers).enumerate() {
            workers.add_lane(config, lane as u8, (tun, socket), &group)?;
        }
        workers.add_group(config, group)?;
        Ok(workers)
    }

    fn add_lane(
        &mut self,
        config: &WorkersConfig,
        lane: u8,
        (tun, socket): (Arc<Tun>, Arc<UdpSocket>),
        group: &Arc<GroupPorts>,
    ) -> Result<(), Error> {
        let (sent, received) = (Arc::<Counters>::default(), Arc::<Counters>::default());
        let relayed = Arc::<Counters>::default();
        self.sent.push(Arc::clone(&sent));
        self.sent.push(Arc::clone(&relayed));
        self.received.push(Arc::clone(&received));
        let egress = Egress {
            lane,
            tun: Arc::clone(&tun),
            main: Arc::clone(&self.lanes[0]),
            own: Arc::clone(&self.lanes[usize::from(lane)]),
            counters: sent,
            inputs: config.inputs.clone(),
            start: config.start,
        };
        let inputs = config.inputs.clone();
        let ingress = Ingress {
            socket,
            main: Arc::clone(&self.lanes[0]),
            own: Arc::clone(&self.lanes[usize::from(lane)]),
            lane,
            spread: Spread::new(
                Arc::clone(&self.lanes[0]),
                Arc::clone(&relayed),
                config.start,
            ),
            relayed,
            tun,
            group: Arc::clone(group),
            counters: received,
            inputs,
            door: self.door.clone(),
            start: config.start,
            big_tcp: self.opened.big_tcp,
            uso: self.opened.uso,
        };
        let (routes, bell) = (Arc::clone(&self.routes), Arc::clone(&self.bell));
        self.spawn(format!("weave-lane-{lane}"), move || {
            lane::run(egress, ingress, &routes, &bell)
        })
    }

    fn add_group(&mut self, config: &WorkersConfig, ports: Arc<GroupPorts>) -> Result<(), Error> {
        let counters = Arc::<Counters>::default();
        self.sent.push(Arc::clone(&counters));
        let group = Group {
            ports,
            main: Arc::clone(&self.lanes[0]),
            routes: Arc::clone(&self.routes),
            counters,
            inputs: config.inputs.clone(),
            stop: Arc::clone(&self.bell),
            start: config.start,
        };
        self.spawn("weave-group".into(), move || group.run())
    }

    fn spawn(
        &mut self,
        name: String,
        run: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Result<(), Error> {
        let label = name.clone();
        let body = move || {
            if let Err(error) = run() {
                tracing::error!(thread = label, %error, "a data thread ended");
            }
        };
        let thread = thread::Builder::new()
            .name(name)
            .spawn(body)
            .map_err(Error::Socket)?;
        self.threads.push(thread);
        Ok(())
    }

    /// What was sent and received so far.
    pub fn counts(&self) -> (Sum, Sum) {
        let add = |threads: &[Arc<Counters>]| {
            let mut sum = Sum::default();
            threads
                .iter()
                .for_each(|counters| counters.add_to(&mut sum));
            sum
        };
        (add(&self.sent), add(&self.received))
    }

    /// What waits to be read from the node's port; a socket that does not say is left out.
    pub fn queue(&self) -> Queue {
        let each = self.ears.iter().filter_map(|socket| socket.queue().ok());
        each.fold(Queue::default(), Queue::with)
    }

    /// What the kernel still does for the data threads.
    pub fn granted(&self) -> Granted {
        Granted {
            gso: self.lanes.iter().all(|socket| socket.gso()),
            ..self.opened
        }
    }

    /// Whether every data thread still runs.
    pub fn healthy(&self) -> bool {
        self.threads.iter().all(|thread| !thread.is_finished())
    }

    /// The address it listens on.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.lanes
            .first()
            .and_then(|socket| socket.local_addr().ok())
    }
}

impl Drop for Workers {
    /// Stops the threads and waits for them. The TUN device stays.
    fn drop(&mut self) {
        self.bell.ring();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so; the others still have to be waited for.
            let _ = thread.join();
        }
    }
}

fn open_tun(config: &WorkersConfig, queues: usize) -> Result<TunQueues, Error> {
    // A persistent device keeps the kind it was made with, so it is always made for several queues.
    let options = TunOptions {
        name: config.tun.clone(),
        queues,
        tso: true,
        uso: config.offloads.uso,
    };
    Tun::open(&options).map_err(|source| Error::Tun {
        device: config.tun.clone(),
        source,
    })
}

/// One socket for each receiving thread, all on one address; the kernel steers by the lane in the datagram.
fn listen(config: &WorkersConfig, count: usize) -> Result<Vec<Arc<UdpSocket>>, Error> {
    let Offloads { gso, gro, .. } = config.offloads;
    let failed = |source| Error::Listen {
        address: config.listen,
        source,
    };
    // Sockets that share a port would also share it with another weaved: the first bind, alone, finds it out.
    let alone = UdpOptions {
        reuse_port: false,
        gso,
        gro,
    };
    let probe = UdpSocket::bind(config.listen, alone).map_err(failed)?;
    let address = probe.local_addr().map_err(failed)?;
    drop(probe);
    let shared = UdpOptions {
        reuse_port: true,
        ..alone
    };
    let bind = |_| {
        UdpSocket::bind(address, shared)
            .map(Arc::new)
            .map_err(failed)
    };
    let sockets = (0..count).map(bind).collect::<Result<Vec<_>, _>>()?;
    if count > 1 {
        sockets[count - 1]
            .steer(LANE_OFFSET, count as u32)
            .map_err(failed)?;
    }
    Ok(sockets)
}

/// Lane 0 sends from the node's port, every other lane from a port of its own.
fn open_lanes(
    config: &WorkersConfig,
    main: &Arc<UdpSocket>,
    count: usize,
) -> Result<Vec<Arc<UdpSocket>>, Error> {
    let mut any = config.listen;
    any.set_port(0);
    let options = UdpOptions {
        reuse_port: false,
        gso: config.offloads.gso,
        gro: false,
    };
    let mut lanes = vec![Arc::clone(main)];
    for _ in 1..count {
        let socket = UdpSocket::bind(any, options).map_err(Error::Socket)?;
        // Members answer to the node's port; what else comes would fill a queue that nobody reads.
        socket.deafen().map_err(Error::Socket)?;
        lanes.push(Arc::new(socket));
    }
    Ok(lanes)
}
