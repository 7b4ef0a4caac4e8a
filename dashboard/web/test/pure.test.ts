// The parts of the page that only compute: the filter language, changes of the picture, where things stand, what is drawn.

import assert from "node:assert/strict";
import { test } from "node:test";

import { bytes, listening, share } from "../src/format";
import { isStale, nearest } from "../src/kept";
import { layout, NAME } from "../src/layout";
import { latest } from "../src/latest";
import { stepped } from "../src/picture";
import { distinct, edgeOf, groupOf, OPEN_ALL, sceneOf, untold } from "../src/scene";
import { ofContainer, ofFlow, ofHost, parse, placed, places, podOf, subjects } from "../src/search";
import { spoken } from "../src/spoken";
import { UNSEEN_MS, whileSeen } from "../src/seen";
import { escaped } from "../src/svg";
import { beside, round, toward } from "../src/walk";
import type { Container, End, Flow, Host, Link, Service, Topology } from "../src/types";

const host = (at: number): Host => ({
  id: `h${at}`, name: `host${at}`, state: "connected", version: "1", endpoints: [], blocks: [], exposed: null,
  silent: null, more_containers: 0, more_links: 0, capture: null, problems: [],
});

const container = (at: number, of: number): Container => ({
  id: `c:${at}`, title: `c${at}`, host: `h${of}`, name: `c${at}`, ifname: "eth0", network: "default", ip: `10.32.0.${at}`, ip6: null,
  labels: { app: `app${at}` }, attached_at: 1, alive: true,
});

const end = (one: Container): End => ({ kind: "container", id: one.id, name: one.title, ip: one.ip });

const flow = (from: End, to: End, more: Partial<Flow> = {}): Flow => ({
  id: `f:${from.id}>${to.id}`, from, to, protocol: "tcp", port: 80, via: null, connections: 1, open: 1, refused: 0, unanswered: 0,
  sent_bytes: 100, sent_packets: 1, received_bytes: 0, received_packets: 0, sent_rate: 0, received_rate: 0, failing: false, last_at: 1,
  ...more,
});

const service = (name: string, backends: Service["backends"] = []): Service => ({
  id: `s:${name}`, name, addresses: ["10.96.0.1"], ports: [], node: "host0", made_at: 1, backends, refused: [],
});

function mesh(hosts: number, each: number): Topology {
  const all = Array.from({ length: hosts }, (_, at) => host(at));
  const containers = all.flatMap((_, of) => Array.from({ length: each }, (_, at) => container(of * each + at, of)));
  return { at: 1, node: "h0", verdict: "ok", summary: "", problems: [], hosts: all, containers, links: [], services: [], flows: [] };
}

const everything = { container: () => true, host: () => true, flow: () => true };
const draw = (topology: Topology, more = {}) =>
  sceneOf(topology, { chosen: new Map(), passes: everything, filtered: false, selected: null, ...more });

test("all words of a search must hold, and ! turns one round", () => {
  const [web, db] = [container(1, 0), container(2, 1)];
  const subject = ofFlow(
    flow(end(web), end(db), { port: 6379, sent_rate: 15_000, failing: true }),
    new Map([web, db].map((one) => [one.id, one])),
    new Map([host(0), host(1)].map((one) => [one.id, one])),
  );
  const table: [string, boolean][] = [
    ["", true], ["c1", true], ["C2", true], ["nobody", false], ["!nobody", true], ["c1 nobody", false],
    ["from:c1", true], ["to:c1", false], ["host:host1", true], ["label:app=app2", true], ["net:default", true],
    ["net:=default", true], ["net:=def", false], ["net:def", true], ["!net:=default", false],
    ["is:failing", true], ["!is:failing", false], ["port=6379", true], ["port>6379", false], ["port>=6379", true],
    ["rate>10kB", true], ["rate>1MB", false], ["rate<20k", true], ["bytes=100", true], ["unknown>5", false],
    ["is:failing port=6379 !c3", true], ["fd00::1", false], ["!", false],
  ];
  for (const [line, expected] of table) assert.equal(parse(line)(subject), expected, line);
});

