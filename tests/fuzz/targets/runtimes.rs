//! What container runtimes send to the CNI plugin and to the plugin of netavark, and what other plugins answer it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use serde_json::{Value, json};
use weave_cni::config::{self, Config};
use weave_cni::environment::{Environment, Verb};
use weave_cni::error::{Error, code};
use weave_cni::{delegate, netavark, result};
use weave_model::api::AttachRequest;

use super::{Input, push_chunk};

const VARIABLES: [&str; 7] = [
    "CNI_CONTAINERID",
    "CNI_NETNS",
    "CNI_IFNAME",
    "CNI_ARGS",
    "CNI_PATH",
    "CNI_NETNS_OVERRIDE",
    "WEAVE_SOCKET",
];

const VERBS: [&str; 7] = ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "add"];

/// The first byte chooses the verb, then come the variables of the environment, each behind its length, and the rest is
/// stdin: it is read or refused with a code of the specification, a container can go whatever the configuration asks for,
/// and names in what is accepted are only names.
pub(super) fn cni(data: &[u8]) {
    let mut input = Input(data);
    let verb = VERBS[usize::from(input.u8()) % VERBS.len()];
    let values = VARIABLES.map(|name| (name, OsString::from_vec(input.chunk().to_vec())));
    let stdin = input.0;
    let get = |verb: &str, wanted: &str| match wanted {
        "CNI_COMMAND" => Some(OsString::from(verb)),
        _ => values
            .iter()
            .find(|(name, _)| *name == wanted)
            .map(|(_, value)| value.clone()),
    };
    let environment = match Environment::read(|wanted| get(verb, wanted)) {
        Ok(environment) => environment,
        Err(error) => return refused(&error, &[code::ENVIRONMENT]),
    };
    variables(&environment);
    match Config::read(&environment, stdin) {
        Ok(config) => accepted(&config),
        Err(error) => {
            let codes = [
                code::INCOMPATIBLE,
                code::UNSUPPORTED,
                code::DECODE,
                code::CONFIG,
            ];
            refused(&error, &codes);
            // What was said of it when it was made does not keep a container.
            let unsupported = error.code == code::UNSUPPORTED;
            assert!(!unsupported || !matches!(environment.verb, Verb::Del | Verb::Gc));
        }
    }
    answered(stdin);
}

fn variables(environment: &Environment) {
    let errors = [
        environment.container().map(|name| safe(name.as_str(), 200)),
        environment.ifname().map(|name| safe(name.as_str(), 15)),
        environment
            .netns()
            .map(|path| assert!(path.starts_with('/'))),
        environment.args().map(|args| {
            for (key, value) in &args.labels {
                assert!(key.as_str().len() < 400 && value.as_str().len() < 400);
            }
        }),
    ];
    for error in errors.into_iter().filter_map(Result::err) {
        refused(&error, &[code::ENVIRONMENT]);
    }
    assert!(
        environment
            .path
            .iter()
            .all(|folder| !folder.as_os_str().is_empty())
    );
}

fn accepted(config: &Config) {
    safe(config.name.as_str(), 200);
    safe(config.network.as_str(), 63);
    // It is looked for in the folders of plugins and nowhere else.
    assert!(config.ipam.iter().all(|name| !name.contains('/')));
    assert!(config.dns.iter().all(Value::is_object));
    for port in &config.publish {
        assert_eq!(port.to_string().parse(), Ok(*port));
    }
    if let Some(previous) = &config.previous {
        let _ = (result::has_ours(previous), result::addresses(previous));
    }
}

/// The same bytes as what another plugin answers.
fn answered(stdout: &[u8]) {
    let _ = config::version_of(stdout);
    if let Err(error) = delegate::choice("other", stdout) {
        assert!(!error.message.is_empty());
    }
}

/// An error has one of these codes, says something, and is JSON.
fn refused(error: &Error, codes: &[u32]) {
    assert!(codes.contains(&error.code), "{error:?}");
    let object = error.to_json(None);
    assert_eq!(object["code"], error.code);
    assert!(!error.message.is_empty());
}

/// Names go into paths, device names and rules.
fn safe(name: &str, longest: usize) {
    assert!((1..=longest).contains(&name.len()), "{name}");
    assert!(
        name.bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'/')
    );
    assert!(name != "." && name != "..");
}

