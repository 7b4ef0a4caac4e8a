//! Each verb: the request it makes and how its answer is shown.

use std::path::Path;

use weave_model::api::{
    AttachRequest, Attachment, Attachments, CniResult, Connections, ExposeRequest, HostAddress,
    InitRequest, JoinRequest, Peers, Status, Verdict,
};
use weave_model::{Bandwidth, ContainerName, IfName};

use super::args::{Args, Attach, CniCommand, Command};
use super::client::{Client, percent_encoded};
use super::failure::{Exit, Failure};
use super::shown::{Answer, Shown};
use super::{
    cni, dashboard, flows, members, network, print, processes, secret, service, targets, tools,
};
use crate::api;

/// Does what the arguments say.
pub(super) fn run(args: &Args) -> Answer {
    let client = Client {
        socket: &args.socket,
        timeout: args.timeout,
    };
    let shown = Shown::new(args.output);
    match &args.command {
        Command::Init { range, range6 } => {
            let (range, range6) = (*range, *range6);
            let request = InitRequest { range, range6 };
            shown.answer(&client.post("/init", &request)?, print::made)
        }
        Command::Token { command } => members::token(&client, &shown, command),
        Command::Admin { command } => members::admin(&client, &shown, command),
        Command::Secret { command } => secret::run(&client, &shown, command),
        Command::Rmpeer { node, heir } => members::remove(&client, &shown, node, heir.as_deref()),
        Command::Leave { force } => members::leave(&client, &shown, *force),
        Command::Ipam { command } => members::ipam(&client, &shown, command.as_ref()),
        Command::Connect { address } => targets::connect(&client, &shown, *address),
        Command::Forget { address } => targets::forget(&client, &shown, *address),
        Command::Join { token } => join(&client, &shown, token),
        Command::Attach(args) => attach(&client, &shown, args),
        Command::Detach { name, ifname } => detach(&client, &shown, name, ifname.as_ref()),
        Command::Ps(_) => shown.answer(&client.get("/attachments")?, |answer: &Attachments| {
            print::attachments(answer, shown.columns())
        }),
        Command::Expose { ip } => {
            let host: HostAddress = client.post("/expose", &ExposeRequest { ip: *ip })?;
            shown.answer(&host, print::exposed)
        }
        Command::Hide => {
            let host: HostAddress = client.delete("/expose")?;
            shown.answer(&host, print::hidden)
        }
        Command::Network { command } => network::run(&client, &shown, command),
        Command::Service { command } => service::run(&client, &shown, command),
        Command::Status(_) => status(&client, &shown),
        Command::Peers(_) => shown.answer(&client.get("/peers")?, |answer: &Peers| {
            print::peers(answer, shown.columns())
        }),
        Command::Connections(_) => shown
            .answer(&client.get("/connections")?, |answer: &Connections| {
                print::connections(answer, shown.columns())
            }),
        Command::Flows { follow, filter } => flows::flows(&client, args.output, filter, *follow),
        Command::Top { rounds, filter } => flows::top(&client, args.output, filter, *rounds),
        Command::Processes(filter) => processes::run(&client, args.output, filter),
        Command::Dashboard { port } => dashboard::run(&client, *port),
        Command::Targets(_) => targets::show(&client, &shown),
        Command::Cni { command } => {
            let done = place_cni(&args.socket, command)?;
            shown.answer(&done, cni::Done::human)
        }
        Command::Openapi => Ok((api::document(), Exit::Ok)),
        tool => tools::run(tool, args, &client, &shown),
    }
}

fn join(client: &Client<'_>, shown: &Shown, token: &str) -> Answer {
    let token = read_token(token)?;
    let joined = client.post("/join", &JoinRequest { token })?;
    shown.answer(&joined, print::joined)
}

fn place_cni(socket: &Path, command: &CniCommand) -> Result<cni::Done, Failure> {
    match command {
        CniCommand::Install { plugin, places } => cni::install(places, plugin.as_deref(), socket),
        CniCommand::Uninstall { places } => cni::uninstall(places),
    }
}

fn detach(
    client: &Client<'_>,
    shown: &Shown,
    name: &ContainerName,
    ifname: Option<&IfName>,
) -> Answer {
    let mut path = format!("/attachments/{name}");
    if let Some(ifname) = ifname {
        path.push_str("?ifname=");
        path.push_str(&percent_encoded(ifname.as_str()));
    }
    let gone: Attachments = client.delete(&path)?;
    shown.answer(&gone, print::detached)
}

/// Attaches; as JSON the answer is a CNI result, which other tools read.
fn attach(client: &Client<'_>, shown: &Shown, args: &Attach) -> Answer {
    let request = AttachRequest {
        netns: absolute(&args.netns)?,
        name: args.name.clone(),
        ip: args.ip,
        more_ips: Vec::new(),
        also: args.also.clone(),
        ranges: Vec::new(),
        mac: None,
        mtu: None,
        ifname: args.ifname.clone(),
        network: args.network.clone(),
        labels: args
            .labels
            .iter()
            .map(|label| (label.key.clone(), label.value.clone()))
            .collect(),
        aliases: [].into(),
        publish: args.publish.clone(),
        bandwidth: Bandwidth::default(),
        owner: None,
    };
    let attachment: Attachment = client.post("/attachments", &request)?;
    shown.answer(&CniResult::from(&attachment), |_| {
        print::attached(&attachment)
    })
}

/// A namespace's path as the node sees it, whose working directory is another; names and process ids stay.
fn absolute(netns: &str) -> Result<String, Failure> {
    if !netns.contains('/') {
        return Ok(netns.to_owned());
    }
    std::path::absolute(netns)
        .map(|path| path.display().to_string())
        .map_err(|error| {
            Failure::new(
                Exit::Usage,
                format!("\"{netns}\" is not a path: {error}"),
                "give a path, a name or a process id",
            )
        })
}

/// Prints the status; the exit code is the verdict.
fn status(client: &Client<'_>, shown: &Shown) -> Answer {
    let status: Status = client.get("/status")?;
    let exit = match status.verdict {
        Verdict::Ok => Exit::Ok,
        Verdict::Degraded => Exit::Degraded,
    };
    let (text, _) = shown.answer(&status, print::status)?;
    Ok((text, exit))
}

/// The token itself, or the first line of stdin for `-`, which keeps it out of the list of processes.
fn read_token(given: &str) -> Result<String, Failure> {
    if given != "-" {
        return Ok(given.to_owned());
    }
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(|error| {
        Failure::new(
            Exit::Failed,
            format!("cannot read the token from stdin: {error}"),
            "",
        )
    })?;
    Ok(line.trim().to_owned())
}
