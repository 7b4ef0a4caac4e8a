//! Giving a container's attachment back, which no runtime asks for twice: now, or when the node is there again.

use std::path::Path;

use weave_model::api::{Attachments, CniRef, Code};

use crate::error::{Error, code};
use crate::node::NoAnswer;
use crate::{journal, node};

/// Frees an attachment, now or, when the node does not answer, when it is back.
pub fn free(socket: &Path, what: &CniRef) -> Result<(), Error> {
    let gone: Result<Attachments, NoAnswer> = node::post(socket, "/cni/del", what);
    let why = match gone {
        Ok(_) => return Ok(()),
        Err(NoAnswer::Unheard(why)) => why,
        Err(NoAnswer::Refused(refusal)) if refusal.code == Code::NotReady => refusal.message,
        Err(NoAnswer::Refused(refusal)) => {
            return Err(Error::new(code::LATER, refusal.message).with(refusal.fix));
        }
    };
    journal::write(socket, what).map_err(|error| {
        let message = format!("{why}, and it cannot be written down for later: {error}");
        Error::new(code::LATER, message)
    })?;
    eprintln!("weave-cni: {why}; written down beside its socket");
    Ok(())
}
