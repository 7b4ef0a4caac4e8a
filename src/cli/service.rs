//! `weavectl service ...`: virtual addresses in front of containers.

use std::fmt::Write as _;

use weave_model::api::{Backend, BackendState, ServiceInfo, ServiceRequest, Services};
use weave_model::{ContainerName, DeclaredPort, Engine, NodeName, ServiceSpec};

use super::args::service::{Create, Port, ServiceCommand};
use super::client::Client;
use super::failure::{Exit, Failure};
use super::shown::{Answer, Shown};
use super::table::Table;
use crate::duration;

pub(super) fn run(client: &Client<'_>, shown: &Shown, command: &ServiceCommand) -> Answer {
    match command {
        ServiceCommand::Create(create) => {
            let made: ServiceInfo = client.post("/services", &request(create)?)?;
            shown.answer(&made, |made| {
                let addresses: Vec<String> =
                    made.addresses.iter().map(ToString::to_string).collect();
                format!("{}: {}\n", made.name, addresses.join(" and "))
            })
        }
        ServiceCommand::List(_) => shown.answer(&client.get("/services")?, list),
        ServiceCommand::Describe { name, .. } => {
            let all: Services = client.get("/services")?;
            let found = all
                .services
                .into_iter()
                .find(|service| service.name == *name);
            let found = found.ok_or_else(|| {
                let cause = format!("there is no service {name}");
                Failure::new(
                    Exit::Failed,
                    cause,
                    "see what there is with: weavectl service list",
                )
            })?;
            shown.answer(&found, describe)
        }
        ServiceCommand::Rm { name } => {
            let gone: ServiceInfo = client.delete(&format!("/services/{name}"))?;
            shown.answer(&gone, |gone| format!("{} is removed\n", gone.name))
        }
    }
}

fn request(create: &Create) -> Result<ServiceRequest, Failure> {
    if create.node_ports.len() > create.ports.len() {
        let cause = "there are more --node-port than --port".to_owned();
        return Err(Failure::new(
            Exit::Usage,
            cause,
            "give each port at most one",
        ));
    }
    let has_own = |port: &Port| create.endpoints.iter().all(|one| one.port() == port.target);
    // That given endpoints have one port is for the node to say.
    if let [port] = &create.ports[..]
        && port.target != port.port
        && !has_own(port)
    {
        let cause = format!(
            "each --endpoint has its own port, and --port names another one, {}",
            port.target
        );
        let fix = format!("leave it out: --port {}", port.port);
        return Err(Failure::new(Exit::Usage, cause, fix));
    }
    let ports = create
        .ports
        .iter()
        .enumerate()
        .map(|(at, port)| DeclaredPort {
            port: port.port,
            target: port.target,
            protocol: port.protocol,
            node_port: create.node_ports.get(at).copied(),
        });
    let labels = create.selector.iter();
    let spec = ServiceSpec {
        ports: ports.collect(),
        selector: labels
            .map(|label| (label.key.clone(), label.value.clone()))
            .collect(),
        containers: create.containers.iter().cloned().collect(),
        endpoints: create.endpoints.clone(),
        affinity_s: create
            .affinity
            .map(|time| time.as_secs().try_into().unwrap_or(u32::MAX)),
        engine: create.engine,
        balance: create.balance,
        health: create.health.clone(),
    };
    let name = create.name.clone();
    Ok(ServiceRequest { name, spec })
}

/// The engine that a service asks for, and how it is balanced.
fn engine(service: &ServiceInfo) -> String {
    let engine = match (service.spec.engine, service.spec.balance) {
        (Some(engine), _) => engine.to_string(),
        (None, Some(_)) => Engine::Relay.to_string(),
        (None, None) => "as each node is set".to_owned(),
    };
    let balance = service.spec.balance;
    balance.map_or_else(|| engine.clone(), |balance| format!("{engine}, {balance}"))
}

fn health(service: &ServiceInfo) -> String {
    let check = service.spec.health.as_ref();
    check.map_or_else(|| "not checked".to_owned(), ToString::to_string)
}

fn list(answer: &Services) -> String {
    if answer.services.is_empty() {
        return "there are no services; make one with: weavectl service create NAME --port PORT --selector KEY=VALUE\n"
            .to_owned();
    }
    let mut table = Table::new(&["NAME", "ADDRESS", "PORTS", "BEHIND IT", "READY", "MADE ON"]);
    for service in &answer.services {
        let ready = service
            .backends
            .iter()
            .filter(|one| one.state == BackendState::Ready);
        table.row([
            service.name.to_string(),
            service
                .addresses
                .first()
                .map_or_else(String::new, ToString::to_string),
            ports(service),
            behind(service),
            format!("{} of {}", ready.count(), service.backends.len()),
            makers(service),
        ]);
    }
    table.render()
}

fn makers(service: &ServiceInfo) -> String {
    match &*service.also_made_on {
        [] => service.node.to_string(),
        others => format!("{}, also {}", service.node, names(others)),
    }
}

fn names(nodes: &[NodeName]) -> String {
    let names: Vec<&str> = nodes.iter().map(NodeName::as_str).collect();
    names.join(" and ")
}

