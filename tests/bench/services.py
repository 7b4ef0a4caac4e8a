#!/usr/bin/env -S python3 -B
"""The bench of Services: our engines beside no Service at all, plain nft rules, haproxy and kube-proxy, interleaved.

A host for each kind, with three containers that a node has attached: a client and two servers. So the way of a packet is the
same for all; only what stands in front of the servers differs, and nobody pays for the rules of others: where the Service is
not ours the node has ended, and none of its rules for Services are left. One nginx with one worker listens in both servers, so
that how the connections happen to be shared out between them, which moves the figures by a fifth, makes no difference.

    direct       the client asks one server by its address
    nft          two DNAT rules, as one would write them by hand: numgen, masquerade for nobody
    haproxy      a proxy in the host's network with two threads, least connections, splicing
    kube-proxy   Kubernetes' own in its nftables mode, told of two Services by a stand-in for the API server; only if it is
                 named or the peers are "all", because building it takes minutes, once
    ours-kernel  weavectl service create
    ours-relay   the same with --engine relay: our own proxy

Then, unless --sync none: how long the engine takes to have all Services of a recorded stream of events in the kernel, and
one change of them; and what the first packet of a connection costs by how many Services there are. The recording is drawn
from a seed, 10,000 Services with 25 endpoints each, or that of a cluster: see proxy/examples/sync/recording.rs.
"""

import argparse
import ctypes
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from hosts import PREFIX, Failed, netns, remove_leftovers, run, wait_until
from measure import cpu_seconds, spread

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
NAMES = ["direct", "nft", "haproxy", "ours-kernel", "ours-relay"]
KUBE_PROXY = "kube-proxy"
COLUMNS = ["keepalive_rps", "p50_us", "p99_us", "newconn_per_s", "tcp_gbps", "cpu_s"]
FRONT, BULK = "10.99.0.10", "10.99.0.11"
API_PORT = 8001
CLONE_NEWNET = 0x40000000
# How many changes of one endpoint a drawn recording has.
CHANGES = 300
# Where its virtual addresses are from.
DRAWN_RANGE = "172.16.0.0/12"

NGINX = """
pid {folder}/nginx.pid; worker_processes 1; error_log /dev/null; daemon off;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{ {listen} location / {{ return 200 "hello\\n"; }} }}
}}
"""
HAPROXY = """
global
 maxconn 4000
 nbthread 2
defaults
 mode tcp
 timeout connect 2s
 timeout client 60s
 timeout server 60s
 option splice-auto
frontend web
 bind {address}:80
 default_backend webs
backend webs
 balance leastconn
 server b1 {b1}:80
 server b2 {b2}:80
frontend bulk
 bind {address}:5201
 default_backend bulks
backend bulks
 server b1 {b1}:5201
"""
RULES = """
table ip byhand {{
 chain pre {{ type nat hook prerouting priority dstnat; policy accept;
  ip daddr {address} tcp dport 80 dnat to numgen random mod 2 map {{ 0 : {b1}, 1 : {b2} }}
  ip daddr {address} tcp dport 5201 dnat to {b1}
 }}
}}
"""


