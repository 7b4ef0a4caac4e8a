"""What is measured between the containers: throughput, the machine's CPU time, small packets, round trips, and these again
beside a stream that sends all it can."""

import json
import os
import re
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

from hosts import Failed, wait_until

COLUMNS = {  # the key in the JSON row: how the table heads it
    "tcp1_gbps": "tcp1 Gbit/s",
    "tcp4_gbps": "tcp4 Gbit/s",
    "cpu_s_per_gb": "CPU s/GB",
    "udp64_kpps": "udp64 kpps",
    "rtt_mean_ms": "rtt mean ms",
    "rtt_p50_ms": "rtt p50",
    "rtt_p99_ms": "rtt p99",
    "rtt_loaded_p99_ms": "loaded p99",
}


def measure(hosts, target, seconds, pings):
    """All columns between container A and `target` in container B; what could not be measured is 0.

    `seconds` is the length of each of the three throughput runs, and how many times a second of a stream is measured with
    round trips beside it; `pings` the number of round trips without it, 2 ms apart.
    Returns the columns and a list of what went wrong.
    """
    row, faults = dict.fromkeys(COLUMNS, 0), []
    wait_until(lambda: _answers(hosts, target), 15, f"an answer from {target}")
    hosts.start("cB", "iperf3", "-s")
    wait_until(lambda: ":5201 " in hosts.inside("cB", "ss", "-Hltn"), 5, "iperf3's server")
    steps = {
        "tcp, 1 stream": lambda: _tcp_with_cpu(hosts, target, seconds),
        "tcp, 4 streams": lambda: {"tcp4_gbps": _tcp(hosts, target, seconds, streams=4)[0]},
        "udp, 64 bytes": lambda: {"udp64_kpps": _udp(hosts, target, seconds)},
        "round trips": lambda: _round_trips(hosts, target, pings),
        "loaded round trips": lambda: _loaded_round_trips(hosts, target, max(2, seconds)),
    }
    for name, step in steps.items():
        try:
            row.update(step())
        except Failed as fault:
            faults.append(f"{name}: {fault}")
    return row, faults


def _answers(hosts, target):
    try:
        hosts.inside("cA", "ping", "-c1", "-W1", target)
        return True
    except Failed:
        return False


def _tcp_with_cpu(hosts, target, seconds):
    before = cpu_seconds()
    gbps, gigabytes = _tcp(hosts, target, seconds, streams=1)
    spent = cpu_seconds() - before
    return {"tcp1_gbps": gbps, "cpu_s_per_gb": round(spent / gigabytes, 3) if gigabytes else 0}


def _tcp(hosts, target, seconds, streams):
    """What arrived: (Gbit/s, GB)."""
    received = _iperf(hosts, target, seconds, "sum_received", "-P", streams)
    return round(received["bits_per_second"] / 1e9, 3), received["bytes"] / 1e9


def _udp(hosts, target, seconds):
    """64-byte datagrams that arrived, thousands a second, sent as fast as one sender can."""
    total = _iperf(hosts, target, seconds, "sum", "-u", "-b", 0, "-l", 64)
    return round(total["packets"] * (1 - total["lost_percent"] / 100) / total["seconds"] / 1e3, 1)


def _iperf(hosts, target, seconds, figures, *options):
    """The figures of that name which iperf3 prints at its end.

    Between two tests the server opens its socket anew; who comes in that instant is reset, and asks again.
    """
    for _ in range(5):
        said = hosts.inside("cA", "iperf3", "-J", "-c", target, "-t", seconds, *options, timeout=seconds + 20)
        if "unable to connect to server: Connection reset" not in said:
            break
        time.sleep(0.2)
    try:
        return json.loads(said)["end"][figures]
    except (ValueError, KeyError):
        raise Failed(f"iperf3 ended without figures: {said[-200:]}") from None


def _round_trips(hosts, target, pings):
    times = _pings(hosts, target, "-i", 0.002, "-c", pings, "-w", 5 + pings // 100)
    return {"rtt_mean_ms": round(sum(times) / len(times), 3), "rtt_p50_ms": _quantile(times, 0.5), "rtt_p99_ms": _quantile(times, 0.99)}


def _loaded_round_trips(hosts, target, streams):
    """One stream after the other, a second each: whether a ping shares a queue with a stream is a matter of its ports."""
    times = []
    with ThreadPoolExecutor(1) as beside:
        for _ in range(streams):
            answers = beside.submit(_pings, hosts, target, "-i", 0.005, "-w", 1)
            _iperf(hosts, target, 1, "sum_received")
            times += answers.result()
    return {"rtt_loaded_p99_ms": _quantile(sorted(times), 0.99)}


def _pings(hosts, target, *options):
    """Round trips in milliseconds, ascending."""
    try:
        said = hosts.inside("cA", "ping", *options, target)
    except Failed as fault:  # ping fails when any answer is missing; those that came still count
        said = str(fault)
    times = sorted(float(time) for time in re.findall(r"time=([\d.]+) ms", said))
    if not times:
        raise Failed("no answer to any ping")
    return times


def _quantile(ascending, share):
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))]


def spread(ours, theirs):
    """The median of the ratios within runs, and their range."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def cpu_seconds():
    """CPU time of the whole machine so far: user, nice, system, interrupts, soft interrupts."""
    with open("/proc/stat") as stat:
        ticks = [int(word) for word in stat.readline().split()[1:8]]
    user, nice, system, _idle, _iowait, interrupts, soft = ticks
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")
