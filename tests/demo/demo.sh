#!/usr/bin/env bash
# Weave on three hosts with two containers each, all of them network namespaces of this machine.
#
# Usage: demo.sh [--once]     stays up until Ctrl-C, or with --once ends after the checks. Needs root.
# WEAVED and WEAVECTL name the programs; by default those of this checkout, built for release.
#
# Every weavectl command is shown as it runs. Nothing outside namespaces called weave-demo-* is touched, and nothing is
# left behind; what a killed demo left is removed when the next one starts.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
WEAVED=${WEAVED:-$top/target/release/weaved}
WEAVECTL=${WEAVECTL:-$top/target/release/weavectl}
once=no
case "${1:-}" in
  "") ;;
  --once) once=yes ;;
  *) echo "usage: demo.sh [--once]" >&2; exit 2 ;;
esac

exec 3>&1
prefix=weave-demo-
hosts=(host1 host2 host3)
containers=(red orange yellow green blue violet) # two for each host, in order
marker="weave-demo-clear" # 16 bytes that the demo's pings carry
failed=0
dir=
nodes=()
declare -A v4 v6

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; failed=1; }
# Gives up, with a cause and a fix.
stop() { printf 'demo: %s\nfix: %s\n' "$1" "$2" >&2; exit 1; }
# Runs a program in the network of a host or a container.
in_net() { local net=$1; shift; nsenter --net="/run/netns/$prefix$net" -- "$@"; }
# Starts a program there that lives no longer than this script; Ctrl-C reaches the script alone.
spawn() { local net=$1; shift; nsenter --net="/run/netns/$prefix$net" -- setsid setpriv --pdeathsig KILL -- "$@" 3>&- & }
# Shows a weavectl command on the screen, and runs it on a host.
ctl() { local host=$1; shift; printf '%s$ weavectl %s\n' "$host" "$*" >&3; WEAVE_SOCKET="$dir/$host.sock" "$WEAVECTL" "$@"; }
# The host that the container of this number is on.
host_of() { echo "${hosts[$(($1 / 2))]}"; }

clean() {
  local net
  for net in /run/netns/"$prefix"*; do
    [ -e "$net" ] || continue
    ip netns pids "${net##*/}" | xargs -r kill -9 2>/dev/null || true
    ip netns del "${net##*/}"
  done
  rm -rf /tmp/weave-demo.*
}

check_machine() {
  say "Checking this machine"
  [ "$(id -u)" = 0 ] || stop "the demo makes network namespaces and must be root" "run it with sudo"
  local tool
  for tool in ip nsenter setpriv flock ping iperf3 tcpdump socat "$WEAVED" "$WEAVECTL"; do
    command -v "$tool" >/dev/null || stop "there is no $tool" "run ./run demo, which builds and installs what is missing"
  done
  # The lock is on this script, and held by a process that ends with it, however that is.
  exec 9< <(exec setpriv --pdeathsig KILL -- flock -n -F "${BASH_SOURCE[0]}" sh -c 'echo ours; exec sleep infinity')
  read -r -u 9 _ || stop "another demo runs on this machine" "end it with Ctrl-C first"
  trap finish EXIT
  trap 'echo; echo "removing everything"; exit "$failed"' INT TERM
  clean
  [ -c /dev/net/tun ] || modprobe tun 2>/dev/null || true
  [ -c /dev/net/tun ] || stop "there is no /dev/net/tun" "load the module with modprobe tun; in a container, add --device /dev/net/tun"
  echo "/dev/net/tun is there"
  ip netns add "${prefix}probe" 2>/dev/null || stop "network namespaces cannot be made here" "run as root of the machine; in a container, add --privileged"
  in_net probe sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 2>/dev/null ||
    stop "forwarding cannot be switched on: /proc/sys is read-only" "in a container, add --privileged"
  ip netns del "${prefix}probe"
  echo "forwarding can be switched on"
  range=
  local candidate
  for candidate in 10.32.0.0/12 10.112.0.0/12 10.160.0.0/12 172.16.0.0/12; do
    [ -n "$(ip -4 route show root "$candidate")" ] || { range=$candidate; break; }
    echo "$candidate is in use on this machine: $(ip -4 route show root "$candidate" | head -n 1)"
  done
  [ -n "$range" ] || stop "every range the demo knows is routed on this machine" "remove a route, or try on another machine"
  echo "$range is free"
}