class Host:
    """The host of one kind, its containers, and what runs in them; `close` ends what runs."""

    def __init__(self, kind):
        self.kind = kind
        self.folder = Path(run("mktemp", "-d", f"/tmp/{PREFIX}XXXXXX").strip())
        self.running = []
        for name in ("h", "c", "b1", "b2"):
            run("ip", "netns", "add", f"{PREFIX}{kind}-{name}")
            self.inside(name, "ip", "link", "set", "lo", "up")
        node = self.start("h", TARGET / "weaved", "--name", "h", "--state-dir", self.folder / "state", "--socket", self.folder / "sock")
        wait_until((self.folder / "sock").is_socket, 10, "weaved's socket")
        self.ctl("init")
        wait_until(lambda: self.ctl("status", "-o", "json", check=False), 10, "an answer of weaved")
        self.ips = {name: self.attach(name) for name in ("c", "b1", "b2")}
        # The servers would remember each client's port for a minute after they closed a connection.
        for name in ("b1", "b2"):
            self.inside(name, "sysctl", "-qw", "net.ipv4.tcp_max_tw_buckets=0")
        self.inside("c", "sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65535")
        self.start_web()
        self.start("b1", "iperf3", "-s")
        if not kind.startswith("ours"):
            self.leave_containers(node)
        self.web, self.bulk = self.put_in_front()

    def start_web(self):
        """One nginx for both servers: it takes over sockets that listen there, as after an upgrade of itself."""
        places = {self.ips[name]: self.netns(name) for name in ("b1", "b2")}
        config = self.folder / "nginx.conf"
        listen = " ".join(f"listen {ip}:80 backlog=8192;" for ip in places)
        config.write_text(NGINX.format(folder=self.folder, listen=listen))
        sockets = [listener(place, (ip, 80)) for ip, place in places.items()]
        files = [one.fileno() for one in sockets]
        taken = "".join(f"{file};" for file in files)
        self.start("h", "nginx", "-c", config, env={**os.environ, "NGINX": taken}, pass_fds=files)
        for one in sockets:
            one.close()

    def leave_containers(self, node):
        """Ends the node: its containers stay connected, and nothing of its Services stays."""
        node.terminate()
        node.wait(10)
        for line in self.inside("h", "nft", "list", "tables").splitlines():
            if line.endswith(("weave-service", "weave-relay", "weave-anchor")):
                self.inside("h", "nft", "delete", *line.split())

    def put_in_front(self):
        """The Service: its addresses, of the web and of the bulk, which goes to one server."""
        b1, b2 = self.ips["b1"], self.ips["b2"]
        if self.kind == "direct":
            return b1, b1
        if self.kind == "nft":
            self.inside("h", "nft", "-f", "-", stdin=RULES.format(address=FRONT, b1=b1, b2=b2))
            return FRONT, FRONT
        if self.kind == "haproxy":
            self.inside("h", "ip", "addr", "add", f"{FRONT}/32", "dev", "lo")
            config = self.folder / "haproxy.conf"
            config.write_text(HAPROXY.format(address=FRONT, b1=b1, b2=b2))
            self.start("h", "haproxy", "-db", "-f", config)
            return FRONT, FRONT
        if self.kind == KUBE_PROXY:
            self.start_kube_proxy()
            return FRONT, BULK
        engine = ["--engine", self.kind.removeprefix("ours-")]
        create = lambda *words: json.loads(self.ctl("service", "create", *words, *engine, "-o", "json"))["addresses"][0]  # noqa: E731
        return create("web", "--port", "80", "--selector", "app=web"), create("bulk", "--port", "5201", "--endpoint", f"{b1}:5201")

    def start_kube_proxy(self):
        b1, b2 = self.ips["b1"], self.ips["b2"]
        objects = self.folder / "objects.json"
        objects.write_text(json.dumps(kube_objects({"web": (FRONT, 80, [b1, b2]), "bulk": (BULK, 5201, [b1])})))
        self.start("h", ROOT / "tests/bench/apiserver.py", API_PORT, objects)
        places = ["--healthz-bind-address", "127.0.0.1:10257", "--metrics-bind-address", "127.0.0.1:10249"]
        words = ["--master", f"http://127.0.0.1:{API_PORT}", "--proxy-mode", "nftables", "--hostname-override", "h", "--cluster-cidr", "10.32.0.0/12"]
        # What is the whole machine's and not a namespace's is left alone.
        leave = ["--conntrack-max-per-core", "0", "--conntrack-tcp-timeout-established", "0", "--conntrack-tcp-timeout-close-wait", "0"]
        self.start("h", ROOT / ".cache/peers/bin/kube-proxy", *words, *places, *leave)

    def netns(self, place):
        return netns(f"{self.kind}-{place}")

    def attach(self, name):
        labels = [] if name.startswith("c") else ["--label", "app=web"]
        said = json.loads(self.ctl("attach", self.netns(name), "--name", name, *labels, "-o", "json"))
        return said["ips"][0]["address"].split("/")[0]

    def ctl(self, *words, check=True):
        try:
            return run(TARGET / "weavectl", "--socket", self.folder / "sock", *words)
        except Failed:
            if check:
                raise
            return ""

    def inside(self, place, *command, **options):
        return run("nsenter", f"--net={self.netns(place)}", "--", *command, **options)

    def start(self, place, *command, **options):
        with open(self.folder / "log", "ab") as log:
            words = ["nsenter", f"--net={self.netns(place)}", "--", *map(str, command)]
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0, **options)
        self.running.append(process)
        return process

    def close(self):
        for process in self.running:
            process.terminate()
        for process in self.running:
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def listener(netns, address):
    """A socket that listens in a network namespace."""
    made = []

    def work():
        # Of this thread alone, which ends with it.
        with open(netns) as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET) != 0:
                return
        made.append(socket.create_server(address))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if not made:
        raise Failed(f"nobody can listen at {address[0]}:{address[1]} in {netns}")
    return made[0]


