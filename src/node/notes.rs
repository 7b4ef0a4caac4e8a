//! What nodes ask of one another inside their sessions: so far, somebody who answers a test.
//!
//! A member asks for a responder, gets its addresses and secret, asks again while it needs it, and gives it back; whoever
//! falls silent loses it after [`LOAN`]. A request may be lost, so it is sent again under the same number, and the same
//! number gets the same responder. One member has one at a time and this node lends [`MOST`] in all, so a member that asks
//! without end occupies one container.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use weave_model::NodeId;
use weave_model::api::{Code, Refusal};
use weave_router::driver::{MAX_NOTE, Note, Router};

use super::responder::{At, Responder};
use super::{AwayNode, Node};
use crate::vital::Part;

/// How many responders this node lends at a time.
const MOST: usize = 8;

/// How long one is lent after each request for it.
const LOAN: Duration = Duration::from_secs(10);

/// How often a borrower that still needs it says so.
const RENEW: Duration = Duration::from_secs(3);

/// How long the same member waits from one new responder to the next.
const PAUSE: Duration = Duration::from_secs(1);

/// How often a request is sent again, and how often in all.
const AGAIN: Duration = Duration::from_secs(1);
const TIMES: usize = 4;

/// What stands in a note, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    /// "Lend me a responder."
    Lend {
        /// Chosen by the one who asks.
        number: u64,
    },
    /// "Here it is."
    Lent {
        number: u64,
        /// Where.
        at: At,
    },
    /// "I cannot."
    Refused {
        number: u64,
        /// Why, for a person.
        cause: String,
    },
    /// "I do not need it any more."
    Back { number: u64 },
}

impl Word {
    fn send(&self, router: &Router, to: NodeId) {
        match serde_json::to_vec(self) {
            Ok(bytes) if bytes.len() <= MAX_NOTE => router.send_note(to, bytes),
            _ => tracing::warn!(?self, "a note is too long to be sent"),
        }
    }
}

/// Who waits for an answer: by the number of the request, from whom it is to come.
#[derive(Debug, Default)]
pub(super) struct Asked(Mutex<BTreeMap<u64, (NodeId, Answer)>>);

type Answer = oneshot::Sender<Result<At, String>>;

impl Asked {
    fn wait(&self, number: u64, from: NodeId) -> oneshot::Receiver<Result<At, String>> {
        let (answer, waits) = oneshot::channel();
        self.lock().insert(number, (from, answer));
        waits
    }

