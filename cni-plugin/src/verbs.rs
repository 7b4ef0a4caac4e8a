//! Each verb: what it reads, what it asks the node, what it answers.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;

use serde::de::DeserializeOwned;
use serde_json::Value;
use weave_model::ContainerName;
use weave_model::api::{
    AttachRequest, Attachment, Attachments, CniFindings, CniGcRequest, CniOwner, CniRef, Code,
    Networks, Status,
};

use crate::config::{self, Config};
use crate::environment::{Environment, Verb};
use crate::error::{Error, code};
use crate::node::NoAnswer;
use crate::version::Version;
use crate::{delegate, free, node, result};

/// What a call comes to.
#[derive(Debug)]
pub struct Outcome {
    /// The version to say an error in, as far as it is known.
    pub version: Option<Version>,
    /// What goes to stdout.
    pub answer: Result<Option<Value>, Error>,
}

impl Outcome {
    /// A call that failed before its version was known.
    pub const fn failed(error: Error) -> Self {
        Self {
            version: None,
            answer: Err(error),
        }
    }
}

/// Does what the environment and the configuration say.
pub fn run(environment: &Environment, stdin: &[u8]) -> Outcome {
    let version = config::version_of(stdin);
    if environment.verb == Verb::Version {
        let answer = Ok(Some(Version::answer(version)));
        return Outcome { version, answer };
    }
    let answer = Config::read(environment, stdin).and_then(|config| {
        let call = Call {
            environment,
            stdin,
            config: &config,
        };
        match environment.verb {
            Verb::Add => call.add().map(Some),
            Verb::Del => call.del().map(|()| None),
            Verb::Check => call.check().map(|()| None),
            Verb::Gc => call.gc().map(|()| None),
            Verb::Status => call.status().map(|()| None),
            Verb::Version => Ok(None),
        }
    });
    Outcome { version, answer }
}

struct Call<'a> {
    environment: &'a Environment,
    stdin: &'a [u8],
    config: &'a Config,
}

