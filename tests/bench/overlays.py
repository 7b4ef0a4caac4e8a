"""How each overlay is brought up between the two hosts; each function returns the address to send to.

The peers run as their authors advise for speed: wireguard-go with offloads, nebula with AES, two tun queues and
batches of 64. WireGuard's implementations get an MTU of 80 less than the wire's, nebula its default of 1300, ours the
containers' MTU that it chooses itself.
"""

import json
import os
import subprocess
from pathlib import Path

from hosts import OTHER, UNDERLAY, Failed, container_address, container_range, netns, run, wait_until

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".cache/peers/bin"
OURS = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
TARGET = container_address("B", 2)


def plain(hosts):
    """No overlay: the hosts route to each other's containers. The ceiling."""
    hosts.plug_containers(hosts.mtu)
    for side in "AB":
        hosts.route(side, via=UNDERLAY[OTHER[side]])
    return TARGET


def ours(hosts, *more):
    """weaved on both hosts, with these arguments more, joined by a token, one container attached to each."""
    ctl = lambda side, *words: run(OURS / "weavectl", "--socket", sockets[side], *words)  # noqa: E731
    sockets = {side: hosts.folder / f"{side}.sock" for side in "AB"}
    for side in "AB":
        hosts.start(f"h{side}", OURS / "weaved", "--name", f"h{side}", "--state-dir", hosts.folder / f"state-{side}", "--socket", sockets[side], *more)
    for side in "AB":
        wait_until(sockets[side].is_socket, 10, f"weaved's socket in host {side}")
    ctl("A", "init", "--range", "10.32.0.0/12")
    ctl("B", "join", ctl("A", "token", "create").strip())
    attached = {side: json.loads(ctl(side, "attach", netns(f"c{side}"), "--name", f"c{side}", "-o", "json")) for side in "AB"}
    return attached["B"]["ips"][0]["address"].split("/")[0]


def wireguard_go(hosts):
    """The reference implementation in Go, 2025 or later: with offloads."""
    return _wireguard(hosts, PEERS / "wireguard-go", "-f")


def boringtun(hosts):
    """Cloudflare's implementation in Rust."""
    return _wireguard(hosts, PEERS / "boringtun-cli", "-f", "--disable-drop-privileges")


def gotatun(hosts):
    """Mullvad's successor to boringtun."""
    return _wireguard(hosts, PEERS / "gotatun", "-f", "--disable-drop-privileges")


def nebula(hosts):
    """Slack's overlay: its own certificates, the Noise handshake, AES-256-GCM."""
    hosts.plug_containers(1300)
    certificates = lambda *words: run(PEERS / "nebula-cert", *words)  # noqa: E731
    ca = hosts.folder / "ca"
    certificates("ca", "-name", "bench", "-out-crt", f"{ca}.crt", "-out-key", f"{ca}.key")
    number = {"A": 1, "B": 2}
    for side in "AB":
        own = hosts.folder / f"nebula-{side}"
        certificates("sign", "-ca-crt", f"{ca}.crt", "-ca-key", f"{ca}.key", "-name", f"h{side}", "-ip", f"10.98.0.{number[side]}/24",
                     "-subnets", container_range(side), "-out-crt", f"{own}.crt", "-out-key", f"{own}.key")  # fmt: skip
        other = OTHER[side]
        remote = f"10.98.0.{number[other]}"
        anything = [{"port": "any", "proto": "any", "host": "any", "local_cidr": "0.0.0.0/0"}]
        config = {  # JSON is YAML
            "pki": {"ca": f"{ca}.crt", "cert": f"{own}.crt", "key": f"{own}.key"},
            "static_host_map": {remote: [f"{UNDERLAY[other]}:4242"]},
            "lighthouse": {"am_lighthouse": False, "hosts": []},
            "listen": {"host": "0.0.0.0", "port": 4242, "batch": 64},
            "cipher": "aes",
            "tun": {"dev": f"wvb-{side}", "mtu": 1300, "routines": 2, "unsafe_routes": [{"route": container_range(other), "via": remote}]},
            "firewall": {"outbound": anything, "inbound": anything},
        }
        own.with_suffix(".yml").write_text(json.dumps(config))
        hosts.start(f"h{side}", PEERS / "nebula", "-config", own.with_suffix(".yml"))
    return TARGET


def _wireguard(hosts, *command):
    mtu = hosts.mtu - 80
    hosts.plug_containers(mtu)
    secret = {side: run("wg", "genkey").strip() for side in "AB"}
    public = {side: run("wg", "pubkey", stdin=secret[side]).strip() for side in "AB"}
    for side in "AB":
        hosts.start(f"h{side}", *command, f"wvb-{side}")
    for side in "AB":
        device, key = f"wvb-{side}", hosts.folder / f"{side}.key"
        wait_until((Path("/run/wireguard") / f"{device}.sock").is_socket, 10, f"{command[0].name}'s socket in host {side}")
        key.touch(mode=0o600)
        key.write_text(secret[side])
        hosts.inside(f"h{side}", "wg", "set", device, "listen-port", 51820, "private-key", key,
                     "peer", public[OTHER[side]], "endpoint", f"{UNDERLAY[OTHER[side]]}:51820", "allowed-ips", "10.32.0.0/16")  # fmt: skip
        hosts.inside(f"h{side}", "ip", "link", "set", device, "mtu", mtu, "up")
        hosts.route(side, dev=device)
    return TARGET


OVERLAYS = {
    "plain": plain,
    "ours": ours,
    "wireguard-go": wireguard_go,
    "boringtun": boringtun,
    "gotatun": gotatun,
    "nebula": nebula,
}


def versions(names):
    """Builds the peers among `names` at need; one line for each: name and version. Raises Failed."""
    kernel = f"plain Linux {os.uname().release}"
    lines = [kernel] if "plain" in names else []
    if "ours" in names:
        if not (OURS / "weaved").exists():
            raise Failed(f"no {OURS / 'weaved'}: build it first, `./run bench overlay` does")
        lines.append(f"ours {run(OURS / 'weaved', '--version').strip()}")
    peers = [name for name in names if name not in ("plain", "ours")]
    if peers:
        built = subprocess.run([ROOT / "tests/bench/peers.sh", *peers], stdout=subprocess.PIPE, text=True)
        if built.returncode != 0:
            raise Failed("a peer could not be built, see above")
        lines += built.stdout.splitlines()
    return lines