test("an edge has the colour of what moves most on it", () => {
  const topology = mesh(2, 1);
  const [from, to] = topology.containers.map(end);
  const more = (id: string, protocol: Flow["protocol"], sent_rate: number) => flow(from, to, { id, protocol, sent_rate });
  topology.flows = [more("f:1", "icmp", 0), more("f:2", "udp", 500), more("f:3", "tcp", 20)];
  const drawn = draw(topology).edges.find((one) => one.kind === "flow");
  assert.ok(drawn?.classes.includes("udp"), drawn?.classes.join(" "));
});

test("an edge on which a flow fails says so, and what the others carry, and is as thick as its rate", () => {
  const topology = mesh(4, 1);
  const [a, b, c, d] = topology.containers.map(end);
  const refused = { id: "f:r", refused: 1, failing: true, sent_rate: 29, received_rate: 19 };
  topology.flows = [
    flow(a, b, { sent_rate: 29_000 }),
    flow(a, b, { ...refused, port: 81 }),
    flow(a, c, { sent_rate: 29_000 }),
    flow(a, d, { ...refused, refused: 0, unanswered: 1 }),
  ];
  const drawn = new Map(draw(topology).edges.map((edge) => [edge.target, edge]));
  const [mixed, well, dead] = [b, c, d].map((to) => drawn.get(to.id)!);
  assert.deepEqual([mixed, well, dead].map((edge) => edge.label), ["refused · 29.0 kB/s", "29.0 kB/s", "no answer"]);
  assert.deepEqual([mixed, well, dead].map((edge) => edge.classes.includes("failing")), [true, false, true]);
  assert.equal(mixed.weight, well.weight, "they carry the same");
  assert.ok(dead.weight < well.weight, "and this one nothing");
});

test("where there are several networks or namespaces, one can be chosen", () => {
  const topology = mesh(1, 3);
  assert.deepEqual(places(topology), [], "one network, and no pods");
  topology.containers[1].network = "blue";
  topology.containers[2].labels["io.kubernetes.pod.namespace"] = "shop";
  assert.deepEqual(places(topology), ["net:=blue", "net:=default", "namespace:=shop"]);
  assert.equal(placed("is:failing", "net:=blue"), "net:=blue is:failing");
  assert.equal(placed("net:=blue is:failing", "namespace:=shop"), "namespace:=shop is:failing");
  assert.equal(placed("namespace:=shop is:failing", ""), "is:failing");
});

test("nothing in a name becomes markup in the drawing", () => {
  assert.equal(escaped('<i a="b">&'), "&#60;i a=&#34;b&#34;&#62;&#38;");
});

test("what runs in a container can be searched for", () => {
  const inside = {
    processes: [{ pid: 7, name: "nginx", cpu_permille: 120, memory_bytes: 3e6, ports: [{ protocol: "tcp", ip: "0.0.0.0", port: 80 }] }],
    more_processes: 0, cpu_permille: 120, memory_bytes: 3e6,
  };
  const runtime = { runtime: "docker", id: "0123", name: "shop_web_1", image: "nginx:1.29", pod: "web-0", namespace: "shop", labels: { team: "blue" } };
  const subject = ofContainer({ ...container(1, 0), inside, runtime }, host(0));
  const table: [string, boolean][] = [
    ["process:ngin", true], ["process:redis", false], ["listens:tcp/80", true], ["image:1.29", true], ["shop_web", true],
    ["label:team=blue", true], ["namespace:shop", true], ["pod:web-1", false], ["label:app=app1", true], ["cpu>10", true], ["cpu>12.5", false], ["memory>=3MB", true],
  ];
  for (const [line, expected] of table) assert.equal(parse(line)(subject), expected, line);
  assert.equal(parse("cpu<100")(ofContainer(container(1, 0))), false, "of whom nothing is known");
  assert.equal(parse("process:nginx")(ofHost({ ...host(0), inside })), true);
});

