//! `weavectl processes`: what runs in the containers and on the hosts of the mesh, and what it listens on.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;
use weave_model::api::{Inside, ListeningPort, PeerState, ProcessInfo, Topology, TopologyHost};

use super::args::{Output, ProcessFilter};
use super::client::Client;
use super::failure::{Exit, Failure};
use super::print::{bytes, json, yaml};
use super::table::{Columns, Table, printable};

/// How often, and how many times, hosts are asked again that have not told yet: they look once they know that somebody does.
const INTERVAL: Duration = Duration::from_millis(700);
const ROUNDS: usize = 6;

/// What is answered as JSON: a container, or a host without one.
#[derive(Debug, Serialize)]
struct Place<'a> {
    host: &'a str,
    /// As it was attached.
    container: Option<&'a str>,
    /// As people know it.
    title: Option<&'a str>,
    image: Option<&'a str>,
    #[serde(flatten)]
    inside: &'a Inside,
}

#[derive(Debug, Serialize)]
struct Shown<'a> {
    places: Vec<Place<'a>>,
}

/// Prints the processes of one container or host, or of all.
pub(super) fn run(
    client: &Client<'_>,
    output: Output,
    filter: &ProcessFilter,
) -> Result<(String, Exit), Failure> {
    let mut topology: Topology = client.get("/topology")?;
    for _ in 0..ROUNDS {
        if topology.hosts.iter().all(has_told) {
            break;
        }
        std::thread::sleep(INTERVAL);
        topology = client.get("/topology")?;
    }
    if let Some(name) = &filter.name
        && !topology.hosts.iter().any(|host| host.name.as_str() == name)
        && !topology.containers.iter().any(|one| one.is_called(name))
    {
        let cause = format!("there is no container and no host called {name}");
        return Err(Failure::new(
            Exit::Failed,
            cause,
            "list what there is: weavectl processes",
        ));
    }
    let shown = Shown {
        places: places(&topology, filter),
    };
    let text = match output {
        Output::Json => json(&shown)?,
        Output::Yaml => yaml(&shown)?,
        Output::Table => {
            table(&shown.places, filter, Columns::Usual) + &notes(&topology, &shown, filter)
        }
        Output::Wide => {
            table(&shown.places, filter, Columns::All) + &notes(&topology, &shown, filter)
        }
    };
    Ok((text, Exit::Ok))
}

/// Whether a host has told, or cannot.
fn has_told(host: &TopologyHost) -> bool {
    host.inside.is_some() || host.state == PeerState::Unreachable
}

/// Hosts and containers with what runs there, each container once, on however many networks it is.
fn places<'a>(topology: &'a Topology, filter: &ProcessFilter) -> Vec<Place<'a>> {
    let wanted = |name: &str| filter.name.as_deref().is_none_or(|wanted| wanted == name);
    let (mut places, mut told) = (Vec::new(), BTreeSet::new());
    for host in &topology.hosts {
        if let Some(inside) = host.inside.as_ref().filter(|_| wanted(host.name.as_str())) {
            places.push(Place {
                host: host.name.as_str(),
                container: None,
                title: None,
                image: None,
                inside,
            });
        }
        let here = topology.containers.iter().filter(|one| one.host == host.id);
        for one in here {
            let name = filter.name.as_deref();
            let Some(inside) = &one.inside else { continue };
            if name.is_none_or(|name| one.is_called(name))
                && told.insert(one.same_as.as_ref().unwrap_or(&one.id))
            {
                places.push(Place {
                    host: host.name.as_str(),
                    container: Some(one.name.as_str()),
                    title: Some(one.title.as_str()),
                    image: one.runtime.as_ref().map(|runtime| runtime.image.as_str()),
                    inside,
                });
            }
        }
    }
    places
}

fn table(places: &[Place<'_>], filter: &ProcessFilter, columns: Columns) -> String {
    let usual = [
        "HOST",
        "CONTAINER",
        "PID",
        "PROCESS",
        "CPU",
        "MEMORY",
        "LISTENS ON",
    ];
    let mut table = Table::with(&usual, columns, &["IMAGE"]);
    for place in places {
        let listens = |one: &&ProcessInfo| !filter.listening || !one.ports.is_empty();
        for one in place.inside.processes.iter().filter(listens) {
            let ports: Vec<String> = one.ports.iter().map(port).collect();
            let mut cells = vec![
                place.host.to_owned(),
                printable(place.title.unwrap_or_default()),
                one.pid.to_string(),
                printable(&one.name),
                one.cpu_permille.map_or_else(String::new, percent),
                bytes(one.memory_bytes),
                ports.join(" "),
            ];
            if columns == Columns::All {
                cells.push(place.image.unwrap_or_default().to_owned());
            }
            table.row(cells);
        }
    }
    table.render()
}

/// What is not in the table, and why.
fn notes(topology: &Topology, shown: &Shown<'_>, filter: &ProcessFilter) -> String {
    let mut notes = String::new();
    for place in &shown.places {
        if place.inside.more_processes > 0 && !filter.listening {
            let (more, name) = (place.inside.more_processes, place.title);
            let name = printable(name.unwrap_or(place.host));
            notes.push_str(&format!(
                "{name} has {more} more: those that listen come first, then the busiest\n"
            ));
        }
    }
    for host in topology.hosts.iter().filter(|host| host.inside.is_none()) {
        let why = host.silent.as_deref();
        let why = why.unwrap_or("its version of weaved does not tell, or it has too much to tell");
        notes.push_str(&format!(
            "{} tells nothing of its processes: {why}\n",
            host.name
        ));
    }
    notes
}

fn percent(permille: u32) -> String {
    format!("{}.{} %", permille / 10, permille % 10)
}

fn port(port: &ListeningPort) -> String {
    let protocol = port.protocol.name();
    if port.ip.is_unspecified() {
        return format!("{protocol}/{}", port.port);
    }
    format!("{protocol}/{}", SocketAddr::new(port.ip, port.port))
}

#[cfg(test)]
mod tests {
    use weave_model::api::Protocol;

    use super::*;

    #[test]
    fn ports_and_shares_are_short() {
        let listening = |ip: &str, protocol| {
            port(&ListeningPort {
                protocol,
                ip: ip.parse().unwrap(),
                port: 80,
            })
        };
        assert_eq!(listening("0.0.0.0", Protocol::Tcp), "tcp/80");
        assert_eq!(listening("::", Protocol::Udp), "udp/80");
        assert_eq!(listening("127.0.0.1", Protocol::Tcp), "tcp/127.0.0.1:80");
        assert_eq!(listening("::1", Protocol::Tcp), "tcp/[::1]:80");
        assert_eq!(
            (percent(5), percent(1500)),
            ("0.5 %".into(), "150.0 %".into())
        );
        assert_eq!(printable("a\u{1b}[2Jb"), "a?[2Jb");
    }
}
