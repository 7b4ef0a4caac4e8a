//! The page, as a person meets it: in a real browser, through the node's socket, before and after a restart.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::lab::node::WEAVECTL;
use crate::lab::ns::Ns;
use crate::lab::traffic::{udp, wait_for};
use crate::lab::{Container, Host, Lab, await_mesh, form};

/// The scripts that play people.
const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/page");

/// `weavectl dashboard`, which forwards the page until it is dropped.
struct Forward {
    child: Child,
    link: String,
}

impl Forward {
    /// Starts it outside of the host's namespace, where the node's own listener cannot be reached.
    fn start(host: &Host) -> Self {
        let mut child = Command::new(WEAVECTL)
            .env("WEAVE_SOCKET", host.socket())
            .arg("dashboard")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("weavectl starts");
        let mut link = String::new();
        let out = child.stdout.take().expect("it was piped");
        BufReader::new(out)
            .read_line(&mut link)
            .expect("it prints a link");
        Self {
            child,
            link: link.trim().to_owned(),
        }
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is not in the network and gets datagrams of it.
const OUTSIDE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 168, 77, 9), 8004);

/// Traffic that goes on until it is dropped: datagrams both ways, some through a Service, some of a third container to the
/// outside, and a connection that is refused each second.
struct Life {
    go_on: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Life {
    fn start([from, to, leaving]: [&Container; 3], front: SocketAddr) -> Self {
        let go_on = Arc::new(AtomicBool::new(true));
        let until = Arc::clone(&go_on);
        let (left, right) = (udp(&from.ns, (from.v4, 0)), udp(&to.ns, (to.v4, 7000)));
        let through = udp(&from.ns, (from.v4, 0));
        let leaving = udp(&leaving.ns, (leaving.v4, 0));
        let target = right.local_addr().expect("a bound socket has an address");
        let (ns, refused) = (from.ns.clone(), (to.v4, 7009));
        let thread = std::thread::spawn(move || {
            while until.load(Ordering::Relaxed) {
                for _ in 0..20 {
                    // Whether one arrives is not what this is about.
                    let _ = left.send_to(&[1; 1000], target);
                    let _ = through.send_to(&[3; 100], front);
                    let _ = leaving.send_to(&[4; 100], OUTSIDE);
                    if let Ok((_, asker)) = right.recv_from(&mut [0; 1500]) {
                        let _ = right.send_to(&[2; 200], asker);
                    }
                    std::thread::sleep(Duration::from_millis(40));
                }
                let _ = ns.inside(|| std::net::TcpStream::connect(refused));
            }
        });
        Self {
            go_on,
            thread: Some(thread),
        }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.go_on.store(false, Ordering::Relaxed);
        // What went wrong in it was told when it did.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A Service in front of whoever is of the tier `store`.
fn make_shop(host: &Host) -> SocketAddr {
    let made = host.json(&[
        "service",
        "create",
        "shop",
        "--port",
        "81:7000/udp",
        "--selector",
        "tier=store",
    ]);
    let front = made["addresses"][0].as_str().expect("an address");
    SocketAddr::new(front.parse().expect("an address"), 81)
}

/// A program with a name that would be markup, which listens on port 8000 of a container.
fn serve(of: &Container, dir: &Path) -> Child {
    let named = dir.join("<i id=bad>");
    std::os::unix::fs::symlink("/usr/bin/python3", &named).expect("the name is free");
    let mut server = of.ns.command(named.to_str().expect("it is text"));
    let server = server.args(["-m", "http.server", "8000"]);
    let server = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    server.expect("python3 is installed")
}

/// A process that only is in a container, as the one that a runtime began it with.
fn rest(of: &Container) -> Child {
    let mut sleep = of.ns.command("sleep");
    sleep.arg("infinity").spawn().expect("sleep is installed")
}

/// Docker, as far as the node asks it: two containers, by a process in each, with an image and a label that would be markup,
/// and the second with such a name as well.
fn play_docker(at: &Path, pids: [u32; 2]) {
    let listener = UnixListener::bind(at).expect("the name is free");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Whoever asks may go away.
            let _ = answer_as_docker(stream, pids);
        }
    });
}

fn answer_as_docker(stream: UnixStream, [first, second]: [u32; 2]) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    while let Some(request) = lines.next().transpose()? {
        while lines
            .next()
            .transpose()?
            .is_some_and(|line| !line.is_empty())
        {}
        let body = if request.contains("/containers/json") {
            serde_json::json!([{"Id": "0123456789ab"}, {"Id": "ba9876543210"}])
        } else {
            let labels =
                serde_json::json!({"<b id=bad>label</b>": "<img id=bad src=x onerror=alert(1)>"});
            let config = serde_json::json!({"Image": "<u id=bad>shop</u>", "Labels": labels});
            let (name, pid) = match request.contains("ba9876543210") {
                false => ("/web", first),
                true => ("/<script id=bad>x=1</script>", second),
            };
            serde_json::json!({"Name": name, "State": {"Pid": pid}, "Config": config})
        };
        let body = body.to_string();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        (&stream).write_all((head + &body).as_bytes())?;
    }
    Ok(())
}