# host1 to host3 with the addresses 192.168.77.1 to .3, joined by a switch.
make_hosts() {
  say "Three hosts on a switch, and a node on each"
  dir=$(mktemp -d /tmp/weave-demo.XXXXXX)
  ip netns add "${prefix}switch"
  in_net switch sh -c 'ip link add br0 type bridge && ip link set br0 up'
  local n host
  for n in 1 2 3; do
    host=host$n
    ip netns add "$prefix$host"
    ip link add u0 netns "$prefix$host" type veth peer name "p$n" netns "${prefix}switch"
    in_net switch ip link set "p$n" master br0 up
    in_net "$host" sh -c "ip link set lo up; ip addr add 192.168.77.$n/24 dev u0; ip link set u0 up"
    echo "$host# weaved --name $host"
    spawn "$host" "$WEAVED" --name "$host" --state-dir "$dir/$host.state" --socket "$dir/$host.sock" 2>"$dir/$host.log"
    nodes+=($!)
  done
  for host in "${hosts[@]}"; do
    wait_for "$host answers" test -S "$dir/$host.sock"
  done
}

# Waits up to ten seconds until a command succeeds.
wait_for() {
  local what=$1 tries
  shift
  for tries in $(seq 100); do
    "$@" >/dev/null 2>&1 && return
    sleep 0.1
  done
  stop "$what: not after $((tries / 10)) seconds" "read what the nodes say below"
}

make_cluster() {
  say "One cluster: the first node makes it, the others join by token"
  local host
  ctl host1 init --range "$range"
  for host in host2 host3; do
    ctl host1 token create | tee "$dir/token"
    ctl "$host" join "$(cat "$dir/token")"
  done
  for host in "${hosts[@]}"; do
    wait_for "$host sees all" env WEAVE_SOCKET="$dir/$host.sock" "$WEAVECTL" status
  done
  ctl host1 peers
}

# Attaches the containers, and notes their addresses in v4[] and v6[].
attach_containers() {
  say "Two containers on each host"
  local n name result
  for n in "${!containers[@]}"; do
    name=${containers[$n]}
    ip netns add "$prefix$name"
    in_net "$name" ip link set lo up
    ctl "$(host_of "$n")" attach "$prefix$name" --name "$name" --label app=web -o json >"$dir/$name.json"
    result=$(grep -o '"address": *"[^"/]*' "$dir/$name.json" | cut -d '"' -f 4)
    { read -r "v4[$name]"; read -r "v6[$name]"; } <<<"$result"
    echo "  ${v4[$name]}  ${v6[$name]}"
  done
  ctl host1 ps
}

# The time one ping took, in ms, or nothing.
rtt() { in_net "$1" ping -n -q -c 1 -W 2 "$2" 2>/dev/null | awk -F '[ =/]+' '/^rtt/ { print $7 }'; }

ping_all() {
  say "Everybody pings everybody: milliseconds in IPv4 / in IPv6"
  local from to a b
  printf '%-8s' ""
  printf '%-16s' "${containers[@]}"
  echo
  for from in "${containers[@]}"; do
    printf '%-8s' "$from"
    for to in "${containers[@]}"; do
      if [ "$from" = "$to" ]; then printf '%-16s' "."; continue; fi
      a=$(rtt "$from" "${v4[$to]}") b=$(rtt "$from" "${v6[$to]}")
      printf '%-16s' "${a:---} / ${b:---}"
      [ -n "$a" ] && [ -n "$b" ] || failed=1
    done
    echo
  done
}

multicast() {
  say "red says something to the group 239.1.2.3; the others listen"
  local name
  for name in "${containers[@]:1}"; do
    spawn "$name" timeout 5 socat -u "UDP4-RECVFROM:5007,ip-add-membership=239.1.2.3:${v4[$name]}" "CREATE:$dir/$name.heard"
  done
  sleep 0.5
  echo "hello, all" | in_net red socat -u - "UDP4-DATAGRAM:239.1.2.3:5007"
  sleep 0.5
  for name in "${containers[@]:1}"; do
    if grep -q "hello, all" "$dir/$name.heard" 2>/dev/null; then echo "$name heard it"; else fail "$name did not hear it"; fi
  done
}

