//! The cases of a test as JUnit XML, which build servers read.
//!
//! The form is the common core of what Jenkins, GitLab and GitHub's actions take: one suite, a `testcase` each, with
//! `failure` or `skipped` inside.

use std::fmt::Write as _;

use weave_model::api::{TestCase, TestOutcome, TestReport};

/// The whole document.
pub(super) fn document(report: &TestReport) -> String {
    let count = |outcome| {
        report
            .cases
            .iter()
            .filter(|case| case.outcome == outcome)
            .count()
    };
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(
        text,
        "<testsuite name=\"weave on {}\" tests=\"{}\" failures=\"{}\" skipped=\"{}\" time=\"{}\">",
        escaped(report.node.as_str()),
        report.cases.len(),
        count(TestOutcome::Failed),
        count(TestOutcome::NotRun),
        seconds(report.took_ms),
    );
    for case in &report.cases {
        text.push_str(&element(case));
    }
    text.push_str("</testsuite>\n");
    text
}

fn element(case: &TestCase) -> String {
    let [name, with, found] = [case.name.as_str(), case.with.as_str(), &case.found].map(escaped);
    let time = seconds(case.took_ms);
    let open = format!("  <testcase classname=\"weave.{with}\" name=\"{name}\" time=\"{time}\"");
    match case.outcome {
        TestOutcome::Passed => format!("{open}/>\n"),
        TestOutcome::NotRun => {
            format!("{open}>\n    <skipped message=\"{found}\"/>\n  </testcase>\n")
        }
        TestOutcome::Failed => {
            let fix = escaped(case.fix.as_deref().unwrap_or_default());
            format!("{open}>\n    <failure message=\"{found}\">{fix}</failure>\n  </testcase>\n")
        }
    }
}

fn seconds(ms: u64) -> String {
    format!("{}.{:03}", ms / 1000, ms % 1000)
}

/// Text as it may stand in an attribute or an element; what XML 1.0 cannot say at all becomes a space.
fn escaped(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, letter| {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            letter if letter.is_control() => out.push(' '),
            letter => out.push(letter),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(name: &str, outcome: TestOutcome, fix: Option<&str>) -> TestCase {
        TestCase {
            with: "host2".parse().unwrap(),
            name: name.to_owned(),
            outcome,
            found: "\"5\" < 6 & so on\u{7}".to_owned(),
            fix: fix.map(str::to_owned),
            took_ms: 1203,
        }
    }

    #[test]
    fn every_outcome_has_its_element_and_nothing_breaks_the_document() {
        let report = TestReport {
            outcome: TestOutcome::Failed,
            node: "host1".parse().unwrap(),
            took_ms: 9,
            cases: vec![
                case("a", TestOutcome::Passed, None),
                case("b", TestOutcome::NotRun, None),
                case("c", TestOutcome::Failed, Some("mend <it>")),
            ],
        };
        let expected = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuite name="weave on host1" tests="3" failures="1" skipped="1" time="0.009">
  <testcase classname="weave.host2" name="a" time="1.203"/>
  <testcase classname="weave.host2" name="b" time="1.203">
    <skipped message="&quot;5&quot; &lt; 6 &amp; so on "/>
  </testcase>
  <testcase classname="weave.host2" name="c" time="1.203">
    <failure message="&quot;5&quot; &lt; 6 &amp; so on ">mend &lt;it&gt;</failure>
  </testcase>
</testsuite>
"#;
        assert_eq!(document(&report), expected);
    }
}