pub(super) fn cni_seeds() -> Vec<Vec<u8>> {
    let call = |verb: u8, args: &str, config: &Value| {
        let mut seed = vec![verb];
        for value in ["75f1", "/run/netns/a", "eth0", args, "/opt/cni/bin", "", ""] {
            push_chunk(&mut seed, value.as_bytes());
        }
        seed.extend(config.to_string().bytes());
        seed
    };
    let full = json!({
        "cniVersion": "1.1.0", "name": "weave", "type": "weave-cni", "network": "blue", "mtu": 1400,
        "socket": "/run/weave/weaved.sock", "dns": {"nameservers": ["192.0.2.53"]},
        "args": {"cni": {"ips": ["10.32.0.9/12"], "labels": [{"key": "app", "value": "web"}]}},
        "capabilities": {"portMappings": true},
        "runtimeConfig": {
            "ips": ["10.32.0.9"], "mac": "02:00:00:00:00:01", "dns": {"servers": ["192.0.2.53"], "searches": []},
            "portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "udp", "hostIP": "192.0.2.1"}],
            "cgroupPath": "/a", "io.kubernetes.cri.pod-annotations": {"a": "b"}, "aliases": [],
        },
    });
    let plain = json!({"cniVersion": "1.0.0", "name": "weave", "type": "weave-cni"});
    let previous = json!({
        "cniVersion": "1.1.0", "name": "weave", "ipam": {"type": "host-local"},
        "prevResult": {
            "cniVersion": "1.1.0", "interfaces": [{"name": "wv0123456789"}],
            "ips": [{"address": "10.32.0.9/12", "interface": 0}],
        },
    });
    let gc = json!({
        "cniVersion": "1.1.0", "name": "weave",
        "cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}], "cni.dev/attachments": null,
    });
    let args = "IgnoreUnknown=1;IP=10.32.0.9/12;MAC=02:00:00:00:00:01;K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;X=Y";
    vec![
        call(0, args, &full),
        call(0, "", &plain),
        call(1, "", &full),
        call(2, "", &previous),
        call(3, "", &gc),
        call(4, "", &plain),
        call(5, "", &json!({})),
    ]
}

/// The first byte chooses a verb, the rest is stdin: a network comes back completed and with its name, and what is asked
/// of the node is what was said.
pub(super) fn of_netavark(data: &[u8]) {
    let mut input = Input(data);
    let create = input.u8() % 2 == 0;
    let codes = [code::UNSUPPORTED, code::DECODE, code::CONFIG];
    if create {
        match netavark::run(&netavark::Verb::Create, input.0, None) {
            Ok(Some(made)) => completed(&made, input.0),
            Ok(None) => panic!("a network is said nothing of"),
            Err(error) => refused(&error, &codes),
        }
        return;
    }
    match netavark::asked("/run/netns/a", input.0) {
        Ok((request, socket)) => {
            asked(&request);
            assert!(socket.is_none_or(|socket| socket.is_absolute()));
        }
        Err(error) => refused(&error, &codes),
    }
}

fn completed(made: &Value, sent: &[u8]) {
    let sent: Value = serde_json::from_slice(sent).expect("what was accepted is JSON");
    assert_eq!(made["ipam_options"], json!({"driver": "none"}));
    for kept in ["name", "id", "driver", "options"] {
        assert_eq!(made.get(kept), sent.get(kept));
    }
    let again = netavark::run(&netavark::Verb::Create, made.to_string().as_bytes(), None);
    assert_eq!(again.expect("it is fine as it is").as_ref(), Some(made));
}

fn asked(request: &AttachRequest) {
    safe(request.name.as_str(), 128);
    safe(request.ifname.as_str(), 15);
    safe(request.network.as_str(), 63);
    let owner = request.owner.as_ref().expect("it has an owner");
    safe(owner.container.as_str(), 200);
    let written = serde_json::to_vec(request).expect("it can be written");
    let read: AttachRequest = serde_json::from_slice(&written).expect("and read again");
    assert_eq!(read, *request);
}

pub(super) fn netavark_seeds() -> Vec<Vec<u8>> {
    let seed = |verb: u8, value: &Value| [&[verb][..], value.to_string().as_bytes()].concat();
    let network = json!({
        "name": "weave", "id": "2f25", "driver": "weave", "network_interface": "", "subnets": null, "internal": false,
        "dns_enabled": true, "ipam_options": {"driver": "host-local"}, "options": {"mtu": "1400", "network": "blue"},
    });
    let setup = json!({
        "container_id": "75f1", "container_name": "web", "network": network,
        "port_mappings": [{"container_port": 80, "host_ip": "", "host_port": 8080, "protocol": "tcp,udp", "range": 2}],
        "network_options": {
            "interface_name": "eth0", "aliases": ["web"], "static_ips": ["10.32.0.9"], "static_mac": "02:00:00:00:00:01",
        },
    });
    vec![seed(0, &network), seed(1, &setup), seed(0, &json!({}))]
}