# Every container says its name to whoever connects; the service of all of them answers with one after the other.
service() {
  say "A service in front of all six, and 60 requests of red to its address"
  local name vip answers
  for name in "${containers[@]}"; do
    spawn "$name" socat TCP-LISTEN:8080,fork,reuseaddr "SYSTEM:echo $name"
  done
  ctl host2 service create web --port 80:8080 --selector app=web | tee "$dir/service"
  vip=$(awk '{ print $2 }' "$dir/service")
  wait_for "web answers red" in_net red socat -u "TCP:$vip:80,connect-timeout=2" -
  ctl host3 service list
  answers=$(for _ in $(seq 60); do in_net red socat -u "TCP:$vip:80,connect-timeout=5" - || true; done)
  sort <<<"$answers" | uniq -c
  [ "$(sort -u <<<"$answers" | wc -l)" = ${#containers[@]} ] || fail "not every container answered"
  [ "$(wc -l <<<"$answers")" = 60 ] || fail "not every request was answered"
}

# Two containers without Weave, routed in clear between host1 and host2: what the machine can do without encryption.
make_plain() {
  local n other
  for n in 1 2; do
    other=$((3 - n))
    ip netns add "${prefix}plain$n"
    ip link add eth0 netns "${prefix}plain$n" type veth peer name plain netns "${prefix}host$n"
    in_net "plain$n" sh -c "ip link set lo up; ip addr add 192.168.10$n.2/24 dev eth0; ip link set eth0 up; ip route add default via 192.168.10$n.1"
    in_net "host$n" sh -c "ip addr add 192.168.10$n.1/24 dev plain; ip link set plain up; ip route add 192.168.10$other.0/24 via 192.168.77.$other"
  done
}

# TCP from one network to an address in another, in Gbit/s.
gbits() {
  spawn "$2" iperf3 -s -1 >/dev/null
  sleep 0.3
  in_net "$1" iperf3 -c "$3" -t 3 -f g | awk '/receiver/ { print $7 }'
}

throughput() {
  say "TCP between host1 and host2, one stream for 3 seconds"
  make_plain
  local plain ours
  plain=$(gbits plain1 plain2 192.168.102.2 || true)
  ours=$(gbits red yellow "${v4[yellow]}" || true)
  echo "plain routing, in clear:  ${plain:-0} Gbit/s"
  echo "red to yellow, encrypted: ${ours:-0} Gbit/s"
  if [ -z "$plain" ] || [ -z "$ours" ]; then fail "a transfer did not end"; fi
}

# How many packets of a capture there are, and how many contain the marker.
packets() { tcpdump -n -r "$1" 2>/dev/null | wc -l; }
readable() { tcpdump -n -A -r "$1" 2>/dev/null | grep -c "$marker" || true; }

wire() {
  say "red pings blue with the text \"$marker\" inside; who can read it?"
  local pids=() seen_wire seen_inside
  spawn host1 tcpdump --immediate-mode -i u0 -U -Z root -w "$dir/wire.pcap" udp port 6783 2>/dev/null; pids+=($!)
  spawn red tcpdump --immediate-mode -i eth0 -U -Z root -w "$dir/inside.pcap" icmp 2>/dev/null; pids+=($!)
  sleep 1
  in_net red ping -n -q -c 20 -i 0.02 -W 2 -p "$(printf %s "$marker" | od -An -tx1 | tr -d ' \n')" "${v4[blue]}" >/dev/null || fail "blue does not answer"
  sleep 0.5
  kill "${pids[@]}"
  wait "${pids[@]}" 2>/dev/null || true
  echo "on the wire of host1, the first sealed packet of that moment:"
  tcpdump -n -x -c 1 -r "$dir/wire.pcap" 2>/dev/null | head -n 7
  seen_wire=$(readable "$dir/wire.pcap") seen_inside=$(readable "$dir/inside.pcap")
  echo "on the wire:  $seen_wire of $(packets "$dir/wire.pcap") packets readable"
  echo "inside red:   $seen_inside of $(packets "$dir/inside.pcap") packets readable (the control)"
  [ "$seen_wire" = 0 ] || fail "the wire carried clear text"
  [ "$(packets "$dir/wire.pcap")" -ge 40 ] || fail "the capture of the wire should see 20 pings and 20 answers"
  [ "$seen_inside" = 40 ] || fail "the capture inside red should read 20 pings and 20 answers"
}

# A small web shop that lives on, for the page to show: customers ask the Service, front asks the API, the API its store
# and a cache that is down.
life() {
  say "A small web shop: red and blue buy at the service shop; front asks api, api asks store; the cache that api looks for is down"
  local name n=0 vip
  for name in front api store; do
    ip netns add "$prefix$name"
    in_net "$name" ip link set lo up
    ctl "${hosts[$n]}" attach "$prefix$name" --name "$name" --label "app=$name" -o json >"$dir/$name.json"
    read -r "v4[$name]" < <(grep -o '"address": *"[^"/]*' "$dir/$name.json" | cut -d '"' -f 4)
    n=$((n + 1))
  done
  ctl host1 service create shop --port 80:8080 --selector app=front | tee "$dir/shop"
  vip=$(awk '{ print $2 }' "$dir/shop")
  local ask='echo get | timeout 2 socat -t 1 -'
  spawn store socat TCP-LISTEN:5432,fork,reuseaddr SYSTEM:'read line; head -c 30000 /dev/zero' 2>/dev/null
  spawn api socat TCP-LISTEN:8080,fork,reuseaddr SYSTEM:"read line; $ask TCP\\:${v4[store]}\\:5432 >/dev/null; head -c 12000 /dev/zero" 2>/dev/null
  spawn front socat TCP-LISTEN:8080,fork,reuseaddr SYSTEM:"read line; $ask TCP\\:${v4[api]}\\:8080 >/dev/null; head -c 40000 /dev/zero" 2>/dev/null
  spawn red sh -c "while sleep 0.5; do $ask TCP:$vip:80 >/dev/null; done" 2>/dev/null
  spawn blue sh -c "while sleep 1.5; do $ask TCP:$vip:80 >/dev/null; done" 2>/dev/null
  spawn api sh -c "while sleep 2; do $ask TCP:${v4[store]}:6379; done" 2>/dev/null
  spawn violet socat -u UDP-RECV:5000 OPEN:/dev/null 2>/dev/null
  spawn green sh -c "while sleep 0.2; do head -c 1200 /dev/zero | socat -u - UDP:${v4[violet]}:5000; done" 2>/dev/null
}

# The page of host1, on a port of this machine.
open_page() {
  WEAVE_SOCKET="$dir/host1.sock" setsid setpriv --pdeathsig KILL -- "$WEAVECTL" dashboard >"$dir/page.link" 2>/dev/null 3>&- &
  wait_for "the page" grep -q code= "$dir/page.link"
  say "The page, for a browser on this machine (the link is good once; a new one: weavectl dashboard):"
  head -n 1 "$dir/page.link"
}

where_to_look() {
  say "It is all still there. Try, in another terminal:"
  local host
  for host in "${hosts[@]}"; do echo "export WEAVE_SOCKET=$dir/$host.sock   # speak to $host"; done
  cat <<END
$WEAVECTL status
$WEAVECTL connections
$WEAVECTL ps -o json
$WEAVECTL flows -f
$WEAVECTL processes --listening
$WEAVECTL service describe web
ip netns exec ${prefix}red ping ${v4[violet]}
ip netns exec ${prefix}host1 tcpdump -n -i u0 -x udp port 6783
tail -f $dir/host1.log
END
}

# What a node that ended has to say is worth more than that something failed.
# shellcheck disable=SC2317 # the trap calls it
finish() {
  local code=$?
  if [ "$code" != 0 ] && [ -n "$dir" ]; then tail -n 5 "$dir"/*.log >&2 || true; fi
  exec 2>/dev/null # where bash would tell how each program ended
  [ ${#nodes[@]} = 0 ] || kill "${nodes[@]}" || true
  clean
  exit "$code"
}

check_machine
make_hosts
make_cluster
attach_containers
ping_all
service
multicast
throughput
wire
ctl host1 status
if [ "$failed" = 0 ]; then say "All checks passed."; else say "Some checks failed; see above."; fi
life
sleep 3
ctl host2 flows | awk "NR <= 9" # the busiest; the pings of before follow
[ "$once" = no ] || exit "$failed"
where_to_look
open_page
say "Ctrl-C removes everything."
wait -n "${nodes[@]}" || true
stop "a node ended by itself" "read what the nodes say below"
