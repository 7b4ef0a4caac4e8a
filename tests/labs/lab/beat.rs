//! Small datagrams at a steady pace from one container to another: when they arrive shows how long nothing did.
//!
//! A connection of TCP says less about that: what it lost it sends again at times of its own, each wait twice the last.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::ns::Ns;
use super::traffic::{payload, udp};

/// Between two datagrams.
const PACE: Duration = Duration::from_millis(10);
/// How long one that was sent may still be on its way at the end.
const LATE: Duration = Duration::from_millis(300);

/// Datagrams that are sent until [`Beat::finish`].
pub(crate) struct Beat {
    start: Instant,
    ends: Arc<AtomicBool>,
    sender: JoinHandle<()>,
    receiver: JoinHandle<Vec<Instant>>,
}

impl Beat {
    /// Begins to send.
    pub(crate) fn start(from: (&Ns, IpAddr), to: (&Ns, IpAddr)) -> Self {
        let (socket, heard) = (udp(from.0, (from.1, 0)), udp(to.0, (to.1, 0)));
        let target = heard.local_addr().expect("a socket has an address");
        heard
            .set_read_timeout(Some(LATE))
            .expect("a socket takes a timeout");
        let ends = Arc::new(AtomicBool::new(false));
        let (sending, hearing) = (Arc::clone(&ends), Arc::clone(&ends));
        let sender = std::thread::spawn(move || {
            while !sending.load(Ordering::Relaxed) {
                // A route that is gone for a while is part of what is measured.
                let _ = socket.send_to(&payload(64, 5), target);
                std::thread::sleep(PACE);
            }
        });
        let receiver = std::thread::spawn(move || {
            let mut arrived = Vec::new();
            loop {
                match heard.recv(&mut [0; 128]) {
                    Ok(_) => arrived.push(Instant::now()),
                    Err(_) if hearing.load(Ordering::Relaxed) => return arrived,
                    Err(_) => {}
                }
            }
        });
        Self {
            start: Instant::now(),
            ends,
            sender,
            receiver,
        }
    }

    /// Ends it: when each that arrived did.
    pub(crate) fn finish(self) -> Vec<Instant> {
        self.ends.store(true, Ordering::Relaxed);
        self.sender.join().expect("the sender lives");
        self.receiver.join().expect("the receiver lives")
    }

    /// Ends it: the longest time in which none arrived.
    pub(crate) fn longest_gap(self) -> Duration {
        let (start, end) = (self.start, Instant::now());
        let arrived = self.finish();
        let times: Vec<Instant> = [start].into_iter().chain(arrived).chain([end]).collect();
        let gaps = times
            .windows(2)
            .map(|pair| pair[1].saturating_duration_since(pair[0]));
        gaps.max().unwrap_or_default()
    }
}
