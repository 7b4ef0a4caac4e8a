#!/usr/bin/env -S python3 -B
"""The CNI bench: how long ADD and DEL take, ours beside the reference plugins `bridge` with `host-local`.

Each call is what a runtime does: a process is started in the host's network namespace, with the configuration on stdin,
and waited for. Every container has a namespace of its own, made before anything is measured. For one container after
another each plugin's ADD is measured, then each one's DEL, so that all meet the same machine; `start` is a call that
asks for the version only, which is what starting a process costs. At the end of a run a crowd of containers comes at
once and goes at once.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import time
from pathlib import Path

from hosts import PREFIX, Failed, Hosts, collect, netns, run, wait_until
from overlays import OURS, PEERS, ROOT

GOALS = {("ADD", "p50_ms"): 10, ("ADD", "p99_ms"): 50, ("DEL", "p50_ms"): 10}
CLONE_NEWNET = 0x40000000


def arguments():
    parser = argparse.ArgumentParser(prog="./run bench cni", description="How long ADD and DEL take, beside the reference plugins.")
    parser.add_argument("--runs", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--containers", type=int, default=100, help="of each plugin, one after another, in each run (default: %(default)s)")
    parser.add_argument("--crowd", type=int, default=50, help="how many come at once at the end of a run; 0 for none (default: %(default)s)")
    parser.add_argument("--peers", default="ours,bridge", metavar="NAME,...", help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes every row there")
    asked = parser.parse_args()
    asked.names = asked.peers.replace(",", " ").split()
    if not asked.names or any(name not in PLUGINS for name in asked.names):
        parser.error(f"--peers are of {', '.join(PLUGINS)}")
    if min(asked.runs, asked.containers) < 1 or not 0 <= asked.crowd <= asked.containers:
        parser.error("--runs and --containers are at least 1, --crowd at most --containers")
    return asked


def main():
    asked = arguments()
    report(collect("cni", series(asked), asked.json))


def series(asked):
    print("\n".join(f"version: {line}" for line in versions(asked.names)), flush=True)
    for number in range(1, asked.runs + 1):
        for row in one_run(asked):
            yield {"run": number, **row}


def ours(hosts):
    """weaved with a cluster of its own, and the plugin beside it."""
    socket = hosts.folder / "A.sock"
    hosts.start("hA", OURS / "weaved", "--name", "hA", "--state-dir", hosts.folder / "state", "--socket", socket, "--listen", "0.0.0.0:6783")
    wait_until(socket.is_socket, 10, "weaved's socket")
    run(OURS / "weavectl", "--socket", socket, "init", "--range", "10.32.0.0/12")
    return OURS.parent / "install/weave-cni", {"cniVersion": "1.0.0", "name": "ours", "type": "weave-cni", "socket": str(socket)}


def bridge(hosts):
    """A bridge that is the containers' gateway and masquerades, with addresses of `host-local`, as most begin."""
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.99.64.0/18"}]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": str(hosts.folder / "host-local")}
    config = {"cniVersion": "1.0.0", "name": "theirs", "type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True, "ipam": ipam}
    return PEERS / "bridge", config


PLUGINS = {"ours": ours, "bridge": bridge}


def versions(names):
    lines = [f"Linux {os.uname().release}"]
    if "ours" in names:
        lines.append("ours " + run(OURS / "weaved", "--version").split()[-1])
    if "bridge" in names:
        lines += run(ROOT / "tests/bench/peers.sh", "cni-plugins", timeout=900).splitlines()
    return lines


class Plugin:
    """A plugin to be called, and its containers."""

    def __init__(self, name, program, config, count):
        self.name, self.program, self.config = name, str(program), json.dumps(config).encode()
        self.containers = [f"{name}{at}" for at in range(count)]

    def begin(self, verb, container):
        env = {"CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_NETNS": netns(container), "CNI_IFNAME": "eth0",
               "CNI_PATH": str(PEERS), "PATH": os.environ["PATH"]}  # fmt: skip
        process = subprocess.Popen([self.program], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False)
        process.stdin.write(self.config)
        process.stdin.close()
        return process

    def end(self, verb, container, process):
        said = process.stdout.read()
        if process.wait(60) != 0:
            raise Failed(f"{verb} of {container}: {said.decode(errors='replace')[:300]}")
        return said

    def call(self, verb, container):
        """How long it took, in milliseconds."""
        start = time.monotonic()
        process = self.begin(verb, container)
        self.end(verb, container, process)
        return (time.monotonic() - start) * 1000


def one_run(asked):
    hosts = Hosts("super", 1500, 0)
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        plugins = [Plugin(name, *PLUGINS[name](hosts), asked.containers) for name in asked.names]
        for plugin in plugins:
            for container in plugin.containers:
                run("ip", "netns", "add", PREFIX + container)
        enter(os.open(netns("hA"), os.O_RDONLY))
        try:
            yield from one_by_one(asked, plugins)
            if asked.crowd:
                yield from at_once(asked, plugins)
        finally:
            enter(home)
    finally:
        os.close(home)
        hosts.close()


def enter(namespace):
    """Puts this process into a network namespace."""
    if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET) != 0:
        raise Failed(f"setns: {os.strerror(ctypes.get_errno())}")


def one_by_one(asked, plugins):
    times = {}
    for at in range(asked.containers):
        turn = plugins[at % len(plugins) :] + plugins[: at % len(plugins)]
        for verb in ("ADD", "DEL", "VERSION"):
            for plugin in turn:
                took = plugin.call(verb, plugin.containers[at])
                times.setdefault((plugin.name, verb), []).append(took)
    for (name, verb), took in times.items():
        took.sort()
        at = lambda share: round(took[min(len(took) - 1, int(len(took) * share))], 2)  # noqa: B023, E731
        what = "start" if verb == "VERSION" else verb
        yield {"name": name, "verb": what, "containers": len(took), "p50_ms": at(0.5), "p90_ms": at(0.9), "p99_ms": at(0.99), "max_ms": round(took[-1], 2)}


def at_once(asked, plugins):
    for plugin in plugins:
        crowd = plugin.containers[: asked.crowd]
        for verb in ("ADD", "DEL"):
            start = time.monotonic()
            begun = [(container, plugin.begin(verb, container)) for container in crowd]
            said = [plugin.end(verb, container, process) for container, process in begun]
            whole = (time.monotonic() - start) * 1000
            if verb == "ADD" and len({json.loads(one)["ips"][0]["address"] for one in said}) != len(crowd):
                raise Failed(f"{plugin.name} gave an address twice")
            yield {"name": plugin.name, "verb": f"{verb} at once", "containers": len(crowd), "whole_ms": round(whole)}


def report(rows):
    """The medians of the runs, and whether ours are as good as they should be."""
    print("\nmedians of the runs, in ms:")
    for name, verb in dict.fromkeys((row["name"], row["verb"]) for row in rows):
        of = [row for row in rows if (row["name"], row["verb"]) == (name, verb)]
        figures = {key: statistics.median(row[key] for row in of) for key in of[0] if key.endswith("_ms")}
        words = [f"{key.removesuffix('_ms')} {figure:g}" for key, figure in figures.items()]
        goals = [f"{key.removesuffix('_ms')} goal {goal}: {'reached' if figures[key] <= goal else 'NOT reached'}"
                 for (what, key), goal in GOALS.items() if name == "ours" and what == verb]  # fmt: skip
        print(f"  {name:8} {verb:12} " + "  ".join(words + goals))


if __name__ == "__main__":
    main()
