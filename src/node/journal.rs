//! Where the book lives on disk: two slots of its own below the state directory.

use std::io;
use std::path::Path;

use weave_router::store::Store;

use super::book::Book;
use crate::obstacle::Obstacle;

/// The open journal.
pub(super) struct Journal {
    store: Store,
}

impl Journal {
    /// Opens the journal of a state directory and reads the book; an absent one is empty.
    pub(super) fn open(state_dir: &Path) -> Result<(Self, Book), Obstacle> {
        let directory = state_dir.join("attachments");
        let (store, found) =
            Store::open(&directory).map_err(|error| Obstacle::from_error(&error))?;
        if let Some(slot) = found.damaged_slot {
            tracing::warn!(slot = %slot.display(), "a copy of the journal is damaged; the other one is used");
        }
        let book = match found.content {
            None => Book::default(),
            Some(content) => Book::from_bytes(&content).map_err(|error| {
                let fix = format!(
                    "start the newer weaved, or detach all containers and move {} away",
                    directory.display()
                );
                Obstacle::new(error.to_string(), fix)
            })?,
        };
        Ok((Self { store }, book))
    }

    /// Writes the book; when this returns it survives a kill and a power loss.
    pub(super) fn write(&mut self, book: &Book) -> io::Result<()> {
        self.store.write(&book.to_bytes())
    }
}