test("a container is drawn by its title, and found by each of its names, in its flows too", () => {
  const topology = mesh(1, 2);
  const runtime = { runtime: "docker", id: "2a66", name: "web", image: "web:1" };
  const named = { ...topology.containers[0], title: "web (blue)", name: "docker-2a66", runtime };
  topology.containers[0] = named;
  topology.flows = [flow(end(named), end(topology.containers[1]))];
  assert.deepEqual(draw(topology).nodes.map((node) => node.label), ["host0", "c1", "web (blue)"]);
  const known = subjects(topology);
  const table: [string, boolean][] = [
    ["web", true], ["name:=web", true], ["name:docker-2a", true], ["from:=web", true], ["from:docker-2a", true], ["to:web", false], ["shop", false],
  ];
  for (const [line, expected] of table) assert.equal(parse(line)(known.flow(topology.flows[0])), expected, line);
  assert.equal(parse("name:=web")(known.container(named)), true);
  assert.equal(parse("name:=web")(known.container(topology.containers[1])), false);
});

test("a container on two networks is drawn on both, and counted once", () => {
  const topology = mesh(1, OPEN_ALL + 1);
  const [one, two] = topology.containers;
  topology.containers[1] = { ...two, same_as: one.id };
  assert.equal(distinct(topology.containers).length, OPEN_ALL);
  assert.deepEqual(distinct([topology.containers[1]]), [topology.containers[1]], "the only one that is asked for");
  assert.deepEqual(draw(topology).nodes.map((node) => node.label), [`host0\n${OPEN_ALL} containers`]);
  const opened = draw(topology, { chosen: new Map([["h0", true]]) });
  assert.equal(opened.nodes.filter((node) => node.kind === "container").length, OPEN_ALL + 1);
});

test("a pod is known by what its attachment was labelled with", () => {
  const labels = { "io.kubernetes.pod.name": "web-0", "io.kubernetes.pod.namespace": "shop" };
  const one = { ...container(1, 0), labels };
  assert.deepEqual(podOf(one), { pod: "web-0", namespace: "shop", workload: undefined });
  assert.deepEqual(podOf({ ...one, runtime: { runtime: "cri-o", id: "1", name: "web-0", image: "web", namespace: "mall" } }).namespace, "mall");
  assert.equal(parse("namespace:shop")(ofContainer(one)), true);
});

test("names of groups can be read when all is in view", () => {
  for (const hosts of [1, 2, 20, 40]) {
    const groups = Array.from({ length: hosts }, (_, at) => ({ id: `h${at}`, members: Array.from({ length: 50 }, (_, one) => `c${at}-${one}`) }));
    const places = layout(groups, { id: "services", members: [] }, undefined);
    const boxes = [...places.groups.values()];
    const [width, height] = [
      Math.max(...boxes.map((box) => box.x + box.width / 2)) - Math.min(...boxes.map((box) => box.x - box.width / 2)),
      Math.max(...boxes.map((box) => box.y + box.height / 2)) - Math.min(...boxes.map((box) => box.y - box.height / 2)),
    ];
    const seen = NAME * places.larger * Math.min(1, 1180 / width, 780 / height);
    assert.ok(seen >= 9, `${hosts} hosts: ${seen}`);
    assert.ok(width / height > 0.8 && width / height < 3.5, `${hosts} hosts: ${width} by ${height}`);
  }
});

test("what is listened on reads well", () => {
  assert.equal(listening({ protocol: "tcp", ip: "::", port: 80 }), "tcp/80");
  assert.equal(listening({ protocol: "udp", ip: "::1", port: 53 }), "udp/[::1]:53");
  assert.deepEqual([share(null), share(5), share(1234)], ["", "0.5 %", "123 %"]);
});

