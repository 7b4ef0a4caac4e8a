//! Metrics, as a real Prometheus finds them in a real cluster, and the dashboards and alerts that stand on them.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::cni::come_and_go;
use crate::lab::ns;
use crate::lab::traffic::{bulk, udp, wait_for};
use crate::lab::{Container, Host, Lab, form};
use crate::services::{balances, serve};

/// Where a node tells them.
const METRICS: &str = "http://127.0.0.1:6782/metrics";

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

/// `promtool` finds nothing to say about the metrics; the reference lists them as they are; a Prometheus that scrapes a node
/// has what it counts, every alert rule and panel that is shipped can be evaluated and names metrics that it knows, and no
/// alert fires on a cluster that is well.
#[test]
fn prometheus_has_what_the_nodes_count() {
    Lab::run(|lab| {
        let hosts = [lab.host("h1", 1), lab.host("h2", 2)];
        let [h1, h2] = &hosts;
        let plugin = lab.dir().join("weave.sock").display().to_string();
        h1.start_with(&[&format!("--docker-plugin={plugin}")]);
        h2.start();
        form(&hosts);
        let a = h1.attach("a");
        live(h1, h2, &a);
        rules_are_changed(h1);
        docker_asks(h1, &plugin);
        let b = h2.attach("b");
        bulk(&a.ns, (&b.ns, b.v4.into()), 1 << 20);
        wait_for("loss was measured", Duration::from_secs(30), || {
            get(h1, METRICS).contains("weave_peer_loss_ratio{")
        });
        let text = get(h1, METRICS);
        lint(&text);
        assert_eq!(
            listed(),
            described(&text),
            "docs/metrics.md, and what a node tells"
        );
        is_bounded(&text);
        counts_are_right(&text);
        assert_eq!(code(h1, "http://127.0.0.1:6782/"), "404");
        only_loopback_s_names_are_taken(h1);
        packets_find_no_room(h1, &a, &b);
        let server = prometheus(lab, h1);
        wait_for("Prometheus scrapes", Duration::from_secs(30), || {
            value_of(&query(h1, "up")).as_deref() == Some("1")
        });
        let connected = query(h1, "weave_peer_connected{peer=\"h2\"}");
        assert_eq!(value_of(&connected).as_deref(), Some("1"));
        what_is_shipped_is_known(h1);
        let firing = query(h1, "ALERTS{alertstate=\"firing\"}");
        assert_eq!(firing["data"]["result"], json!([]), "all is well");
        drop(server);
    });
}

/// A page that somebody's DNS leads to loopback does not read metrics; who scrapes by an address does.
fn only_loopback_s_names_are_taken(host: &Host) {
    for (name, expected) in [
        ("localhost:6782", "200"),
        ("127.0.0.1", "200"),
        ("evil.example:6782", "403"),
        ("192.168.77.1:6782", "403"),
    ] {
        let asked = code(host, &format!("-H 'Host: {name}' {METRICS}"));
        assert_eq!(asked, expected, "{name}");
    }
}

/// While the node stands still, packets on their way out find no room in the queue of its device: that is counted.
fn packets_find_no_room(host: &Host, from: &Container, to: &Container) {
    const DROPPED: &str = "weave_transmit_queue_dropped_total";
    let count = || {
        let text = get(host, METRICS);
        let line = samples(&text).find(|line| line.starts_with(DROPPED));
        number(line.expect("it is told"))
    };
    let before = count();
    let sender = udp(&from.ns, (from.v4, 0));
    ns::host(&format!("kill -STOP {}", host.pid()));
    for _ in 0..5000 {
        // What the device does not take is an error to nobody.
        let _ = sender.send_to(&[0; 100], (to.v4, 9));
    }
    ns::host(&format!("kill -CONT {}", host.pid()));
    let dropped = count() - before;
    assert!((1000.0..5000.0).contains(&dropped), "{dropped} of 5000");
}

/// The alerts fire when they should, and not before.
#[test]
fn alerts_fire_on_what_they_are_for() {
    let tests = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/prometheus/weave.rules.test.yml"
    );
    let tool = Command::new("promtool")
        .args(["test", "rules", tests])
        .output()
        .expect("promtool is installed (Debian package prometheus)");
    let words = String::from_utf8_lossy(&tool.stdout) + String::from_utf8_lossy(&tool.stderr);
    assert!(tool.status.success(), "{words}");
}