impl Call<'_> {
    /// As first plugin, attaches. Behind another one there is nothing to do: its result goes on unchanged.
    fn add(&self) -> Result<Value, Error> {
        let netns = self.netns()?;
        let what = self.what()?;
        let args = self.environment.args()?;
        if let Some(previous) = &self.config.previous {
            self.refuse_behind_another()?;
            return Ok(previous.clone());
        }
        let mut request = self.request(what, netns, args)?;
        let Some(ipam) = &self.config.ipam else {
            return self.attach(&request, netns, self.config.dns.as_ref());
        };
        let said = delegate::call(self.environment, ipam, "ADD", self.stdin);
        let choice = said.and_then(|said| delegate::choice(ipam, &said));
        let attached = choice.and_then(|choice| {
            let mut ips = choice.ips.into_iter();
            request.ip = ips.next();
            request.more_ips = ips.collect();
            let dns = self.config.dns.as_ref().or(choice.dns.as_ref());
            self.attach(&request, netns, dns)
        });
        // One that failed may have given an address all the same (specification, section "Plugin Delegation").
        if attached.is_err() {
            self.delegate("DEL")
                .unwrap_or_else(|error| eprintln!("weave-cni: {error}"));
        }
        attached
    }

    /// What can only be done by whoever made the interface.
    fn refuse_behind_another(&self) -> Result<(), Error> {
        let (capability, plugin) = match self.config {
            config if !config.publish.is_empty() => ("portMappings", "portmap"),
            config if !config.bandwidth.is_unlimited() => ("bandwidth", "bandwidth"),
            config if !config.aliases.is_empty() => ("aliases", "dnsname"),
            _ => return Ok(()),
        };
        let message = format!("runtimeConfig.{capability} is not supported behind another plugin");
        let fix = format!("put the plugin \"{plugin}\" there instead");
        Err(Error::new(code::UNSUPPORTED, message).with(fix))
    }

    /// What the node is asked for.
    fn request(
        &self,
        what: CniRef,
        netns: &str,
        args: crate::environment::Args,
    ) -> Result<AttachRequest, Error> {
        let config = self.config;
        let mut ips = config.ips.clone();
        ips.extend(args.ips);
        if let (Some(one), Some(other)) = (config.mac, args.mac)
            && one != other
        {
            let why = format!("{one}, but CNI_ARGS has MAC={other}");
            return Err(Error::config("runtimeConfig.mac", why));
        }
        if config.ipam.is_some() && !ips.is_empty() {
            let why = "an address is asked for, but another plugin chooses";
            return Err(Error::config("ipam", why));
        }
        let mut ips = ips.into_iter();
        Ok(AttachRequest {
            netns: netns.to_owned(),
            name: ContainerName::of_cni(&what.container),
            ip: ips.next(),
            more_ips: ips.collect(),
            also: Vec::new(),
            ranges: config.ranges.clone(),
            mac: config.mac.or(args.mac),
            mtu: config.mtu,
            ifname: what.ifname,
            network: config.network.clone(),
            labels: config
                .labels
                .clone()
                .into_iter()
                .chain(args.labels)
                .collect(),
            aliases: config.aliases.clone(),
            publish: config.publish.clone(),
            bandwidth: config.bandwidth,
            owner: Some(CniOwner {
                network: config.name.clone(),
                container: what.container,
            }),
        })
    }

    fn attach(
        &self,
        request: &AttachRequest,
        netns: &str,
        dns: Option<&Value>,
    ) -> Result<Value, Error> {
        let wanted = || {
            request
                .ip
                .into_iter()
                .chain(request.more_ips.iter().copied())
        };
        let attached: Result<Attachment, NoAnswer> =
            node::post(&self.config.socket, "/attachments", request);
        if let (Err(NoAnswer::Unheard(_)), Some(_)) = (&attached, &self.config.ipam) {
            // The node may attach it yet, under an address that the other plugin is about to give to somebody else.
            self.free()
                .unwrap_or_else(|error| eprintln!("weave-cni: {error}"));
        }
        let attachment = attached.map_err(|reason| match reason {
            // Who asks for an address or a port that somebody else has has to ask for another.
            NoAnswer::Refused(refusal)
                if refusal.code == Code::Conflict
                    && (request.ip.is_some()
                        || !request.ranges.is_empty()
                        || !request.publish.is_empty()) =>
            {
                Error::new(code::CONFIG, refusal.message).with(refusal.fix)
            }
            reason => reason.into(),
        })?;
        let result = result::of_attachment(&attachment, netns, dns, self.config.version)?;
        let given = result::addresses(&result);
        if let Some(missing) = wanted().find(|ip| !given.contains(ip)) {
            self.free()?;
            let why = format!("{missing} cannot be given: the container or its host has IPv6 off");
            return Err(Error::config("ips", why));
        }
        Ok(result)
    }

    /// Frees an attachment, now or, when the node does not answer, when it is back. Goes on past a failure, and reports
    /// the first.
    fn del(&self) -> Result<(), Error> {
        let freed = self.free();
        let delegated = self.delegate("DEL");
        freed.and(delegated)
    }

    fn free(&self) -> Result<(), Error> {
        free::free(&self.config.socket, &self.what()?)
    }

    fn check(&self) -> Result<(), Error> {
        let netns = self.netns()?;
        let previous = self.config.previous.as_ref();
        let previous = previous.ok_or_else(|| Error::config("prevResult", "missing"))?;
        let what = self.what()?;
        let findings: CniFindings = node::post(&self.config.socket, "/cni/check", &what)?;
        let mut wrong = findings.wrong;
        match &findings.attachment {
            // Behind another plugin nothing was made.
            None if !result::has_ours(previous) => return Ok(()),
            None => {}
            Some(attachment) => {
                wrong.extend(differences(attachment, netns, previous));
                wrong.extend(self.other_aliases(attachment));
            }
        }
        if wrong.is_empty() {
            return self.delegate("CHECK");
        }
        let message = format!(
            "{} of {} is not as it was made",
            what.ifname, what.container
        );
        Err(Error::new(code::FAULTY, message).with(wrong.join("; ")))
    }

    /// The parameters of CHECK are those of ADD, so the aliases are the same unless the node has lost them.
    fn other_aliases(&self, attachment: &Attachment) -> Option<String> {
        let told = |names: &BTreeSet<ContainerName>| {
            let names: Vec<&str> = names.iter().map(ContainerName::as_str).collect();
            format!("[{}]", names.join(", "))
        };
        let (has, asked) = (&attachment.aliases, &self.config.aliases);
        (has != asked).then(|| format!("its aliases are {}, not {}", told(has), told(asked)))
    }

    /// Goes on past a failure, and reports the first.
    fn gc(&self) -> Result<(), Error> {
        let keep = self.config.valid.clone();
        let keep = keep.ok_or_else(|| Error::config("cni.dev/valid-attachments", "missing"))?;
        let request = CniGcRequest {
            network: self.config.name.clone(),
            keep,
        };
        let freed: Result<Attachments, NoAnswer> =
            node::post(&self.config.socket, "/cni/gc", &request);
        let delegated = self.delegate("GC");
        freed?;
        delegated
    }

    fn status(&self) -> Result<(), Error> {
        let status: Status = self.told("/status")?;
        let Some(cluster) = status.cluster else {
            let message = "the node is not a member of a cluster";
            let fix = "make one with weavectl init, or join one with weavectl join TOKEN";
            return Err(Error::new(code::NOT_AVAILABLE, message).with(fix));
        };
        self.has_room()?;
        if cluster.members > 1 && cluster.connected <= 1 {
            let message = format!(
                "none of the {} other members can be reached",
                cluster.members - 1
            );
            return Err(Error::new(code::LIMITED, message).with("see weavectl status"));
        }
        self.delegate("STATUS")
    }

    /// What the node says; without its answer nothing can be added.
    fn told<A: DeserializeOwned>(&self, path: &str) -> Result<A, Error> {
        node::get(&self.config.socket, path).map_err(|reason| Error {
            code: code::NOT_AVAILABLE,
            ..reason.into()
        })
    }

    /// Whether the network is there, and, unless another plugin chooses addresses, has one left on this node.
    fn has_room(&self) -> Result<(), Error> {
        let unavailable = |message| Error::new(code::NOT_AVAILABLE, message);
        let networks: Networks = self.told("/networks")?;
        let wanted = &self.config.network;
        let mut networks = networks.networks.into_iter();
        let Some(network) = networks.find(|one| one.name == *wanted) else {
            let fix = format!("make it with weavectl network create {wanted}");
            return Err(unavailable(format!("there is no network {wanted}")).with(fix));
        };
        if let Some(problem) = network.problem {
            return Err(unavailable(format!("the network {wanted}: {problem}")));
        }
        // A node that has none of it yet asks the others.
        let full = network.addresses > 0 && network.addresses_used >= network.addresses;
        if full && self.config.ipam.is_none() {
            let all = network.addresses;
            let message = format!("all {all} addresses of {wanted} on this node are in use");
            return Err(unavailable(message));
        }
        Ok(())
    }

    /// Calls the IPAM plugin, if there is one.
    fn delegate(&self, verb: &str) -> Result<(), Error> {
        match &self.config.ipam {
            None => Ok(()),
            Some(ipam) => delegate::call(self.environment, ipam, verb, self.stdin).map(drop),
        }
    }

    fn what(&self) -> Result<CniRef, Error> {
        Ok(CniRef {
            container: self.environment.container()?,
            ifname: self.environment.ifname()?,
        })
    }

    /// The container's namespace, which is there and is not the host's.
    fn netns(&self) -> Result<&str, Error> {
        let netns = self.environment.netns()?;
        let there = identity(netns).map_err(|error| {
            Error::environment("CNI_NETNS", format!("{netns} cannot be opened: {error}"))
        })?;
        let host = identity("/proc/self/ns/net").ok();
        if Some(there) == host && !self.environment.netns_override {
            let message = format!("CNI_NETNS: {netns} is the network namespace of the host");
            return Err(Error::new(code::NETNS, message));
        }
        Ok(netns)
    }
}

/// What CHECK finds in the result of ADD that is not so.
fn differences(attachment: &Attachment, netns: &str, previous: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    if identity(netns).ok() != identity(&attachment.netns).ok() {
        let there = &attachment.netns;
        wrong.push(format!("it is attached in {there}, not in {netns}"));
    }
    let known = result::addresses(previous);
    let has = std::iter::once(attachment.ip.addr().into())
        .chain(attachment.ip6.map(|ip6| ip6.addr().into()));
    let missing = has.filter(|ip| !known.contains(ip));
    wrong.extend(missing.map(|ip| format!("prevResult lacks its address {ip}")));
    wrong
}

/// The device and inode of a file: namespaces are the same when these are.
fn identity(path: &str) -> std::io::Result<(u64, u64)> {
    std::fs::metadata(path).map(|found| (found.dev(), found.ino()))
}
