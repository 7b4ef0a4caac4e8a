//! Debian's Podman with its CNI backend: containers join the network by its name, and leave it.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::chain::word;
use super::containerd::{AT_ONCE, BACK, SWEPT};
use super::{Runtime, containerd, plugin};
use crate::lab::node::said;
use crate::lab::ns::{self, Ns, assert_same};
use crate::lab::traffic::{Conversation, wait_for};
use crate::lab::{Container, Host, Lab, await_mesh};

/// Podman on one host, with all it writes in one folder.
struct Podman<'a> {
    host: &'a Host,
    dir: PathBuf,
    image: String,
}

impl<'a> Podman<'a> {
    /// Installs the plugin for it and loads the image.
    fn new(host: &'a Host, lab: &Path, image: &Path) -> Self {
        let dir = lab.join(format!("{}.podman", host.name));
        std::fs::create_dir_all(&dir).expect("the lab's directory is there");
        let at = |name: &str| dir.join(name).display().to_string();
        let (plugin, bin, conf) = (plugin().display().to_string(), at("bin"), at("net.d"));
        host.ok(&[
            "cni",
            "install",
            "--plugin",
            &plugin,
            "--bin-dir",
            &bin,
            "--conf-dir",
            &conf,
        ]);
        // The limits are what a machine without CAP_SYS_RESOURCE may set.
        let config = format!(
            "[containers]\ndefault_ulimits = ['nofile=1024:4096', 'nproc=4096:8192']\n\
             [engine]\nruntime = 'runc'\ncgroup_manager = 'cgroupfs'\nevents_logger = 'file'\n\
             [network]\nnetwork_backend = 'cni'\ncni_plugin_dirs = ['{bin}']\nnetwork_config_dir = '{conf}'\n"
        );
        std::fs::write(dir.join("containers.conf"), config).expect("the lab's directory is there");
        let mut podman = Self {
            host,
            dir,
            image: String::new(),
        };
        let loaded = podman.run(&format!("load --quiet --input {}", image.display()));
        let id = loaded
            .trim()
            .rsplit(' ')
            .next()
            .map(|name| name.trim_start_matches("sha256:"));
        podman.image = id.expect("an image was loaded").to_owned();
        podman
    }

    /// `podman` with these words, which must succeed.
    #[track_caller]
    fn run(&self, words: &str) -> String {
        let at = |name: &str| self.dir.join(name).display().to_string();
        let mut command: Command = self.host.ns.command("podman");
        command.env("CONTAINERS_CONF", at("containers.conf"));
        command.args([
            "--root",
            &at("root"),
            "--runroot",
            &at("run"),
            "--tmpdir",
            &at("tmp"),
        ]);
        command
            .args(["--storage-driver", "vfs"])
            .args(words.split(' '));
        let said = said(&mut command);
        assert_eq!(said.code, 0, "podman {words}: {said:?}");
        said.out
    }

    /// Starts a container on the network, as the node has it.
    fn start(&self, name: &str, more: &str) -> Container {
        self.run(&format!(
            "run --detach --network weave{more} --name {name} {}",
            self.image
        ));
        self.container(name)
    }

    /// A running container, as the node has it.
    fn container(&self, name: &str) -> Container {
        let id = self.run(&format!("inspect --format {{{{.Id}}}} {name}"));
        let pid = self.run(&format!("inspect --format {{{{.State.Pid}}}} {name}"));
        let ns = Ns::named(&format!("{}-{name}", self.host.name));
        ns::host(&format!(
            "ip netns del {0} 2>/dev/null || true; ip netns attach {0} {1}",
            ns.name(),
            pid.trim()
        ));
        let listed = self.host.json(&["ps"])["attachments"].clone();
        let mut all = listed.as_array().into_iter().flatten();
        let one = all.find(|one| one["owner"]["container"] == id.trim());
        let one = one.expect("the container is attached");
        assert_eq!(one["labels"]["io.kubernetes.pod.name"], name);
        Container::listed(one, name, ns)
    }
}