/// Has a script use the page of a link, and does to the nodes what it asks for, until it has seen all.
fn play(script: &str, link: &str, folder: &str, mut done: impl FnMut(&str)) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert!(
        root.join("dashboard/web/node_modules/playwright-core")
            .exists(),
        "the page's modules are missing: build the page with ./run page"
    );
    assert!(link.starts_with("http://127.0.0.1:"), "{link}");
    let shots = root.join(".cache/page").join(folder);
    std::fs::create_dir_all(&shots).expect("a place for pictures");
    let mut person = Command::new("node")
        .arg(Path::new(SCRIPTS).join(script))
        .arg(link)
        .arg(&shots)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("node is installed");
    let mut stdin = person.stdin.take().expect("it was piped");
    let lines = BufReader::new(person.stdout.take().expect("it was piped")).lines();
    let mut heard = Vec::new();
    for line in lines {
        let line = line.expect("the script writes text");
        println!("{line}");
        if let Some(what) = line.strip_prefix("do: ") {
            done(what);
            writeln!(stdin, "done").expect("the script listens");
        }
        heard.push(line);
    }
    let ended = person.wait().expect("the script ends");
    assert!(ended.success(), "{heard:#?}");
    assert_eq!(heard.last().map(String::as_str), Some("all seen"));
}

/// Logs in by the link, sees hosts, containers and flows, opens and closes a group, clicks a flow, filters, walks by keys over
/// nodes and edges and hears where it is, saves what is shown, reads the table, goes back in time, also to where nothing is
/// kept, changes colours, and finds the page again after the node was killed. No error in the console, nothing from elsewhere,
/// nothing that keeps anybody from using it.
#[test]
fn a_person_uses_the_page() {
    Lab::run(|lab| {
        let hosts = [lab.host("h1", 1), lab.host("h2", 2)];
        let [h1, h2] = &hosts;
        let docker = lab.dir().join("docker.sock");
        h1.start_with(&[&format!("--docker-api={}", docker.display())]);
        h2.start();
        form(&hosts);
        let [web, db] = [
            h1.attach_with("web", &["--label", "tier=front"]),
            h2.attach_with("db", &["--label", "tier=store"]),
        ];
        let idle = h1.attach("idle");
        let machine = Ns::add("outside");
        lab.plug(&machine, "u0", 9);
        lab.allow_outside(OUTSIDE.0);
        let _listens = udp(&machine, OUTSIDE);
        let front = make_shop(h2);
        let _life = Life::start([&web, &db, &idle], front);
        let mut begun = [serve(&web, lab.dir()), rest(&h1.attach("odd"))];
        play_docker(&docker, begun.each_ref().map(Child::id));
        h1.json(&["network", "create", "blue"]);
        h1.attach_with("inner", &["--network", "blue"]);
        let forward = Forward::start(h1);
        play("person.mjs", &forward.link, "person", |what| {
            assert_eq!(what, "restart the node");
            h1.end("KILL");
            std::thread::sleep(Duration::from_secs(1));
            h1.start();
        });
        for process in &mut begun {
            process.kill().expect("it runs until now");
            process.wait().expect("it ends");
        }
    });
}

/// Wherever there is little or nothing to see, or nobody is allowed to, the page says why and what to do.
#[test]
fn an_empty_page_says_why() {
    Lab::run(|lab| {
        let hosts = [lab.host("h1", 1), lab.host("h2", 2)];
        hosts.iter().for_each(Host::start);
        let [h1, h2] = &hosts;
        let forward = Forward::start(h1);
        play("empty.mjs", &forward.link, "empty", |what| match what {
            "make a cluster" => form(&hosts),
            "attach two containers" => {
                h1.attach("a");
                h1.attach("b");
            }
            "lose the other host" => h2.kill(),
            "stop looking at flows" => {
                h1.end("TERM");
                h1.start_with(&["--flows=off"]);
            }
            "stop the node" => {
                h1.end("TERM");
            }
            other => panic!("the script asks to {other}"),
        });
        // So that what went over the wire can be judged.
        hosts.iter().for_each(Host::start);
        await_mesh(&hosts);
    });
}

