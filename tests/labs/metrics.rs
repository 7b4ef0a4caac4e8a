//! Metrics, as a real Prometheus finds them in a real cluster, and the dashboards and alerts that stand on them.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::lab::traffic::{bulk, wait_for};
use crate::lab::{Host, Lab};

/// Where the rules and dashboards are that are shipped.
const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");

/// Asks for a URL inside a host; the body, which must come with success.
fn get(host: &Host, url: &str) -> String {
    host.ns.sh(&format!("curl -fsS --max-time 5 '{url}'"))
}

/// The status code of an answer, whatever it is.
fn code(host: &Host, curl: &str) -> String {
    host.ns.sh(&format!(
        "curl -s -o /dev/null -w '%{{http_code}}' --max-time 5 {curl}"
    ))
}

/// A program that is killed with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `promtool` finds nothing to say about the metrics; a Prometheus that scrapes two nodes has what they count, every alert
/// rule and panel that is shipped names metrics that it knows, and no alert fires on a cluster that is well.
#[test]
fn prometheus_has_what_the_nodes_count() {
    Lab::run(|lab| {
        let hosts = lab.cluster::<2>();
        let [h1, h2] = &hosts;
        let [a, b] = [h1.attach("a"), h2.attach("b")];
        bulk(&a.ns, (&b.ns, b.v4.into()), 1 << 20);
        let text = get(h1, "http://127.0.0.1:6782/metrics");
        lint(&text);
        let sent = value(&text, "weave_transmit_bytes_total");
        assert!(
            sent > f64::from(1 << 20),
            "{sent} bytes were sent to the peer"
        );
        assert_eq!(code(h1, "http://127.0.0.1:6782/"), "404");

        let server = prometheus(lab, h1);
        let query = |expression: &str| -> Value {
            let out = h1.ns.sh(&format!(
                "curl -fsS -G --data-urlencode 'query={expression}' http://127.0.0.1:9090/api/v1/query"
            ));
            serde_json::from_str(&out).expect("Prometheus answers JSON")
        };
        wait_for("Prometheus scrapes", Duration::from_secs(30), || {
            let up = h1
                .ns
                .try_sh("curl -fsS http://127.0.0.1:9090/api/v1/query?query=up");
            let up: Value = serde_json::from_slice(&up.stdout).unwrap_or_default();
            up["data"]["result"][0]["value"][1] == "1"
        });
        let connected = query("weave_peer_connected{peer=\"h2\"}");
        assert_eq!(connected["data"]["result"][0]["value"][1], "1");
        let names = get(h1, "http://127.0.0.1:9090/api/v1/label/__name__/values");
        let names: Value = serde_json::from_str(&names).expect("JSON");
        let known: BTreeSet<&str> = names["data"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let mut used = BTreeSet::new();
        for file in ["grafana/weave.json", "prometheus/weave.rules.yml"] {
            let text = std::fs::read_to_string(format!("{DEPLOY}/{file}")).expect("it is shipped");
            used.extend(names_in(&text));
        }
        assert!(used.len() > 15, "{used:?}");
        let unknown: Vec<&String> = used
            .iter()
            .filter(|name| !known.contains(name.as_str()))
            .collect();
        assert!(
            unknown.is_empty(),
            "no node tells {unknown:?}; they tell {known:?}"
        );
        let firing = query("ALERTS{alertstate=\"firing\"}");
        assert_eq!(
            firing["data"]["result"],
            serde_json::json!([]),
            "all is well"
        );
        drop(server);
    });
}

/// Elsewhere than on loopback metrics need a token, and a port that is taken costs the metrics, not the network.
#[test]
fn metrics_are_for_who_may_see_them() {
    Lab::run(|lab| {
        let host = lab.host("h1", 1);
        let token = lab.dir().join("token");
        std::fs::write(&token, "0123456789abcdef0123\n").expect("it can be written");
        let token = token.display().to_string();
        host.start_with(&[
            "--metrics",
            "192.168.77.1",
            "--metrics-token",
            &token,
            "--dashboard",
            "off",
        ]);
        let at = "http://192.168.77.1:6782/metrics";
        let table = [
            (String::new(), "401"),
            (
                "-H 'Authorization: Bearer 0123456789abcdef0124'".to_owned(),
                "401",
            ),
            (
                "-H 'Authorization: Basic 0123456789abcdef0123'".to_owned(),
                "401",
            ),
            (
                "-H 'Authorization: Bearer 0123456789abcdef0123'".to_owned(),
                "200",
            ),
        ];
        for (header, expected) in table {
            assert_eq!(code(&host, &format!("{header} {at}")), expected, "{header}");
        }
        host.end("TERM");
        let _squatter = host
            .ns
            .inside(|| std::net::TcpListener::bind("127.0.0.1:6782"))
            .expect("it is free");
        host.start();
        let status = host.status();
        let problems = status["problems"].to_string();
        assert!(
            problems.contains("metrics cannot be served at 127.0.0.1:6782"),
            "{problems}"
        );
        assert_eq!(status["verdict"], "degraded");
    });
}

/// The value of the first sample of a metric.
fn value(text: &str, name: &str) -> f64 {
    let line = text
        .lines()
        .find(|line| line.starts_with(&format!("{name}{{")));
    let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
    let value = line.rsplit(' ').next().and_then(|word| word.parse().ok());
    value.unwrap_or_else(|| panic!("{line} has no value"))
}

/// Fails on anything that `promtool check metrics` has to say.
fn lint(text: &str) {
    let mut tool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is installed (Debian package prometheus)");
    let mut stdin = tool.stdin.take().expect("it was piped");
    stdin.write_all(text.as_bytes()).expect("promtool reads");
    drop(stdin);
    let said = tool.wait_with_output().expect("promtool ends");
    let words =
        String::from_utf8_lossy(&said.stderr).into_owned() + &String::from_utf8_lossy(&said.stdout);
    assert!(said.status.success() && words.is_empty(), "{words}");
}

/// Every word that starts as our metrics do.
fn names_in(text: &str) -> Vec<String> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words
        .filter(|word| word.starts_with("weave_"))
        .map(str::to_owned)
        .collect()
}

/// A Prometheus with the rules that are shipped, which scrapes the node of its host every second.
fn prometheus(lab: &Lab, host: &Host) -> Running {
    let rules = format!("{DEPLOY}/prometheus/weave.rules.yml");
    let config = lab.dir().join("prometheus.yml");
    let text = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{rules}']\n\
         scrape_configs: [{{job_name: weave, static_configs: [{{targets: ['127.0.0.1:6782']}}]}}]\n"
    );
    std::fs::write(&config, text).expect("it can be written");
    let checked = Command::new("promtool")
        .arg("check")
        .arg("config")
        .arg(&config)
        .output()
        .expect("promtool is installed");
    assert!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&checked.stdout)
    );
    let child = host
        .ns
        .command("prometheus")
        .arg(format!("--config.file={}", config.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            lab.dir().join("tsdb").display()
        ))
        .arg("--web.listen-address=127.0.0.1:9090")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("prometheus is installed");
    Running(child)
}
