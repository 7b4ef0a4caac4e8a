//! `weavectl network ...`: networks that are apart from one another.

use weave_model::NetworkSpec;
use weave_model::api::{NetworkInfo, NetworkRequest, Networks};

use super::args::network::{Create, NetworkCommand, Switch};
use super::client::Client;
use super::print::NO_CLUSTER;
use super::shown::{Answer, Shown};
use super::table::Table;

pub(super) fn run(client: &Client<'_>, shown: &Shown, command: &NetworkCommand) -> Answer {
    match command {
        NetworkCommand::Create(create) => {
            let made: NetworkInfo = client.post("/networks", &request(create))?;
            shown.answer(&made, |made| {
                format!("{}: {} and {}\n", made.name, made.range, made.range6)
            })
        }
        NetworkCommand::List(_) => shown.answer(&client.get("/networks")?, list),
        NetworkCommand::Rm { name } => {
            let gone: NetworkInfo = client.delete(&format!("/networks/{name}"))?;
            shown.answer(&gone, |gone| format!("{} is removed\n", gone.name))
        }
    }
}

fn request(create: &Create) -> NetworkRequest {
    NetworkRequest {
        name: create.name.clone(),
        range: create.range,
        spec: NetworkSpec {
            mtu: create.mtu,
            multicast: create.multicast == Switch::On,
            internal: create.internal,
            floating: create.floating,
        },
    }
}

fn list(answer: &Networks) -> String {
    if answer.networks.is_empty() {
        return NO_CLUSTER.to_owned();
    }
    let mut table = Table::new(&[
        "NAME",
        "RANGE",
        "RANGE6",
        "MTU",
        "MULTICAST",
        "OUTSIDE",
        "CONTAINERS",
        "MADE ON",
        "PROBLEM",
    ]);
    for network in &answer.networks {
        let NetworkSpec {
            mtu,
            multicast,
            internal,
            floating,
        } = network.spec;
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        table.row([
            network.name.to_string(),
            network.range.to_string(),
            network.range6.to_string(),
            or_dash(mtu.map(|mtu| mtu.to_string())),
            match (floating, multicast) {
                (true, _) => "-",
                (false, true) => "on",
                (false, false) => "off",
            }
            .to_owned(),
            match (floating, internal) {
                (true, _) => "floating",
                (false, true) => "no",
                (false, false) => "yes",
            }
            .to_owned(),
            network.containers.to_string(),
            or_dash(network.node.as_ref().map(ToString::to_string)),
            or_dash(network.problem.clone()),
        ]);
    }
    table.render()
}