    fn answered(&self, number: u64, from: NodeId, result: Result<At, String>) {
        let mut waiting = self.lock();
        if waiting.get(&number).is_some_and(|(who, _)| *who == from)
            && let Some((_, answer)) = waiting.remove(&number)
        {
            // Whoever asked may have gone away.
            let _ = answer.send(result);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, (NodeId, Answer)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A responder on another node; it is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Borrowed {
    node: AwayNode,
    from: NodeId,
    number: u64,
    /// Where it is.
    pub(super) at: At,
}

impl Borrowed {
    /// Tells the lender again and again that it is still needed; ends when it is dropped.
    pub(super) async fn keep(&self) -> std::convert::Infallible {
        let number = self.number;
        loop {
            sleep(RENEW).await;
            Word::Lend { number }.send(self.node.router(), self.from);
        }
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        let word = Word::Back {
            number: self.number,
        };
        word.send(self.node.router(), self.from);
    }
}

/// Asks a member for a responder.
pub(super) async fn borrow(node: &Node, from: NodeId) -> Result<Borrowed, Refusal> {
    let number = rand::random();
    let mut answer = node.asked().wait(number, from);
    let router = node.away();
    for _ in 0..TIMES {
        Word::Lend { number }.send(router.router(), from);
        match timeout(AGAIN, &mut answer).await {
            Err(_) => {}
            Ok(Ok(Ok(at))) => {
                return Ok(Borrowed {
                    node: router,
                    from,
                    number,
                    at,
                });
            }
            Ok(Ok(Err(cause))) => {
                let fix = "look at the log of weaved there, or wait a little";
                return Err(Refusal::new(Code::Remote, cause, fix));
            }
            Ok(Err(_)) => break,
        }
    }
    node.asked().lock().remove(&number);
    let cause = "it does not answer a request for a test container";
    let fix = "run the same version of weaved there";
    Err(Refusal::new(Code::Remote, cause, fix))
}

/// A responder that a member has.
struct Loan {
    number: u64,
    until: Instant,
    responder: Responder,
}

/// Answers the notes of other members until the router ends. If that ends by itself, `part` tells.
pub(super) fn start(node: AwayNode, notes: mpsc::Receiver<Note>, part: Part) {
    tokio::spawn(async move {
        serve(node, notes).await;
        drop(part);
    });
}

async fn serve(node: AwayNode, mut notes: mpsc::Receiver<Note>) {
    let mut loans: BTreeMap<NodeId, Loan> = BTreeMap::new();
    let mut last: BTreeMap<NodeId, Instant> = BTreeMap::new();
    loop {
        let due = loans.values().map(|loan| loan.until).min();
        let over = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        let note = tokio::select! {
            note = notes.recv() => match note {
                Some(note) => note,
                None => return,
            },
            () = over => {
                loans.retain(|_, loan| loan.until > Instant::now());
                continue;
            }
        };
        let Ok(word) = serde_json::from_slice::<Word>(&note.bytes) else {
            tracing::debug!(peer = %note.from.short(), "a note that says nothing this version knows");
            continue;
        };
        match word {
            Word::Lent { number, at } => node.asked().answered(number, note.from, Ok(at)),
            Word::Refused { number, cause } => {
                node.asked().answered(number, note.from, Err(cause));
            }
            Word::Back { number } => {
                loans.retain(|peer, loan| *peer != note.from || loan.number != number)
            }
            Word::Lend { number } => {
                let lent = lend(&node, &mut loans, &mut last, (note.from, number)).await;
                let answer = match lent {
                    Ok(at) => Word::Lent { number, at },
                    Err(cause) => Word::Refused { number, cause },
                };
                answer.send(node.router(), note.from);
            }
        }
    }
}

/// The responder that a member has under this number, or a new one in place of what it had.
async fn lend(
    node: &AwayNode,
    loans: &mut BTreeMap<NodeId, Loan>,
    last: &mut BTreeMap<NodeId, Instant>,
    (peer, number): (NodeId, u64),
) -> Result<At, String> {
    let now = Instant::now();
    let same = loans.get_mut(&peer).filter(|loan| loan.number == number);
    if let Some(loan) = same {
        loan.until = now + LOAN;
        return Ok(loan.responder.at().clone());
    }
    loans.remove(&peer);
    last.retain(|_, at| now.duration_since(*at) < PAUSE);
    if loans.len() >= MOST || last.contains_key(&peer) {
        return Err("it lends test containers to as many nodes as it may just now".to_owned());
    }
    let here = node.back().ok_or("it is stopping")?;
    let responder = Responder::start(&here)
        .await
        .map_err(|refusal| refusal.message)?;
    last.insert(peer, now);
    let at = responder.at().clone();
    tracing::info!(peer = %peer.short(), "lent a container for a test");
    loans.insert(
        peer,
        Loan {
            number,
            until: now + LOAN,
            responder,
        },
    );
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_fit_a_note_and_come_back_as_they_were() {
        let at = At {
            addresses: vec![
                "10.47.255.254".parse().unwrap(),
                "fd28:6799:ab89::f:fffe".parse().unwrap(),
            ],
            udp: 65_535,
            tcp: 65_534,
            secret: [255; 16],
        };
        let words = [
            Word::Lend { number: u64::MAX },
            Word::Lent { number: 1, at },
            Word::Refused {
                number: 1,
                cause: "no".to_owned(),
            },
            Word::Back { number: 1 },
        ];
        for word in words {
            let bytes = serde_json::to_vec(&word).unwrap();
            assert!(bytes.len() < MAX_NOTE, "{} bytes", bytes.len());
            assert_eq!(serde_json::from_slice::<Word>(&bytes).unwrap(), word);
        }
        assert!(serde_json::from_slice::<Word>(b"{\"later\":{}}").is_err());
    }

    #[test]
    fn an_answer_counts_once_and_from_the_one_who_was_asked() {
        let [peer, other] = [1, 2].map(|byte| NodeId::from_bytes([byte; 32]));
        let asked = Asked::default();
        let mut waits = asked.wait(7, peer);
        asked.answered(7, other, Err("a stranger's".to_owned()));
        asked.answered(8, peer, Err("another number's".to_owned()));
        assert!(waits.try_recv().is_err());
        asked.answered(7, peer, Err("its own".to_owned()));
        asked.answered(7, peer, Err("again".to_owned()));
        assert_eq!(waits.try_recv().unwrap(), Err("its own".to_owned()));
    }
}
