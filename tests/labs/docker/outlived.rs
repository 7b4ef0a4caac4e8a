//! Containers that outlive `dockerd` (`--live-restore`) and the node: what they say and what is published goes on.

use std::net::{IpAddr, SocketAddr, TcpListener};

use super::{Docker, create_networks, start_node};
use crate::cni::{AT_ONCE, BACK, SWEPT, image, word};
use crate::lab::ns::{Ns, assert_same};
use crate::lab::traffic::{Conversation, wait_for};
use crate::lab::{Container, Host, Lab, await_mesh, form};

/// A container with a published port, and what listens behind it.
struct Published<'a> {
    host: &'a Host,
    port: u16,
    listener: TcpListener,
}

impl<'a> Published<'a> {
    fn new(host: &'a Host, container: &Container, port: u16) -> Self {
        let listener = container.ns.inside(|| TcpListener::bind("0.0.0.0:80"));
        Self {
            host,
            port,
            listener: listener.expect("nothing else listens in it"),
        }
    }

    /// Who a word from this namespace came from, if it was heard.
    fn hears(&self, from: &Ns) -> Option<IpAddr> {
        let at = SocketAddr::new(self.host.v4.into(), self.port);
        word(from, at, &self.listener)
    }
}

/// What is on a host, without Docker's own bridge and tables, which it writes anew in another form.
fn but_for_docker(host: &Host) -> String {
    let all = host.ns.snapshot();
    let mut docker_s = false;
    let others = all.lines().filter(|line| {
        docker_s = match *line {
            "table ip nat {" | "table ip filter {" => true,
            "}" => false,
            _ => docker_s,
        };
        !docker_s && !line.contains("docker")
    });
    others.collect::<Vec<_>>().join("\n")
}

/// The container is restarted, stopped, killed and started; when it runs it reaches `other`, and its port is open.
fn come_and_go(docker: &Docker<'_>, [own, away]: &[Host; 2], other: &Container) {
    for verb in [
        "restart --time 0",
        "stop --time 0",
        "start",
        "kill",
        "start",
    ] {
        docker.ok(&format!("{verb} one"));
        if verb.starts_with("stop") || verb == "kill" {
            wait_for("its address is free", SWEPT, || docker.left() == (0, 0, 0));
        } else {
            let again = docker.container("one");
            again.reaches(other, 1400);
            let port = Published::new(own, &again, 8080);
            assert_eq!(port.hears(&away.ns), Some(away.v4.into()), "after {verb}");
        }
    }
}

/// A container on each host talks with the other, and has a port that the other host and its container reach, while
/// `dockerd`, the node and both are stopped or killed, and started again. Afterwards they are restarted, stopped, killed
/// and removed as any others, and nothing of them is left.
#[test]
fn containers_outlive_dockerd_and_the_node() {
    Lab::run(|lab| {
        let image = image(lab);
        let hosts = [lab.host("h1", 1), lab.host("h2", 2)];
        let [h1, h2] = &hosts;
        let root = image.with_file_name("root");
        crate::lab::ns::host(&format!("tar -C {0} -cf {0}.tar guest", root.display()));
        let [mut d1, d2] =
            [h1, h2].map(|host| Docker::start_with(host, lab.dir(), &image, &["--live-restore"]));
        form(&hosts);
        // Hosts talk to a published port as to any other of a host.
        lab.allow_outside(h1.v4);
        lab.allow_outside(h2.v4);
        create_networks(&[&d1, &d2]);
        let before = hosts.each_ref().map(but_for_docker);
        let a = d1.start_container("one", " --publish 8080:80");
        let b = d2.start_container("two", " --publish 9090:80");
        let [at_a, at_b] = [Published::new(h1, &a, 8080), Published::new(h2, &b, 9090)];
        let open = |what: &str| {
            for (port, host, container) in [(&at_a, h2, &b), (&at_b, h1, &a)] {
                let seen = Some(host.v4.into());
                assert_eq!(port.hears(&host.ns), seen, "{what}: {}", port.port);
                assert_eq!(port.hears(&container.ns), seen, "{what}: {}", port.port);
            }
        };
        open("at first");
        let talk = Conversation::start(&a.ns, (&b.ns, b.v4.into()));
        for signal in ["TERM", "KILL"] {
            d1.end(signal);
            talk.assert_goes_on(AT_ONCE);
            open(signal);
            h1.end(signal);
            open(signal);
            start_node(h1, &d1.dir);
            await_mesh(&hosts);
            talk.assert_goes_on(BACK);
            d1.start_again();
            talk.assert_goes_on(AT_ONCE);
            open(signal);
            assert_eq!(d1.left(), (1, 1, 1), "{signal}: {}", d1.log());
        }
        talk.finish();
        drop((at_a, at_b));

        come_and_go(&d1, &hosts, &b);
        d1.ok("rm --force one");
        d2.ok("rm --force two");
        for docker in [&d1, &d2] {
            assert_eq!(docker.left(), (0, 0, 0), "{}", docker.log());
        }
        for (host, before) in hosts.iter().zip(&before) {
            assert_same(before, &but_for_docker(host), &host.name);
        }
    });
}