test("a step sets, replaces and removes, and keeps the rest in place", () => {
  const before = mesh(2, 1);
  const changed = { ...before.containers[0], alive: false };
  const none = {};
  const after = stepped(before, {
    seq: 2, at: 9, verdict: "degraded", summary: "s", problems: [],
    hosts: { set: [host(2)], gone: ["h1"] }, containers: { set: [changed] }, links: none, services: none, flows: none,
  });
  assert.deepEqual(after.hosts.map((one) => one.id), ["h0", "h2"]);
  assert.deepEqual(after.containers.map((one) => one.alive), [false, true]);
  assert.deepEqual([after.at, after.verdict, after.links === before.links], [9, "degraded", true]);
});

test("nothing stands on anything else", () => {
  for (const hosts of [1, 2, 3, 5, 8, 9, 30]) {
    for (const members of [0, 1, 7, 60]) {
      const groups = Array.from({ length: hosts }, (_, at) => ({
        id: `h${at}`, members: Array.from({ length: members }, (_, one) => `c${at}-${one}`),
      }));
      const boxes = [...layout(groups, { id: "services", members: ["s"] }, { id: "outside", members: ["o"] }).groups.values()];
      boxes.forEach((one, at) =>
        boxes.slice(at + 1).forEach((two) => {
          const apart =
            Math.abs(one.x - two.x) >= (one.width + two.width) / 2 || Math.abs(one.y - two.y) >= (one.height + two.height) / 2;
          assert.ok(apart, `${hosts} hosts of ${members}: ${JSON.stringify([one, two])}`);
        }),
      );
    }
  }
});

test("a large mesh begins closed, and flows of closed hosts are edges between hosts", () => {
  const small = draw(mesh(2, 3));
  assert.equal(small.nodes.filter((node) => node.kind === "container").length, 6);
  const topology = mesh(3, OPEN_ALL);
  const [a, b] = [topology.containers[0], topology.containers[OPEN_ALL]].map(end);
  topology.flows = [flow(a, b, { sent_rate: 10 }), flow(a, end(topology.containers[1]))];
  const closed = draw(topology);
  assert.deepEqual(closed.nodes.map((node) => node.kind), ["host", "host", "host"]);
  assert.deepEqual(closed.edges.map((edge) => [edge.source, edge.target]), [["h0", "h1"]]);
  const opened = draw(topology, { chosen: new Map([["h0", true]]) });
  assert.deepEqual(opened.edges.map((edge) => [edge.source, edge.target]).sort(), [["c:0", "c:1"], ["c:0", "h1"]]);
});

test("of many edges the failing and the busiest are drawn, and those of what is chosen", () => {
  const topology = mesh(20, 1);
  const ends = topology.containers.map(end);
  topology.flows = ends.flatMap((from, at) =>
    ends.filter((to) => to !== from).map((to, n) => flow(from, to, { sent_rate: at === 19 ? 0 : 100 + n, failing: at === 19 && n === 0 })),
  );
  const scene = draw(topology);
  assert.equal(scene.edges.length + scene.left, 380);
  assert.ok(scene.left > 250 && scene.edges[0].classes.includes("failing"));
  const chosen = draw(topology, { selected: "c:19" });
  assert.equal(chosen.edges.filter((edge) => edge.source === "c:19").length, 19);
});

test("of many edges those that are asked for are drawn first", () => {
  const topology = mesh(20, 1);
  const ends = topology.containers.map(end);
  topology.flows = ends.flatMap((from) => ends.filter((to) => to !== from).map((to) => flow(from, to, { sent_rate: from === ends[0] ? 0 : 100 })));
  const asked = { filtered: true, passes: { ...everything, flow: (one: Flow) => one.from.id === "c:0" } };
  const first = draw(topology, asked).edges.slice(0, 19);
  assert.ok(first.every((edge) => edge.source === "c:0" && !edge.classes.includes("dim")));
});