/// In the node's own namespace the link leads to the node's own listener, and nothing is forwarded.
#[test]
fn the_link_leads_to_the_node_where_it_can() {
    Lab::run(|lab| {
        let host = lab.host("h1", 1);
        host.start();
        let ask = format!("{WEAVECTL} --socket {} dashboard", host.socket().display());
        let said = host.ns.sh(&ask);
        let link = said.lines().next().unwrap_or_default();
        assert!(link.starts_with("http://127.0.0.1:4040/#code="), "{said}");
        let code = link.split('=').next_back().unwrap_or_default();
        let table = [
            ("/api/topology", "", "401"),
            ("/api/topology", "-H 'Host: evil.example'", "403"),
            ("/", "", "200"),
            ("/api/login", "-X POST -d '{}'", "403"),
        ];
        for (path, more, expected) in table {
            let line = format!(
                "curl -s -o /dev/null -w '%{{http_code}}' {more} http://127.0.0.1:4040{path}"
            );
            assert_eq!(host.ns.sh(&line), expected, "{path} {more}");
        }
        let jar = lab.dir().join("jar");
        let jar = jar.display();
        host.ns.sh(&format!(
            "curl -fsS -c {jar} -H 'Origin: http://127.0.0.1:4040' -d '{{\"code\":\"{code}\"}}' http://127.0.0.1:4040/api/login"
        ));
        let get = |path: &str| {
            let line = format!("curl -fsS --max-time 10 -b {jar} http://127.0.0.1:4040{path}");
            host.ns.sh(&line)
        };
        wait_for(
            "there is a past though nobody looked",
            Duration::from_secs(60),
            || get("/api/history").matches(',').count() >= 1,
        );
        let picture: Value = serde_json::from_str(&get("/api/topology")).expect("JSON");
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH);
        let seconds = seconds.expect("it is later").as_secs();
        let made = picture["topology"]["at"].as_u64();
        assert!(
            made.is_some_and(|at| at + 10 > seconds),
            "who asks once is told of now: {made:?}, {seconds}"
        );
    });
}

/// Answers as Docker 29 does, for one container: this very process.
const DOCKER: &str = r#"
import http.server, json, os, socketserver, sys
class Docker(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        code, body = 200, {"Name": "/front", "State": {"Pid": os.getpid()},
                           "Config": {"Image": "shop:1", "Labels": {"io.kubernetes.pod.namespace": "shop"}}}
        if self.path.endswith("/containers/json"):
            body = [{"Id": "ab"}]
        if not self.path.startswith("/v1.52/") and self.path != "/_ping":
            code, body = 400, {"message": "client version is too old"}
        body = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Api-Version", "1.52")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
socketserver.ThreadingUnixStreamServer(sys.argv[1], Docker).serve_forever()
"#;

/// What another host tells is in the past that is there before anybody looks, with what the container's runtime says.
#[test]
fn the_past_has_other_hosts_before_anybody_looks() {
    Lab::run(|lab| {
        let hosts = [lab.host("h1", 1), lab.host("h2", 2)];
        let [h1, h2] = &hosts;
        let socket = lab.dir().join("docker.sock").display().to_string();
        h1.start();
        h2.start_with(&[&format!("--docker-api={socket}")]);
        form(&hosts);
        let [_a, b] = [h1.attach("a"), h2.attach("b")];
        let c = h2.attach("c");
        let mut docker = b.ns.command("python3");
        let docker = docker.args(["-c", DOCKER, &socket]).spawn();
        let mut docker = docker.expect("python3 is installed");
        let (left, right) = (udp(&b.ns, (b.v4, 0)), udp(&c.ns, (c.v4, 7000)));
        let ask = format!("{WEAVECTL} --socket {} dashboard", h1.socket().display());
        let said = h1.ns.sh(&ask);
        let link = said.lines().next().unwrap_or_default();
        let code = link.split('=').next_back().unwrap_or_default();
        let jar = lab.dir().join("jar");
        let jar = jar.display();
        h1.ns.sh(&format!(
            "curl -fsS -c {jar} -H 'Origin: http://127.0.0.1:4040' -d '{{\"code\":\"{code}\"}}' http://127.0.0.1:4040/api/login"
        ));
        // To ask for the past is not to look.
        let get = |path: &str| {
            let line = format!("curl -fsS --max-time 10 -b {jar} http://127.0.0.1:4040{path}");
            h1.ns.sh(&line)
        };
        let times = || -> Vec<u64> { serde_json::from_str(&get("/api/history")).expect("JSON") };
        let tells = |at: &u64| {
            let picture: Value =
                serde_json::from_str(&get(&format!("/api/history/{at}"))).expect("JSON");
            let picture = &picture["topology"];
            let hosts = picture["hosts"].as_array().expect("a list");
            let flows = picture["flows"].as_array().expect("a list");
            let containers = picture["containers"].as_array().expect("a list");
            let front = |one: &&Value| one["runtime"]["name"] == "front";
            let front = containers.iter().find(front);
            hosts.iter().all(|host| host["silent"].is_null())
                && front.is_some_and(|one| {
                    one["name"] == "b"
                        && one["runtime"]["namespace"] == "shop"
                        && one["inside"].is_null()
                })
                && flows.iter().any(|flow| flow["from"]["name"] == "front")
        };
        wait_for(
            "a picture of the past has it all",
            Duration::from_secs(90),
            || {
                left.send_to(&[1; 100], (c.v4, 7000)).expect("it leaves");
                right.recv_from(&mut [0; 100]).expect("it arrives");
                std::thread::sleep(Duration::from_secs(1));
                times().last().is_some_and(tells)
            },
        );
        docker.kill().expect("it runs until now");
        docker.wait().expect("it ends");
    });
}