/// The ports of Services that the kernel serves: the name and the label.
const PORTS: &str = "weave_service_ports";
const KERNEL_S: &str = "engine=\"kernel\"";

/// A container that CNI adds and deletes, and two Services, one for each engine, that the container uses.
fn live(host: &Host, other: &Host, client: &Container) {
    come_and_go(host, "pod");
    let ns = other.bare_container("w");
    serve(&ns, "w");
    other.attach_ns(ns, "w", &["--label", "app=web"]);
    for (name, engine) in [("plain", "kernel"), ("proxied", "relay")] {
        let words = ["service", "create", name, "--port", "80:8080"];
        let more = ["--selector", "app=web", "--engine", engine];
        let made = host.json(&[&words[..], &more].concat());
        let address = made["addresses"][0].as_str().expect("an address");
        let address: IpAddr = address.parse().expect("an address");
        // The kernel serves what the relay does not yet.
        let serves =
            |line: &str| line.starts_with("weave_relay_picks_total{") && number(line) > 0.0;
        wait_for("the engine serves", Duration::from_secs(30), || {
            balances(&client.ns, (address, 80).into(), &["w"]);
            engine == "kernel" || samples(&get(host, METRICS)).any(serves)
        });
    }
}

/// A Service comes and goes until the rules were changed for it: what changes besides may have them made anew.
fn rules_are_changed(host: &Host) {
    wait_for("rules are changed", Duration::from_secs(30), || {
        let brief = ["service", "create", "brief", "--port", "81"];
        host.json(&[&brief[..], &["--selector", "app=web"]].concat());
        host.ok(&["service", "rm", "brief"]);
        let text = get(host, METRICS);
        all(&text, "weave_service_syncs_total", "result=\"changed\"") >= 1.0
    });
    wait_for("it is gone", Duration::from_secs(30), || {
        all(&get(host, METRICS), PORTS, KERNEL_S) == 2.0
    });
}