test("an edge to what is not drawn is none", () => {
  const topology = mesh(2, 1);
  const link = { state: "connected", rtt_us: null, loss_permille: 0, via: null, mtu: null } as unknown as Link;
  topology.links = [{ ...link, id: "l:1", a: "h0", b: "h1" }, { ...link, id: "l:2", a: "h0", b: "h9" }];
  topology.flows = [flow(end(topology.containers[0]), { ...end(container(7, 9)), id: "c:7" })];
  topology.containers.push(container(7, 9));
  assert.deepEqual(draw(topology).edges.map((edge) => edge.id), ["l:1"]);
});

test("what fails within a closed host shows on the host", () => {
  const topology = mesh(2, OPEN_ALL);
  const [one, two] = topology.containers.map(end);
  topology.flows = [flow(one, two, { failing: true })];
  const marked = (more = {}) => draw(topology, more).nodes.filter((node) => node.classes.includes("failing")).map((node) => node.id);
  assert.deepEqual(marked(), ["h0"]);
  assert.deepEqual(marked({ chosen: new Map([["h0", true]]) }), [], "an edge shows it");
  topology.flows[0].failing = false;
  assert.deepEqual(marked(), []);
});

test("what hosts do not tell is summed up", () => {
  const topology = mesh(3, 1);
  const capture = { connections: 9000, lost: 0, untold: 700, accounting: true, interval_ms: 500, took_us: 1, unseen: 0, failure: null };
  assert.deepEqual(untold(topology), { containers: 0, flows: 0 });
  topology.hosts[0].capture = capture;
  topology.hosts[2].capture = { ...capture, untold: 33 };
  topology.hosts[1].more_containers = 12;
  assert.deepEqual(untold(topology), { containers: 12, flows: 733 });
});

test("bytes read well", () => {
  const shown = [0, 999, 1000, 15_340, 999_999, 2_000_000_000].map(bytes);
  assert.deepEqual(shown, ["0 B", "999 B", "1.0 kB", "15.3 kB", "1.0 MB", "2.0 GB"]);
});

test("of what is asked for while one thing is done only the newest is done, and whoever asked waits for it", async () => {
  const done: number[] = [];
  let finish = (): void => {};
  const ask = latest(async (asked: number) => {
    if (asked === 1) await new Promise<void>((resolve) => (finish = resolve));
    done.push(asked);
  });
  const asked = [ask(1), ask(2), ask(3)];
  finish();
  await Promise.all(asked);
  assert.deepEqual(done, [1, 3]);
  await ask(4);
  assert.deepEqual(done, [1, 3, 4]);
});

test("what fails does not stand in the way of what is asked for after it", async () => {
  const done: string[] = [];
  const ask = latest(async (asked: string) => {
    if (asked === "bad") throw new Error(asked);
    done.push(asked);
  });
  await assert.rejects(ask("bad"));
  await Promise.all([ask("bad"), ask("good")]);
  assert.deepEqual(done, ["good"]);
});

const away = (ip: string): End => ({ kind: "outside", id: `o:${ip}`, name: ip, ip });

test("a filter dims addresses outside and Services as it does all else", () => {
  const topology = mesh(1, 2);
  const [one, two] = topology.containers.map(end);
  const [far, farther] = ["192.0.2.1", "192.0.2.2"].map(away);
  topology.services = [service("web"), service("db"), service("idle")];
  topology.flows = [
    flow(one, far), flow(two, farther),
    flow(one, two, { id: "f:s", service: "web" }), flow(one, { ...end(container(9, 0)), kind: "service", id: "s:db" }),
  ];
  const dim = (passes: (one: Flow) => boolean, chosen = new Map<string, boolean>()) => {
    const { nodes } = draw(topology, { chosen, filtered: true, passes: { ...everything, flow: passes } });
    return nodes.filter((node) => node.classes.includes("dim")).map((node) => node.id);
  };
  assert.deepEqual(dim((flow) => flow.from === one), ["s:idle", farther.id]);
  assert.deepEqual(dim((flow) => flow.from === two), ["services", "s:web", "s:db", "s:idle", far.id]);
  assert.deepEqual(dim((flow) => flow.id === "f:s"), ["s:db", "s:idle", "outside", far.id, farther.id]);
  const closed = new Map([["outside", false], ["services", false]]);
  assert.deepEqual(dim(() => false, closed), ["services", "outside"]);
  assert.deepEqual(draw(topology).nodes.filter((node) => node.classes.includes("dim")), [], "without a filter");
});