def kube_objects(services):
    """A node and Services, {name: (address, port, endpoints)}, by the paths of Kubernetes' resources."""
    made = lambda name: {"name": name, "namespace": "default", "uid": name, "resourceVersion": "1"}  # noqa: E731
    ports = lambda port: [{"name": "", "protocol": "TCP", "port": port}]  # noqa: E731
    node = {"metadata": {"name": "h", "uid": "h"}, "status": {"addresses": [{"type": "InternalIP", "address": "10.32.0.1"}]}}
    return {
        "api/v1/nodes": [node],
        "api/v1/services": [
            {"metadata": made(name), "spec": {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ipFamilies": ["IPv4"], "ports": ports(port)}}
            for name, (address, port, _) in services.items()
        ],
        "apis/discovery.k8s.io/v1/endpointslices": [
            {
                "metadata": made(name) | {"labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4",
                "ports": ports(port),
                "endpoints": [{"addresses": [one], "conditions": {"ready": True}, "nodeName": "h"} for one in endpoints],
            }
            for name, (_, port, endpoints) in services.items()
        ],
        "apis/networking.k8s.io/v1/servicecidrs": [],
    }


def answers(host, address):
    try:
        return "Requests/sec" in host.inside("c", "wrk", "-t1", "-c1", "-d1s", f"http://{address}/")
    except Failed:
        return False


def measure(host, seconds):
    """One run of one kind: its columns."""
    web, bulk = host.web, host.bulk
    wait_until(lambda: answers(host, web), 15, f"an answer of {host.kind}")
    # What the run before left would be searched too.
    host.inside("h", "conntrack", "-F")
    before = cpu_seconds()
    kept = host.inside("c", "wrk", "-t1", "-c32", f"-d{seconds}s", "--latency", f"http://{web}/", timeout=seconds + 20)
    new = host.inside("c", "wrk", "-t1", "-c32", f"-d{seconds}s", "-H", "Connection: close", f"http://{web}/", timeout=seconds + 20)
    said = host.inside("c", "iperf3", "-J", "-c", bulk, "-t", seconds, timeout=seconds + 20)
    spent = cpu_seconds() - before
    return {
        "keepalive_rps": figure(r"Requests/sec:\s+([\d.]+)", kept),
        "p50_us": micros(r"50%\s+([\d.]+)(us|ms|s)", kept),
        "p99_us": micros(r"99%\s+([\d.]+)(us|ms|s)", kept),
        "newconn_per_s": figure(r"Requests/sec:\s+([\d.]+)", new),
        "tcp_gbps": round(json.loads(said)["end"]["sum_received"]["bits_per_second"] / 1e9, 2),
        "cpu_s": round(spent, 2),
    }


def figure(pattern, text):
    found = re.search(pattern, text)
    return round(float(found[1]), 1) if found else 0


def micros(pattern, text):
    found = re.search(pattern, text)
    return round(float(found[1]) * {"us": 1, "ms": 1e3, "s": 1e6}[found[2]]) if found else 0


def bench(asked):
    rows, faults = [], []
    hosts = []
    remove_leftovers()
    try:
        for name in asked.names:
            hosts.append(Host(name))
        for number in range(1, asked.runs + 1):
            for host in hosts:
                name = host.kind
                try:
                    row = measure(host, asked.seconds)
                except (Failed, KeyError, ValueError) as fault:
                    faults.append(f"{name}, run {number}: {fault}")
                    continue
                faults += [f"{name}, run {number}: {key} is zero" for key, value in row.items() if not value]
                print(f"run {number} {name}:", "  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
                rows.append({"name": name, "run": number, **row})
    finally:
        for host in hosts:
            host.close()
        remove_leftovers()
    return rows, faults


def replay(asked):
    """What the sync of a recording takes; a size is drawn first."""
    size = re.fullmatch(r"(\d+)x(\d+)", asked)
    if not size:
        return json.loads(run(TARGET / "examples/sync", *asked.split(","), timeout=120))
    with tempfile.NamedTemporaryFile("w", suffix=".json") as recording:
        recording.write(run(TARGET / "examples/sync", "record", *size.groups(), CHANGES, timeout=120))
        recording.flush()
        return json.loads(run(TARGET / "examples/sync", "--range", DRAWN_RANGE, recording.name, timeout=120))


def print_table(rows):
    """Medians, and ours as multiples of what they replace, within the runs that both have."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    median = {name: {key: statistics.median(row[key] for row in rows if row["name"] == name) for key in COLUMNS} for name in names}
    lines = [["median", *COLUMNS]] + [[name, *(f"{median[name][key]:g}" for key in COLUMNS)] for name in names]
    for mine, other in (("ours-kernel", "nft"), ("ours-kernel", KUBE_PROXY), ("ours-relay", "haproxy")):
        if {mine, other} <= set(names):
            ours, theirs = ({row["run"]: row for row in rows if row["name"] == name} for name in (mine, other))
            both = [number for number in ours if number in theirs]
            lines.append([f"{mine} / {other}"])
            for key in COLUMNS:
                known = both and all(theirs[number][key] for number in both)
                lines[-1].append(spread([ours[number][key] for number in both], [theirs[number][key] for number in both]) if known else "-")
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    print()
    for line in lines:
        print("  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]))


def arguments():
    parser = argparse.ArgumentParser(prog="./run bench services", description="Compares our Services with rules by hand, haproxy and kube-proxy.")
    parser.add_argument("--runs", type=int, default=3, help="runs of each (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=4, help="length of each measurement (default: %(default)s)")
    parser.add_argument("--peers", default=",".join(NAMES), metavar="NAME,...", help=f"all, or some of these and {KUBE_PROXY} (default: %(default)s)")
    parser.add_argument("--sync", default="10000x25", metavar="SERVICESxENDPOINTS", help="size of a drawn recording, FILE,... of another one, or none (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes every run there, one row each")
    asked = parser.parse_args()
    possible = [*NAMES[:3], KUBE_PROXY, *NAMES[3:]]
    asked.names = possible if asked.peers == "all" else asked.peers.replace(",", " ").split()
    if not set(asked.names) <= set(possible) or min(asked.runs, asked.seconds) < 1:
        parser.error(f"--peers are {', '.join(possible)}; --runs and --seconds at least 1")
    return asked


def main():
    asked = arguments()
    if os.geteuid() != 0:
        sys.exit("bench: making network namespaces needs root: run it as root")
    try:
        if KUBE_PROXY in asked.names:
            run(ROOT / "tests/bench/peers.sh", KUBE_PROXY, timeout=3600)
        rows, faults = bench(asked)
        sync, first = None, []
        if asked.sync != "none":
            sync = replay(asked.sync)
            counts = [count for count in (10, 100, 1000, 10_000) if count <= sync["services"]]
            if counts:
                first = [json.loads(line) for line in run(TARGET / "examples/first_packet", 2000, *counts, timeout=120).splitlines()]
    except Failed as fault:
        sys.exit(f"bench: {fault}")
    print_table(rows)
    if sync:
        print("\nsync:", "  ".join(f"{key}={value}" for key, value in sync.items()))
    for row in first:
        print("first packet:", "  ".join(f"{key}={value}" for key, value in row.items()))
    if asked.json:
        asked.json.write_text(json.dumps({"bench": "services", "rows": rows, "sync": sync, "first_packet": first}, indent=1) + "\n")
    for fault in faults:
        print(f"bench: FAILED {fault}", file=sys.stderr)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
