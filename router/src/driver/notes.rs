//! Notes: what the nodes themselves, and not their overlays, have to say to each other inside their sessions.
//!
//! A note is a control message of kind [`KIND`]; what stands in it is the business of whoever reads the receiver that
//! [`super::Router::notes`] gives. Only members have sessions, so a note has an author who proved itself. It may be lost, and
//! those that nobody fetches in time are dropped: a member that talks without end fills a short queue and no memory.

use tokio::sync::mpsc;
use weave_model::NodeId;

/// The first byte of a note; see [`crate::mesh::message`].
pub(super) const KIND: u8 = 64;

/// The longest note, in bytes.
pub const MAX_NOTE: usize = crate::mesh::message::MAX_BODY - 1;

/// How many notes may wait to be fetched.
const WAITING: usize = 64;

/// A note that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The member who wrote it.
    pub from: NodeId,
    /// What it wrote, up to [`MAX_NOTE`] bytes.
    pub bytes: Vec<u8>,
}

/// Where the control thread leaves notes, and where they are fetched.
pub(super) fn queue() -> (mpsc::Sender<Note>, mpsc::Receiver<Note>) {
    mpsc::channel(WAITING)
}

/// A note as it is sent.
pub(super) fn body(bytes: &[u8]) -> Vec<u8> {
    [&[KIND], bytes].concat()
}