test("what is in a closed group is known to be in it", () => {
  const topology = mesh(2, 1);
  topology.services = [service("web")];
  topology.flows = [flow(end(topology.containers[0]), away("192.0.2.1")), flow({ ...away("10.32.0.9"), kind: "unknown" }, end(topology.containers[1]))];
  const ids = ["c:1", "s:web", "o:192.0.2.1", "o:10.32.0.9", "h0", "services", "outside", "e:c:0>c:1", "c:9"];
  assert.deepEqual(ids.map((id) => groupOf(topology, id)), ["h1", "services", "outside", "outside", ...Array(5).fill(undefined)]);
  for (const id of ids.slice(0, 4)) {
    const group = groupOf(topology, id)!;
    const seen = (open: boolean) => draw(topology, { chosen: new Map([[group, open]]) }).nodes.some((node) => node.id === id);
    assert.deepEqual([seen(false), seen(true)], [false, true], id);
  }
});

test("the edge of a flow is known, or that there is none", () => {
  const topology = mesh(2, 2);
  const [web, other, db] = topology.containers.map(end);
  topology.services = [service("shop")];
  const [near, through] = [flow(web, other), flow(web, db, { service: "shop" })];
  topology.flows = [near, through, flow(db, { ...away("10.32.9.9"), kind: "host", id: "h9" })];
  const at = (one: Flow, selected: string | null = null, chosen: [string, boolean][] = []) =>
    edgeOf(topology, draw(topology, { chosen: new Map(chosen) }).nodes, one, selected);
  assert.deepEqual([at(near), at(through)], ["e:c:0>c:1", "e:c:0>s:shop"]);
  assert.equal(at(through, "c:2"), "e:s:shop>c:2", "that of what is chosen");
  assert.equal(at(through, "s:shop"), "e:c:0>s:shop");
  assert.equal(at(through, null, [["services", false]]), "e:c:0>c:2");
  assert.equal(at(through, null, [["services", false], ["h0", false], ["h1", false]]), "e:h0>h1");
  assert.equal(at(near, null, [["h0", false]]), undefined, "within what is closed");
  assert.equal(at(topology.flows[2]), undefined, "to what is not drawn");
  const ids = draw(topology).edges.map((one) => one.id);
  assert.ok([near, through].every((one) => ids.includes(at(one)!)), ids.join(" "));
});

test("keys lead over the edges of what is chosen, and by arrows to the ends of an edge", () => {
  const topology = mesh(2, 2);
  const [web, other, db] = topology.containers.map(end);
  topology.flows = [flow(web, other), flow(web, db, { sent_rate: 9 }), flow(other, db, { failing: true })];
  topology.links = [{ id: "l:1", a: "h0", b: "h1", state: "connected", rtt_us: null, loss_permille: 0, via: null, mtu: null } as unknown as Link];
  const scene = draw(topology);
  const own = round(scene, "c:0");
  assert.deepEqual(own, ["e:c:0>c:2", "e:c:0>c:1"], "the busiest first");
  assert.deepEqual(round(scene, "h0"), ["l:1"]);
  for (const none of [null, "e:gone"]) assert.deepEqual(round(scene, none), ["e:c:1>c:2", ...own, "l:1"], "the failing first, links last");
  assert.deepEqual([beside(own, "c:0", 1), beside(own, own[0], 1), beside(own, own[1], 1)], [own[0], own[1], own[0]]);
  assert.deepEqual([beside(own, "c:0", -1), beside(own, own[0], -1), beside([], "c:0", 1)], [own[1], own[1], undefined]);
  const [left, right] = [{ x: -1, y: 0 }, { x: 1, y: 0 }];
  assert.deepEqual([toward(scene, own[0], left), toward(scene, own[0], right)], ["c:0", "c:2"]);
  assert.deepEqual([toward(scene, "l:1", left), toward(scene, "l:1", right)], ["h0", "h1"]);
  assert.deepEqual([toward(scene, "h0", right), toward(scene, "h0", left), toward(scene, null, left)], ["h1", undefined, "h0"]);
});

