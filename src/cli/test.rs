//! `weavectl test`: has the node test the network, and shows each case.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use weave_model::api::{TestCase, TestOutcome, TestReport, TestRequest};

use super::client::Client;
use super::colour::{Tone, paint};
use super::complete;
use super::failure::{Exit, Failure};
use super::junit;
use super::table::Table;

/// `weavectl test ...`.
#[derive(Debug, clap::Args)]
pub struct Test {
    /// The members to test with: names, or the first digits of ids [default: all]
    #[arg(add = complete::peers())]
    peers: Vec<String>,
    /// The test that takes a few seconds, 25 at most; so far the only one
    #[arg(long)]
    quick: bool,
    /// Write the cases as JUnit XML too
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

impl Test {
    /// Has the node test.
    pub(super) fn run(&self, client: &Client<'_>) -> Result<TestReport, Failure> {
        let request = TestRequest {
            peers: self.peers.clone(),
        };
        let report = client.post("/test", &request)?;
        if let Some(path) = &self.junit {
            write(path, &junit::document(&report))?;
        }
        Ok(report)
    }
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|error| {
        let cause = format!("cannot write {}: {error}", path.display());
        Failure::new(
            Exit::Failed,
            cause,
            "name a file in a folder that can be written to",
        )
    })
}

/// How the process ends: what could not be tried leaves it open whether all is well.
pub(super) const fn exit(report: &TestReport) -> Exit {
    match report.outcome {
        TestOutcome::Passed => Exit::Ok,
        TestOutcome::NotRun => Exit::Degraded,
        TestOutcome::Failed => Exit::Failed,
    }
}

/// A row for each case, what to do about those that failed, and the sum.
pub(super) fn human(report: &TestReport) -> String {
    let mut table = Table::new(&["RESULT", "NODE", "TEST", "TIME", "FOUND"]);
    for case in &report.cases {
        let time = format!("{} ms", case.took_ms);
        let cells = [
            outcome(case.outcome),
            place(report, case),
            case.name.clone(),
            time,
        ];
        table.row(cells.into_iter().chain([case.found.clone()]));
    }
    let mut text = colour(&table.render());
    let mut fixes: Vec<(&str, String)> = Vec::new();
    for case in report.cases.iter().filter(|case| case.fix.is_some()) {
        let fix = case.fix.as_deref().unwrap_or_default();
        if fixes.iter().all(|(known, _)| *known != fix) {
            fixes.push((fix, place(report, case)));
        }
    }
    for (fix, place) in fixes {
        let _ = writeln!(text, "fix ({place}): {fix}");
    }
    let count = |outcome| {
        report
            .cases
            .iter()
            .filter(|case| case.outcome == outcome)
            .count()
    };
    let [passed, not_run, failed] = [
        TestOutcome::Passed,
        TestOutcome::NotRun,
        TestOutcome::Failed,
    ]
    .map(count);
    let seconds = report.took_ms as f64 / 1000.0;
    let _ = writeln!(
        text,
        "\n{passed} passed, {failed} failed, {not_run} not run, in {seconds:.1} s"
    );
    text
}

fn place(report: &TestReport, case: &TestCase) -> String {
    if case.with == report.node {
        "this node".to_owned()
    } else {
        case.with.to_string()
    }
}

fn outcome(outcome: TestOutcome) -> String {
    match outcome {
        TestOutcome::Passed => "ok",
        TestOutcome::NotRun => "not run",
        TestOutcome::Failed => "FAIL",
    }
    .to_owned()
}

/// Colours the first word of each line, when its columns are aligned already.
fn colour(text: &str) -> String {
    let line = |line: &str| {
        let tones = [
            ("ok", Tone::Good),
            ("not run", Tone::Doubtful),
            ("FAIL", Tone::Bad),
        ];
        let found = tones.into_iter().find(|(word, _)| line.starts_with(*word));
        match found {
            Some((word, tone)) => format!("{}{}\n", paint(word, tone), &line[word.len()..]),
            None => format!("{line}\n"),
        }
    };
    text.lines().map(line).collect()
}