fn describe(service: &ServiceInfo) -> String {
    let mut text = String::new();
    let addresses: Vec<String> = service.addresses.iter().map(ToString::to_string).collect();
    let affinity = service.spec.affinity_s.map_or_else(
        || "none".to_owned(),
        |seconds| format!("clients stay for {}", duration::human(seconds.into())),
    );
    let lines = [
        ("name", service.name.to_string()),
        ("addresses", addresses.join(" and ")),
        ("ports", ports(service)),
        ("behind it", behind(service)),
        ("affinity", affinity),
        ("engine", engine(service)),
        ("health", health(service)),
        ("made on", service.node.to_string()),
    ];
    for (word, value) in lines {
        let _ = writeln!(text, "{word:<10} {value}");
    }
    if !service.also_made_on.is_empty() {
        let _ = writeln!(
            text,
            "also made  on {}; this one serves in its place; to remove both: weavectl service rm {}",
            names(&service.also_made_on),
            service.name
        );
    }
    for refused in &service.refused {
        let _ = writeln!(text, "left out   {refused}");
    }
    if service.last_resort && !service.backends.is_empty() {
        text.push_str(
            "last resort no endpoint passes its check, so all that can be reached are used\n",
        );
    }
    if service.backends.is_empty() {
        text.push_str("\nnobody is behind it: connections are refused\n");
        return text;
    }
    let mut table = Table::new(&["ENDPOINT", "CONTAINER", "NODE", "STATE"]);
    for backend in &service.backends {
        table.row(row(backend));
    }
    text.push('\n');
    text += &table.render();
    text + &relayed(service)
}

/// What the relay of the asked node has to say of the endpoints.
fn relayed(service: &ServiceInfo) -> String {
    let known = service
        .backends
        .iter()
        .filter_map(|backend| Some((backend, backend.relayed?)));
    let rows: Vec<[String; 8]> = known
        .map(|(backend, relayed)| {
            let latency = relayed.latency_us;
            [
                backend.address.to_string(),
                relayed.open.to_string(),
                relayed.picks.to_string(),
                relayed.failures.to_string(),
                relayed.retries.to_string(),
                relayed.ejections.to_string(),
                latency.map_or_else(String::new, |us| format!("{:.2} ms", us as f64 / 1e3)),
                if relayed.ejected { "left out" } else { "" }.to_owned(),
            ]
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&[
        "BY THIS NODE'S RELAY",
        "OPEN",
        "PICKS",
        "FAILED",
        "RETRIED",
        "EJECTED",
        "LATENCY",
        "NOW",
    ]);
    rows.into_iter().for_each(|row| table.row(row));
    format!("\n{}", table.render())
}

fn row(backend: &Backend) -> [String; 4] {
    let state = match backend.state {
        BackendState::Ready => "ready".to_owned(),
        BackendState::Unreachable => "node unreachable".to_owned(),
        BackendState::Unchecked => "not checked yet".to_owned(),
        BackendState::Refused => "left out".to_owned(),
        BackendState::Failing => match &backend.why {
            Some(why) => format!("check fails: {why}"),
            None => "check fails".to_owned(),
        },
    };
    [
        backend.address.to_string(),
        backend
            .container
            .as_ref()
            .map_or_else(String::new, ToString::to_string),
        backend
            .node
            .as_ref()
            .map_or_else(String::new, ToString::to_string),
        state,
    ]
}

fn ports(service: &ServiceInfo) -> String {
    let one = |port: &DeclaredPort| {
        let target = if port.target == port.port || !service.spec.endpoints.is_empty() {
            String::new()
        } else {
            format!(":{}", port.target)
        };
        let node_port = port
            .node_port
            .map_or_else(String::new, |port| format!(" (node port {port})"));
        format!("{}{target}/{}{node_port}", port.port, port.protocol)
    };
    service
        .spec
        .ports
        .iter()
        .map(one)
        .collect::<Vec<_>>()
        .join(", ")
}

/// The most names that a line may have.
const FEW: usize = 4;

fn behind(service: &ServiceInfo) -> String {
    let spec = &service.spec;
    let several = |count: usize| if count == 1 { "" } else { "s" };
    if !spec.containers.is_empty() {
        let names: Vec<&str> = spec.containers.iter().map(ContainerName::as_str).collect();
        return match names.len() {
            count @ ..=FEW => format!("container{} {}", several(count), names.join(", ")),
            count => format!("{count} containers by name"),
        };
    }
    if spec.selector.is_empty() {
        let count = spec.endpoints.len();
        return format!("{count} given endpoint{}", several(count));
    }
    let labels = spec
        .selector
        .iter()
        .map(|(key, value)| format!("{key}={value}"));
    labels.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Each figure under its own word, and nothing of an endpoint that no relay here knows.
    #[test]
    fn what_the_relay_knows_of_each_endpoint_is_described() {
        let backend = |address: &str, relayed| {
            json!({
                "address": address, "container": "web", "node": "host1", "state": "ready", "relayed": relayed,
            })
        };
        let good = json!({
            "open": 1, "picks": 2, "failures": 3, "retries": 4, "ejections": 5, "ejected": false, "latency_us": 6780,
        });
        let bad = json!({
            "open": 0, "picks": 20, "failures": 30, "retries": 40, "ejections": 50, "ejected": true,
        });
        let service = json!({
            "name": "web", "addresses": ["10.96.0.1"], "ports": [], "node": "host1", "made_at": 0, "refused": [],
            "backends": [
                backend("10.32.0.2:8080", good),
                backend("10.32.0.3:8080", bad),
                backend("10.40.0.2:8080", json!(null)),
            ],
        });
        let text = describe(&serde_json::from_value(service).unwrap());
        let (_, table) = text.split_once("BY THIS NODE'S RELAY").unwrap();
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<String> = table.lines().map(words).collect();
        assert_eq!(
            lines,
            [
                "OPEN PICKS FAILED RETRIED EJECTED LATENCY NOW",
                "10.32.0.2:8080 1 2 3 4 5 6.78 ms -",
                "10.32.0.3:8080 0 20 30 40 50 - left out",
            ]
        );
    }
}
