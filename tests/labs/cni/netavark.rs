//! The plugin as netavark calls it: a word as argument, JSON on stdin. Debian's netavark is too old to have plugins, so
//! the test says what netavark 1.16 would say, from its `plugin-API.md`.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::chain::word;
use super::{Called, Runtime, plugin};
use crate::lab::ns::Ns;
use crate::lab::{Container, Host, Lab};

/// What Podman keeps of a network after `create`.
fn create(host: &Host, options: Value) -> Called {
    let network = json!({
        "name": "weave", "id": "2f259bab93aa", "driver": "weave", "subnets": null, "ipv6_enabled": false,
        "internal": false, "dns_enabled": true, "ipam_options": {"driver": "host-local"}, "options": options,
    });
    call(host, &["create"], &network)
}

fn call(host: &Host, words: &[&str], stdin: &Value) -> Called {
    let mut command = host.ns.command(plugin().to_str().expect("a plain path"));
    command.args(words);
    for stream in [Command::stdin, Command::stdout, Command::stderr] {
        stream(&mut command, Stdio::piped());
    }
    let mut child = command.spawn().expect("the plugin starts");
    let mut pipe = child.stdin.take().expect("stdin is piped");
    // One that fails early does not read it all.
    let _ = pipe.write_all(stdin.to_string().as_bytes());
    drop(pipe);
    Called::from(child.wait_with_output().expect("the plugin ends"))
}

/// stdin of `setup` and `teardown`.
fn exec(network: &Value, id: &str, more: Value) -> Value {
    let mut exec = json!({
        "container_id": id, "container_name": id, "port_mappings": null, "network": network,
        "network_options": {"aliases": [id], "interface_name": "eth0", "static_ips": null, "static_mac": null, "options": null},
    });
    for (key, value) in more.as_object().expect("fields") {
        exec["network_options"][key] = value.clone();
    }
    exec
}

/// Sets a container up, which must succeed.
#[track_caller]
fn setup(host: &Host, name: &str, exec: &Value) -> Container {
    let ns = Ns::add(name);
    let called = call(host, &["setup", &ns.path().display().to_string()], exec);
    assert!(called.ok, "setup of {name}: {called:?}");
    let subnets = &called.out["interfaces"]["eth0"]["subnets"];
    let address = |at: usize| {
        let net = subnets[at]["ipnet"].as_str().expect("an address");
        net.split('/').next().expect("an address").to_owned()
    };
    Container {
        name: name.to_owned(),
        v4: address(0).parse().expect("IPv4 comes first"),
        v6: address(1).parse().expect("IPv6 comes second"),
        ns,
    }
}

/// Containers of two hosts reach each other; wishes are kept or refused by their name; what is torn down is gone, with
/// the node there and with the node down.
#[test]
fn containers_of_netavark() {
    Lab::run(|lab| {
        let [h1, h2] = lab.cluster();
        let info = call(&h1, &["info"], &Value::Null);
        assert!(info.ok && info.out["api_version"] == "1.0.0", "{info:?}");
        let refused = create(&h1, json!({"color": "blue"}));
        let said = refused.out["error"].as_str().unwrap_or_default();
        assert!(!refused.ok && said.contains("color"), "{refused:?}");

        let [n1, n2] = [&h1, &h2].map(|host| {
            let made = create(host, json!({"socket": host.socket(), "mtu": "1400"}));
            assert!(
                made.ok && made.out["ipam_options"]["driver"] == "none",
                "{made:?}"
            );
            made.out
        });
        let one = setup(&h1, "one", &exec(&n1, "75f1", json!({})));
        let kept = h1.json(&["ps"])["attachments"][0]["aliases"].clone();
        assert_eq!(kept, json!(["75f1"]));
        let wish = exec(&n2, "75f2", json!({"static_mac": "02:42:0a:00:00:07"}));
        let two = setup(&h2, "two", &wish);
        one.reaches(&two, 1300);
        two.reaches(&one, 1300);
        let link = two.ns.sh("ip link show eth0");
        assert!(
            link.contains("02:42:0a:00:00:07") && link.contains("mtu 1400"),
            "{link}"
        );

        let mut published = exec(&n1, "75f3", json!({}));
        published["port_mappings"] = json!([
            {"host_ip": "", "container_port": 80, "host_port": 8080, "protocol": "tcp", "range": 2},
        ]);
        let web = setup(&h1, "web", &published);
        let listener = web.ns.inside(|| TcpListener::bind(("0.0.0.0", 81)));
        let listener = listener.expect("the container can listen");
        let port = SocketAddr::new(h1.v4.into(), 8081);
        assert_eq!(word(&h1.ns, port, &listener), Some(h1.v4.into()));
        let gone = call(&h1, &["teardown", "/run/netns/gone"], &published);
        assert!(gone.ok && gone.out.is_null(), "{gone:?}");
        assert_eq!(word(&h1.ns, port, &listener), None);

        let [r1, r2] = [&h1, &h2].map(Runtime::new);
        for _ in 0..2 {
            let gone = call(
                &h1,
                &["teardown", "/run/netns/gone"],
                &exec(&n1, "75f1", json!({})),
            );
            assert!(gone.ok && gone.out.is_null(), "{gone:?}");
        }
        assert_eq!(r1.left(), (0, 0, 0));
        h2.end("KILL");
        let gone = call(&h2, &["teardown", "/run/netns/gone"], &wish);
        assert!(gone.ok && gone.out.is_null(), "{gone:?}");
        h2.start();
        assert_eq!(
            r2.left(),
            (0, 0, 0),
            "teardown came while the node was down"
        );
    });
}