test("what is chosen is said in a line: its name, its kind and how it is", () => {
  const topology = mesh(2, 2);
  const [web, other, db] = topology.containers.map(end);
  topology.hosts[1].problems = [{ cause: "the clock is wrong", fix: "set it" }];
  topology.containers[1].alive = false;
  topology.containers[3].labels = { "io.kubernetes.pod.name": "web-0" };
  const backend = { address: "10.32.0.2:80", state: "ready" as const };
  topology.services = [service("shop", [backend, { ...backend, state: "failing" }]), service("idle")];
  topology.flows = [
    flow(web, db, { sent_rate: 9 }), flow(web, db, { id: "f:r", port: 81, failing: true, refused: 1 }),
    flow(web, other, { failing: true, unanswered: 2 }), flow(db, away("192.0.2.1")), flow(db, { ...away("10.32.9.9"), kind: "unknown" }),
  ];
  const link = { id: "l:1", a: "h0", b: "h1", state: "connected", rtt_us: null, loss_permille: 0, mtu: null } as unknown as Link;
  topology.links = [link, { ...link, id: "l:2", state: "unreachable", via: "host3" }];
  const table: [string, string][] = [
    ["h0", "host0, host, connected, open, 2 edges"],
    ["h1", "host1, host, connected, the clock is wrong, open, 2 edges"],
    ["c:0", "c0, container on host0, up, 2 edges, 2 failing"],
    ["c:1", "c1, container on host0, gone, 1 edge, 1 failing"],
    ["c:3", "c3, pod on host1, up, 0 edges"],
    ["s:shop", "shop, Service, 1 of 2 endpoints ready, 0 edges"],
    ["s:idle", "idle, Service, 0 of 0 endpoints ready, 0 edges"],
    ["services", "Services, group, open, 0 edges"],
    ["outside", "Outside, group, open, 0 edges"],
    ["o:192.0.2.1", "192.0.2.1, address outside, 1 edge"],
    ["o:10.32.9.9", "10.32.9.9, unknown address of the network, 1 edge"],
    ["l:1", "host0 to host1, encrypted link, connected"],
    ["l:2", "host0 to host1, encrypted link, no session, through host3"],
    ["e:c:0>c:2", "c0 to c2, 2 flows, refused at tcp 81"],
    ["e:c:0>c:1", "c0 to c1, 1 flow, no answer at tcp 80"],
    ["e:c:1>c:2", "not in this picture"],
  ];
  const scene = draw(topology);
  for (const [id, words] of table) assert.equal(spoken(topology, scene, id), words, id);
  const closed = draw(topology, { chosen: new Map([["h0", false]]) });
  assert.equal(spoken(topology, closed, "h0"), "host0, host, connected, closed, flows within fail, 3 edges, 1 failing");
});

test("which pictures are kept is asked when it may be others, and the slider stands at the nearest", () => {
  const table: [number[], number, boolean][] = [
    [[], 7, true], [[10, 15], 15, false], [[10, 15], 19, false], [[10, 15], 20, true], [[10, 15], 40, true], [[10, 15], 14, true],
  ];
  for (const [times, at, stale] of table) assert.equal(isStale(times, at), stale, `${times} at ${at}`);
  const places = [0, 12, 13, 20, 99].map((at) => nearest([10, 15, 40], at));
  assert.deepEqual([...places, nearest([], 7)], [0, 0, 1, 1, 2, -1]);
});

