#!/usr/bin/env -S python3 -B
"""Endurance of the relay: hours of low load of every kind, while the node's memory, descriptors and sockets are written down.

Requests by TCP and UDP that are all answered, connections that clients break off, endpoints that refuse, break and hang
for a while, Services that come and go. Prints a line a minute; at the end the load stops, and what is left is compared
with what was there at the beginning. It fails if descriptors are left, if a request failed while no server misbehaved,
or if the memory of the last quarter is more than a tenth above that of the second.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from failures import with_servers
from hold import node_of, seen

ROUND = 20  # seconds
RATE = 40  # requests a second
FAULTS = ["none", "resets", "none", "hangs", "none", "refuses"]
# How long a session of UDP is remembered after its answer, and some more.
FORGOTTEN = 150


def one_round(host, number, addresses):
    """A round of load; how many requests failed, and of how many."""
    fault = FAULTS[number % len(FAULTS)]
    host.misbehave(fault)
    name = f"passing-{number}"
    host.ctl("service", "create", name, "--port", "80:8080", "--engine", "relay", "--endpoint", f"{host.ips['b1']}:8080")
    half = ROUND // 2
    tcp = host.ask(addresses[0], RATE, half)
    udp = host.ask(addresses[1], RATE, half, "udp")
    host.ctl("service", "rm", name)
    # While a server misbehaves some fail by right: those that hang, and datagrams that a rule answers with a reset of TCP.
    failed = sum(one for each in (tcp, udp) for one in each["failed"].values()) if fault == "none" else 0
    return failed, tcp["asked"] + udp["asked"]


def soak(host, seconds):
    by_udp = host.service("relay", host.behind(), "udp")
    addresses = (host.addresses["ours-relay"], by_udp)
    node, failed, asked, rows = node_of(host), 0, 0, []
    one_round(host, 0, addresses)
    first, start = seen(node), time.monotonic()
    number = 0
    while time.monotonic() - start < seconds:
        number += 1
        more_failed, more = one_round(host, number, addresses)
        failed, asked = failed + more_failed, asked + more
        rss, slab, descriptors = seen(node)
        rows.append({"s": round(time.monotonic() - start), "rss_kib": rss, "slab_kib": slab, "descriptors": descriptors, "asked": asked, "failed": failed})
        if number % 3 == 0:
            print("  ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    host.misbehave("none")
    time.sleep(FORGOTTEN)
    return rows, first, seen(node)


def judge(rows, first, last):
    quarter = len(rows) // 4 or 1
    second = statistics.median(row["rss_kib"] for row in rows[quarter : 2 * quarter] or rows)
    end = statistics.median(row["rss_kib"] for row in rows[-quarter:])
    print(f"memory: {second:.0f} KiB in the second quarter, {end:.0f} in the last; descriptors: {first[2]} at first, {last[2]} at last")
    faults = []
    if last[2] > first[2]:
        faults.append(f"{last[2] - first[2]} descriptors are left")
    if end > 1.1 * second:
        faults.append("memory grows")
    if rows[-1]["failed"]:
        faults.append(f"{rows[-1]['failed']} requests failed while no server misbehaved")
    return faults


def main():
    parser = argparse.ArgumentParser(prog="./run bench soak", description="Endurance of the relay under low load.")
    parser.add_argument("seconds", type=int, help="how long")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes what was written down there")
    asked = parser.parse_args()
    rows, first, last = with_servers(lambda host: soak(host, asked.seconds))
    if asked.json:
        asked.json.write_text(json.dumps({"bench": "soak", "rows": rows}, indent=1) + "\n")
    faults = judge(rows, first, last)
    for fault in faults:
        print(f"bench: FAILED {fault}", file=sys.stderr)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