/// Containers of two hosts reach each other; a restarted one is attached anew, one that asks for an address has it, and
/// a killed and a removed one leave nothing, with the node there and with the node down; a published port leads to its
/// container.
#[test]
fn containers_of_podman() {
    Lab::run(|lab| {
        let image = containerd::image(lab);
        let [h1, h2] = lab.cluster();
        let [p1, p2] = [&h1, &h2].map(|host| Podman::new(host, lab.dir(), &image));
        let [r1, r2] = [&h1, &h2].map(Runtime::new);
        let (a, b) = (
            p1.start("a", " --publish 8080:80 --network-alias web"),
            p2.start("b", " --mac-address 02:42:0a:00:00:07"),
        );
        a.reaches(&b, 1400);
        b.reaches(&a, 1400);
        let aliases = h1.json(&["ps"])["attachments"][0]["aliases"].clone();
        let aliases = aliases.as_array().unwrap();
        assert!(aliases.contains(&"web".into()), "{aliases:?}");
        assert!(b.ns.sh("ip link show eth0").contains("02:42:0a:00:00:07"));
        let listener = a.ns.inside(|| TcpListener::bind("0.0.0.0:80"));
        let listener = listener.expect("nothing else listens in it");
        let published = SocketAddr::new(h1.v4.into(), 8080);
        lab.allow_outside(h1.v4);
        let seen = word(&h2.ns, published, &listener);
        assert_eq!(seen, Some(h2.v4.into()), "the port leads to the container");
        drop(listener);

        ns::host(&format!("ip netns del {}", a.ns.name()));
        p1.run("restart --time 0 a");
        assert_eq!(r1.left(), (1, 1, 1));
        p1.run("rm --force --time 0 a");
        assert_eq!(r1.left(), (0, 0, 0));
        let c = p1.start("c", " --ip 10.32.0.99");
        assert_eq!(c.v4.to_string(), "10.32.0.99");
        c.reaches(&b, 56);

        // Killed, it is gone, and started anew it is attached anew.
        p1.run("kill c");
        wait_for("its address is free", Duration::from_secs(30), || {
            r1.left() == (0, 0, 0)
        });
        p1.run("start c");
        assert_eq!(r1.left(), (1, 1, 1));

        h2.end("KILL");
        p2.run("rm --force --time 0 b");
        h2.start();
        assert_eq!(r2.left(), (0, 0, 0), "DEL came while the node was down");
        p1.run("rm --force --time 0 c");
        assert_eq!(r1.left(), (0, 0, 0));
    });
}

/// Podman has no daemon; what it leaves beside a container is the process that watches it. A container whose node was
/// stopped or killed talks on, keeps its published port, and is restarted, killed and started as any other; so does one
/// whose watcher was killed, until it is removed. Nothing of either is left.
#[test]
fn containers_outlive_their_watcher_and_the_node() {
    Lab::run(|lab| {
        let image = containerd::image(lab);
        let hosts = lab.cluster::<2>();
        let [h1, h2] = &hosts;
        let [p1, p2] = [h1, h2].map(|host| Podman::new(host, lab.dir(), &image));
        let before = hosts.each_ref().map(|host| host.ns.snapshot());
        let (a, b) = (p1.start("a", " --publish 8080:80"), p2.start("b", ""));
        let talk = Conversation::start(&a.ns, (&b.ns, b.v4.into()));
        let listener = a.ns.inside(|| TcpListener::bind("0.0.0.0:80"));
        let listener = listener.expect("nothing else listens in it");
        lab.allow_outside(h1.v4);
        let published = SocketAddr::new(h1.v4.into(), 8080);
        let open = || word(&h2.ns, published, &listener) == Some(h2.v4.into());

        for signal in ["TERM", "KILL"] {
            h1.end(signal);
            assert!(open(), "while the node is away after {signal}");
            h1.start();
            await_mesh(&hosts);
            talk.assert_goes_on(BACK);
            assert!(open(), "after {signal}");
        }
        talk.finish();
        drop(listener);

        for verb in ["restart --time 0 a", "kill a", "start a"] {
            p1.run(verb);
            if verb == "kill a" {
                let free = || Runtime::new(h1).left() == (0, 0, 0);
                wait_for("its address is free", SWEPT, free);
            } else {
                p1.container("a").reaches(&b, 1400);
            }
        }

        let a = p1.container("a");
        let talk = Conversation::start(&a.ns, (&b.ns, b.v4.into()));
        let watcher = p1.run("inspect --format {{.State.ConmonPid}} a");
        ns::host(&format!("kill -KILL {}", watcher.trim()));
        talk.assert_goes_on(AT_ONCE);
        let listener = a.ns.inside(|| TcpListener::bind("0.0.0.0:80"));
        let listener = listener.expect("nothing else listens in it");
        let seen = word(&h2.ns, published, &listener);
        assert_eq!(seen, Some(h2.v4.into()), "without its watcher");
        talk.finish();
        drop(listener);
        for (podman, name) in [(&p1, "a"), (&p2, "b")] {
            podman.run(&format!("rm --force --time 0 {name}"));
            assert_eq!(Runtime::new(podman.host).left(), (0, 0, 0));
        }
        for (host, before) in hosts.iter().zip(&before) {
            assert_same(before, &host.ns.snapshot(), &host.name);
        }
    });
}