test("what is chosen is marked with what is near it, and all else as far", () => {
  const topology = mesh(3, 2);
  const [one, , two] = topology.containers;
  topology.flows = [flow(end(one), end(two))];
  const marks = (selected: string) => {
    const { nodes, edges } = draw(topology, { selected });
    return (id: string) => [...nodes, ...edges].find((item) => item.id === id)?.classes.filter((name) => ["chosen", "near", "far"].includes(name)).join(" ");
  };
  const far = (of: (id: string) => string | undefined, ids: string[]) => ids.map(of);
  const chosen = marks(one.id);
  assert.deepEqual(far(chosen, [one.id, two.id, `e:${one.id}>${two.id}`]), ["chosen near", "near", "near"]);
  assert.deepEqual(far(chosen, ["h0", "h1", "h2", "c:1", "c:4"]), ["", "", "far", "far", "far"]);
  const host = marks("h0");
  assert.deepEqual(far(host, ["h0", "c:0", "c:1", "c:2", "c:3", "h2"]), ["chosen near", "near", "near", "near", "far", "far"]);
  const edge = marks(`e:${one.id}>${two.id}`);
  assert.deepEqual(far(edge, [`e:${one.id}>${two.id}`, one.id, two.id, "c:1"]), ["chosen near", "near", "near", "far"]);
  assert.deepEqual(far(marks("gone"), ["h0", "c:0"]), ["", ""]);
});

test("what is asked of a picture is asked of what it is made of, letter by letter", () => {
  const topology = mesh(2, 2);
  const [one, , two] = topology.containers;
  topology.flows = [flow(end(one), end(two))];
  const known = subjects(topology);
  for (const [line, wanted] of [["c0", true], ["host1", true], ["host1 tcp", true], ["c0\nc2", true], ["c3", false]] as const)
    assert.equal(parse(line)(known.flow(topology.flows[0])), wanted, line);
  assert.equal(known.container(one), known.container(one));
  assert.equal(parse("host0")(known.container(one)), true);
  assert.equal(parse("host0")(known.host(topology.hosts[1])), false);
  // Of another picture it is made anew.
  assert.equal(parse("other")(subjects({ ...topology, hosts: [{ ...topology.hosts[0], name: "other" }] }).container(one)), true);
});

test("an edge between a group and what is in it is told from the others", () => {
  const topology = mesh(2, 2);
  const [one, , two] = topology.containers;
  const around: End = { kind: "host", id: "h0", name: "host0", ip: "10.32.0.99" };
  topology.flows = [flow(around, end(one)), flow(end(one), around), flow(around, end(two))];
  const marks = draw(topology).edges.map(({ id, classes }) => [id, classes.filter((name) => name.endsWith("around")).join()]);
  assert.deepEqual(Object.fromEntries(marks), { "e:h0>c:0": "from-around", "e:c:0>h0": "to-around", "e:h0>c:2": "" });
});

test("a page that nobody sees for a while listens no more until it is seen", ({ mock }) => {
  mock.timers.enable({ apis: ["setTimeout"] });
  let seen = true;
  const did: string[] = [];
  const changed = whileSeen(() => seen, () => did.push("stop"), () => did.push("go"));
  const set = (value: boolean): void => {
    seen = value;
    changed();
  };
  set(false);
  mock.timers.tick(UNSEEN_MS - 1);
  set(true);
  mock.timers.tick(UNSEEN_MS);
  assert.deepEqual(did, [], "a glance at another page changes nothing");
  set(false);
  set(false);
  mock.timers.tick(UNSEEN_MS);
  assert.deepEqual(did, ["stop"]);
  set(true);
  set(true);
  assert.deepEqual(did, ["stop", "go"]);
});