/// Docker asks for a pool of addresses, and for one that there is not.
fn docker_asks(host: &Host, plugin: &str) {
    let ask = |body: &str| {
        let curl = format!("--unix-socket {plugin} -d '{body}' http://d/IpamDriver.RequestPool");
        code(host, &curl)
    };
    assert_eq!(ask("{}"), "200");
    assert_eq!(ask(r#"{"Pool": "192.0.2.0/24"}"#), "500");
}

/// What was done is what is counted.
fn counts_are_right(text: &str) {
    let all = |name: &str, labels: &str| all(text, name, labels);
    let sent = all("weave_transmit_bytes_total", "peer=\"h2\"");
    assert!(
        sent > f64::from(1 << 20),
        "{sent} bytes were sent to the peer"
    );
    for operation in ["add", "del"] {
        let labels = format!("operation=\"{operation}\",result=\"ok\"");
        assert_eq!(all("weave_cni_operations_total", &labels), 1.0, "{labels}");
    }
    let pools = |result: &str| {
        let labels = format!("operation=\"request_pool\",result=\"{result}\"");
        all("weave_docker_operations_total", &labels)
    };
    assert_eq!(
        (pools("ok"), pools("invalid") + pools("not_found")),
        (1.0, 1.0)
    );
    assert_eq!(all(PORTS, KERNEL_S), 2.0, "one in either family");
    assert!(all("weave_relay_picks_total", "service=\"proxied\"") >= 1.0);
    assert!(all("weave_service_syncs_total", "result=\"changed\"") >= 1.0);
    assert!(all("weave_handshakes_total", "result=\"completed\"") >= 1.0);
    let loss = all("weave_peer_loss_ratio", "peer=\"h2\"");
    assert!((0.0..=1.0).contains(&loss), "{loss}");
}

/// No label is an address: there are too many, and they come and go.
fn is_bounded(text: &str) {
    let values = samples(text).flat_map(|line| line.split('"').skip(1).step_by(2));
    let addresses: Vec<&str> = values
        .filter(|value| value.parse::<IpAddr>().is_ok() || value.parse::<SocketAddr>().is_ok())
        .collect();
    assert!(addresses.is_empty(), "{addresses:?}");
}

/// Every expression of what is shipped can be evaluated, and every metric that it names is there.
fn what_is_shipped_is_known(host: &Host) {
    let names = get(host, "http://127.0.0.1:9090/api/v1/label/__name__/values");
    let names: Value = serde_json::from_str(&names).expect("JSON");
    let known: BTreeSet<&str> = names["data"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let rules = std::fs::read_to_string(format!("{DEPLOY}/prometheus/weave.rules.yml"));
    let mut used: BTreeSet<String> = names_in(&rules.expect("it is shipped"))
        .into_iter()
        .collect();
    let (mut files, mut panels) = (0, 0);
    for file in std::fs::read_dir(format!("{DEPLOY}/grafana")).expect("dashboards are shipped") {
        let text = std::fs::read_to_string(file.expect("it can be listed").path()).expect("text");
        used.extend(names_in(&text));
        let dashboard: Value = serde_json::from_str(&text).expect("a dashboard is JSON");
        for expression in expressions(&dashboard) {
            let answer = query(host, &expression);
            assert_eq!(answer["status"], "success", "{expression}: {answer}");
            panels += 1;
        }
        files += 1;
    }
    assert!(
        files >= 3 && panels > 30 && used.len() > 40,
        "{files} {panels} {used:?}"
    );
    let unknown: Vec<&String> = used
        .iter()
        .filter(|name| !known.contains(name.as_str()))
        .collect();
    assert!(
        unknown.is_empty(),
        "no node tells {unknown:?}; they tell {known:?}"
    );
}

/// What the panels of a dashboard ask, with the variables that Grafana puts in.
fn expressions(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().into_iter().flatten();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let plain = |target: &Value| {
        let expression = target["expr"].as_str().expect("a target asks something");
        expression
            .replace("$__rate_interval", "1m")
            .replace("$instance", ".*")
    };
    targets.map(plain).collect()
}

/// Asks the Prometheus on a host.
fn query(host: &Host, expression: &str) -> Value {
    let expression = expression.replace('\'', "'\\''");
    let said = host.ns.try_sh(&format!(
        "curl -sS -G --data-urlencode 'query={expression}' http://127.0.0.1:9090/api/v1/query"
    ));
    serde_json::from_slice(&said.stdout).unwrap_or_default()
}

/// The value of an answer's first series.
fn value_of(answer: &Value) -> Option<String> {
    let value = &answer["data"]["result"][0]["value"][1];
    value.as_str().map(str::to_owned)
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
            (
                "-H 'Host: h1.example' -H 'Authorization: Bearer 0123456789abcdef0123'".to_owned(),
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

/// The samples of a metric that have these labels, together.
fn all(text: &str, name: &str, labels: &str) -> f64 {
    let lines = samples(text).filter(|line| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with('{'))
            && line.contains(labels)
    });
    lines.map(number).sum()
}

/// The samples in a text of metrics.
fn samples(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.starts_with('#'))
}

/// The value of a sample.
fn number(line: &str) -> f64 {
    let value = line.rsplit(' ').next().and_then(|word| word.parse().ok());
    value.unwrap_or_else(|| panic!("{line} has no value"))
}

/// The rows of the reference: name, type, labels, meaning.
fn listed() -> BTreeSet<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
    let text = std::fs::read_to_string(path).expect("it is there");
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    rows.map(str::to_owned).collect()
}

/// The same rows, made of what a node tells.
fn described(text: &str) -> BTreeSet<String> {
    let helps = text
        .lines()
        .filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' '));
    let row = |(name, help): (&str, &str)| {
        let kind = text.lines().find_map(|line| {
            line.strip_prefix("# TYPE ")?
                .strip_prefix(name)?
                .strip_prefix(' ')
        });
        let kind = kind.unwrap_or_else(|| panic!("{name} has no type"));
        let suffix = if kind == "histogram" { "_count" } else { "" };
        let sample = samples(text).find_map(|line| {
            let rest = line.strip_prefix(name)?.strip_prefix(suffix)?;
            rest.starts_with([' ', '{']).then_some(rest)
        });
        let sample = sample.unwrap_or_else(|| panic!("{name} has no value"));
        let labels: Vec<String> = sample
            .split('"')
            .step_by(2)
            .filter_map(|part| part.trim_start_matches(['{', ',']).strip_suffix('='))
            .map(|label| format!("`{label}`"))
            .collect();
        format!("| `{name}` | {kind} | {} | {help} |", labels.join(", "))
    };
    helps.map(row).collect()
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

/// Every word that starts as metrics of a node do.
fn names_in(text: &str) -> Vec<String> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words
        .filter(|word| word.starts_with("weave_") || word.starts_with("process_"))
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
