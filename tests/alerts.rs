//! The alerts that are shipped: each leads to what to do about it, every page of the runbook is some alert's, and each is
//! tried out.

use std::collections::BTreeSet;
use std::path::Path;

fn shipped(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy/prometheus")
        .join(name);
    std::fs::read_to_string(path).expect("it is shipped")
}

/// What follows one of these words, on each line that begins with it.
fn after<'a>(text: &'a str, word: &str) -> Vec<&'a str> {
    let lines = text.lines().map(str::trim_start);
    lines.filter_map(|line| line.strip_prefix(word)).collect()
}

#[test]
fn every_alert_has_its_heading_in_the_runbook_and_every_heading_its_alert() {
    let (rules, runbook) = (shipped("weave.rules.yml"), shipped("RUNBOOK.md"));
    let alerts = after(&rules, "- alert: ");
    let urls = after(&rules, "runbook_url: ");
    assert_eq!(alerts.len(), urls.len(), "each alert has one");
    assert!(alerts.len() > 20, "{alerts:?}");
    let anchor = |url: &&str| {
        let anchor = url.strip_prefix("RUNBOOK.md#");
        anchor
            .unwrap_or_else(|| panic!("{url} leads elsewhere"))
            .to_owned()
    };
    let anchors: BTreeSet<String> = urls.iter().map(anchor).collect();
    let headings: BTreeSet<String> = after(&runbook, "## ")
        .into_iter()
        .map(str::to_owned)
        .collect();
    assert_eq!(anchors, headings);
}

/// The name of an alert and that of its heading are one, written in two ways.
#[test]
fn an_alert_is_called_as_its_heading() {
    let rules = shipped("weave.rules.yml");
    let plain = |name: &str| name.replace('-', "").to_lowercase();
    for alert in rules.split("- alert: ").skip(1) {
        let name = alert.lines().next().unwrap_or_default();
        let url = after(alert, "runbook_url: RUNBOOK.md#");
        assert_eq!(format!("weave{}", plain(url[0])), plain(name), "{name}");
    }
}

/// `promtool test rules`, which a lab runs, has a time at which it fires and one at which it does not.
#[test]
fn every_alert_is_tried_out_firing_and_silent() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/prometheus/weave.rules.test.yml");
    let cases = std::fs::read_to_string(path).expect("it is there");
    let firing: BTreeSet<&str> = after(&cases, "- alertname: ").into_iter().collect();
    let silent = after(&cases, "- {alertname: ").into_iter();
    let silent: BTreeSet<&str> = silent.filter_map(|rest| rest.split(',').next()).collect();
    let rules = shipped("weave.rules.yml");
    let alerts: BTreeSet<&str> = after(&rules, "- alert: ").into_iter().collect();
    assert_eq!(alerts, firing, "firing");
    assert_eq!(alerts, silent, "silent");
}
