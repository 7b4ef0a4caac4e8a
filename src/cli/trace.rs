//! `weavectl trace A B`: shows each step that a packet from A to B takes, and the one that drops it.

use std::fmt::Write as _;

use weave_model::api::{Trace, TraceEnd};

use super::failure::Exit;
use super::table::Table;

/// 1 for a packet that does not arrive.
pub(super) const fn exit(trace: &Trace) -> Exit {
    match trace.end {
        TraceEnd::Dropped => Exit::Failed,
        _ => Exit::Ok,
    }
}

/// A row for each step, then what becomes of the packet.
pub(super) fn human(trace: &Trace) -> String {
    let mut table = Table::new(&["AT", "CHECK", "RESULT", "FOUND"]);
    for hop in &trace.hops {
        let result = if hop.passed { "ok" } else { "DROP" };
        let cells = [hop.at.as_str(), &hop.check, result, &hop.found];
        table.row(cells.map(str::to_owned));
    }
    let mut text = table.render();
    if let Some(fix) = trace.hops.iter().find_map(|hop| hop.fix.as_deref()) {
        let _ = writeln!(text, "fix: {fix}");
    }
    let last = trace.hops.last().map_or("", |hop| &hop.at);
    let end = match trace.end {
        TraceEnd::Delivered => "is delivered".to_owned(),
        TraceEnd::HandedOver => format!("is handed to {last}, which knows what becomes of it"),
        TraceEnd::Leaves => "leaves the network".to_owned(),
        TraceEnd::Host => "reaches this host itself".to_owned(),
        TraceEnd::Dropped => format!("is dropped at {last}"),
    };
    let _ = writeln!(text, "\n{} to {}: {end}", trace.source, trace.destination);
    text
}
