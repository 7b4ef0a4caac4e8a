#!/usr/bin/env -S python3 -B
"""Endurance of the relay: hours of low load of every kind, while the node's memory, descriptors, sockets and connections are written down.

Requests by TCP and UDP that are all answered, connections that clients break off, endpoints that refuse, break and hang
for a while, a container that joins a Service and leaves it, Services that come and go. Prints a line a minute; at the
end the load stops, and what is left is compared with what was there before it began. It fails if descriptors, sockets or
connections are left, if a request failed while no server misbehaved, or if the memory of the last quarter is more than
a tenth above that of the second.

Meanwhile some requests go through the kernel's engine to the same servers. Where those fail too, the machine or the servers
had no time, and what failed then is counted as disturbed.
"""

import argparse
import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from failures import HERE, with_servers
from hold import node_of, seen
from hosts import PREFIX, run

ROUND = 20  # seconds
RATE = 40  # requests a second
CONTROL_RATE = 4  # of those that the relay has no part in
FAULTS = ["none", "resets", "none", "hangs", "none", "refuses"]
# How long a session of UDP is remembered after its answer, and some more.
FORGOTTEN = 150
# Has joined the Service whenever TCP is asked, and has left it before UDP is.
TURNING = "b4"
# What must be gone in the end.
GOES = ["descriptors", "tcp_sockets", "udp_sockets", "connections"]


def prepare(host):
    """The container that comes and goes, and the addresses of the Services: TCP that follows containers, and UDP."""
    run("ip", "netns", "add", PREFIX + TURNING)
    host.inside(TURNING, "ip", "link", "set", "lo", "up")
    host.tell(TURNING, "ok")
    host.start(TURNING, HERE / "answering.py", TURNING, host.folder / f"{TURNING}.mode")
    words = ["--port", "80:8080", "--selector", "app=web", "--engine", "relay"]
    said = host.ctl("service", "create", "turning", *words, "-o", "json")
    return json.loads(said)["addresses"][0], host.service("relay", host.behind(), "udp")


def ask(host, address, protocol="tcp"):
    """Half a round of load: how many requests, how many failed, and how many of those that the relay has no part in."""
    with ThreadPoolExecutor() as threads:
        control = threads.submit(host.ask, host.addresses["ours-kernel"], CONTROL_RATE, ROUND // 2)
        said = host.ask(address, RATE, ROUND // 2, protocol)
    return said["asked"], sum(said["failed"].values()), sum(control.result()["failed"].values())


def one_round(host, number, addresses):
    """A round of load: how many requests, how many of them failed, and how many while others failed without the relay."""
    fault = FAULTS[number % len(FAULTS)]
    host.misbehave(fault)
    name = f"passing-{number}"
    host.ctl("service", "create", name, "--port", "80:8080", "--engine", "relay", "--endpoint", f"{host.ips['b1']}:8080")
    host.attach(TURNING)
    tcp = ask(host, addresses[0])
    host.ctl("detach", TURNING)
    udp = ask(host, addresses[1], "udp")
    host.ctl("service", "rm", name)
    # While a server misbehaves some fail by right: those that hang, and datagrams that a rule answers with a reset of TCP.
    halves = (tcp, udp) if fault == "none" else ()
    failed = sum(failed for _, failed, control in halves if not control)
    disturbed = sum(failed for _, failed, control in halves if control)
    return tcp[0] + udp[0], failed, disturbed


def state(host, node):
    """What the node has at the moment."""
    rss, _, descriptors = seen(node)
    sockets = Path(f"/proc/{node}/net/sockstat").read_text().splitlines()
    of = lambda kind: int(next(line for line in sockets if line.startswith(f"{kind}:")).split()[2])  # noqa: E731
    said = json.loads(host.ctl("service", "list", "-o", "json"))
    backends = [backend for service in said["services"] for backend in service["backends"]]
    return {
        "rss_kib": rss,
        "descriptors": descriptors,
        "tcp_sockets": of("TCP"),
        "udp_sockets": of("UDP"),
        "connections": sum(one["relayed"]["open"] for one in backends if one.get("relayed")),
        "tracked": int(host.inside("h", "cat", "/proc/sys/net/netfilter/nf_conntrack_count")),
    }


def soak(host, seconds, keep):
    """The rows, what was there before the load, and what was left after it; `keep` is given all rows after each."""
    addresses = prepare(host)
    node, rows, asked, failed, disturbed = node_of(host), [], 0, 0, 0
    first, start = state(host, node), time.monotonic()
    print("before: " + said_of(first), flush=True)
    number = 0
    while time.monotonic() - start < seconds:
        number += 1
        more = one_round(host, number, addresses)
        asked, failed, disturbed = asked + more[0], failed + more[1], disturbed + more[2]
        counts = {"asked": asked, "failed": failed, "disturbed": disturbed}
        rows.append({"s": round(time.monotonic() - start), **state(host, node), **counts})
        keep(rows)
        if number % 3 == 0:
            print(said_of(rows[-1]), flush=True)
    host.misbehave("none")
    time.sleep(FORGOTTEN)
    return rows, first, state(host, node)


def said_of(row):
    return "  ".join(f"{key}={value}" for key, value in row.items())


def judge(rows, first, last):
    quarter = len(rows) // 4 or 1
    second = statistics.median(row["rss_kib"] for row in rows[quarter : 2 * quarter] or rows)
    end = statistics.median(row["rss_kib"] for row in rows[-quarter:])
    print("after: " + said_of(last))
    print(f"memory: {second:.0f} KiB in the second quarter, {end:.0f} in the last")
    faults = [f"{last[what] - first[what]} {what} are left" for what in GOES if last[what] > first[what]]
    if end > 1.1 * second:
        faults.append("memory grows")
    if rows[-1]["failed"]:
        faults.append(f"{rows[-1]['failed']} requests failed while no server misbehaved")
    print("flat: " + ("no" if faults else "yes"))
    return faults


def main():
    parser = argparse.ArgumentParser(prog="./run bench soak", description="Endurance of the relay under low load.")
    parser.add_argument("seconds", type=int, help="how long")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes what was written down there, anew after each round")
    asked = parser.parse_args()

    def keep(rows):
        if asked.json:
            asked.json.write_text(json.dumps({"bench": "soak", "rows": rows}, indent=1) + "\n")

    rows, first, last = with_servers(lambda host: soak(host, asked.seconds, keep))
    faults = judge(rows, first, last)
    for fault in faults:
        print(f"bench: FAILED {fault}", file=sys.stderr)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
