// What is drawn, from the picture and from what the person opened: nodes, edges and where they stand. Pure.
//
// No picture is drawn whole before it is known to be small: with more than OPEN_ALL containers every host begins closed, its
// flows are edges between hosts, and of many edges the failing and the busiest are drawn. What is left out is counted, and
// drawn when one of its ends is chosen.

import { milliseconds, rate, share } from "./format";
import { type Box, type Group, layout, NAME, type Places } from "./layout";
import type { Container, End, Flow, Host, Link, Service, Topology } from "./types";

/** Up to this many containers are drawn without being asked for. */
export const OPEN_ALL = 60;
/** The most edges of flows that are drawn. */
const DRAWN = 90;
/** With more hosts than this only those links are drawn that are down, or belong to the host that is chosen. */
const LINKED = 8;
/** The most edges whose rate is written beside them; of the others it is told when they are pointed at. */
const LABELLED = 8;
/** With more edges than this on which something moves they are thinner and lines without dashes, and no rate is written beside them. */
const FEW = 40;
/** An edge of which a flow fails is as thick as this at least. */
const FAILING = 2.5;
/** The most addresses outside that are drawn one by one. */
const OUTSIDE_ALL = 12;
/** The most Services that are drawn one by one without being asked for. */
const SERVICES_ALL = 12;

export const OUTSIDE = "outside";
export const SERVICES = "services";

export interface NodeItem {
  id: string;
  kind: "host" | "container" | "outside" | "address" | "services" | "service";
  label: string;
  parent?: string;
  x: number;
  y: number;
  box?: Box;
  /** The size of a group's name. */
  name?: number;
  open: boolean;
  classes: string[];
}

export interface EdgeItem {
  id: string;
  kind: "link" | "flow";
  source: string;
  target: string;
  label: string;
  /** How thick. */
  weight: number;
  classes: string[];
  /** The flows it stands for, or the link. */
  ids: string[];
}

export interface Scene {
  nodes: NodeItem[];
  edges: EdgeItem[];
  /** How many edges of flows are not drawn. */
  left: number;
}

export interface Opened {
  /** Hosts that the person opened or closed. */
  chosen: Map<string, boolean>;
  /** What passes the filter. */
  passes: { container: (one: Container) => boolean; host: (one: Host) => boolean; flow: (one: Flow) => boolean };
  filtered: boolean;
  /** What is chosen. */
  selected: string | null;
}

export function isOpen(topology: Topology, chosen: Map<string, boolean>, id: string): boolean {
  return chosen.get(id) ?? topology.containers.length <= OPEN_ALL;
}

/** The group in which something is drawn when that is open. */
export function groupOf({ containers, services, flows }: Topology, id: string): string | undefined {
  const host = containers.find((one) => one.id === id)?.host;
  if (host !== undefined) return host;
  if (services.some((one) => one.id === id)) return SERVICES;
  return flows.some((flow) => [flow.from, flow.to].some((end) => end.id === id && isAway(end))) ? OUTSIDE : undefined;
}

/** Whether an end belongs to what is outside, as far as anybody knows. */
const isAway = (end: End): boolean => end.kind === "outside" || end.kind === "unknown";

const touches = (edge: Hop, id: string | null): boolean => id !== null && [edge.id, edge.source, edge.target].includes(id);

export function sceneOf(topology: Topology, opened: Opened): Scene {
  const { chosen } = opened;
  const hosts = [...topology.hosts].sort((one, two) => byName(one.name, two.name));
  const inside = new Map<string, Container[]>(hosts.map((host) => [host.id, []]));
  for (const one of topology.containers) inside.get(one.host)?.push(one);
  for (const all of inside.values()) all.sort((one, two) => byName(one.title, two.title));
  const groups: Group[] = hosts.map((host) => ({
    id: host.id,
    members: isOpen(topology, chosen, host.id) ? (inside.get(host.id) ?? []).map((one) => one.id) : [],
  }));
  const away = addresses(topology);
  const outside: Group | undefined = away.length
    ? { id: OUTSIDE, members: chosen.get(OUTSIDE) ?? away.length <= OUTSIDE_ALL ? away.map((end) => end.id) : [] }
    : undefined;
  const { services } = topology;
  const front: Group | undefined = services.length
    ? { id: SERVICES, members: (chosen.get(SERVICES) ?? services.length <= SERVICES_ALL) ? services.map((one) => one.id) : [] }
    : undefined;
  const places = layout(groups, front, outside);
  const nodes: NodeItem[] = [];
  hosts.forEach((host, at) => {
    const all = inside.get(host.id) ?? [];
    nodes.push(hostNode(host, all, groups[at], places.groups.get(host.id), opened));
    for (const one of all) {
      const place = places.members.get(one.id);
      if (place) nodes.push(containerNode(one, host, place, opened));
    }
  });
  const dims = dimmed(topology, opened);
  if (front) nodes.push(...serviceNodes(services, front, places, dims));
  if (outside) nodes.push(...outsideNodes(away, outside, places, dims));
  for (const node of nodes) if (node.box) node.name = NAME * places.larger;
  const drawn = new Set(nodes.map((node) => node.id));
  markFailing(nodes, topology, drawn);
  const all = flowEdges(topology, drawn, opened).filter((one) => isBetween(one, drawn));
  // What is asked for comes before what is not.
  const flows = [...all.filter(isAsked), ...all.filter((one) => !isAsked(one))];
  const shown = flows.slice(0, DRAWN).concat(flows.slice(DRAWN).filter((one) => touches(one, opened.selected)));
  // Thin lines are lost where all is drawn small.
  for (const one of shown) one.weight *= places.larger;
  markAround(shown, nodes);
  const edges = [...linkEdges(topology, opened.selected).filter((one) => isBetween(one, drawn)), ...shown];
  markChosen(nodes, edges, opened.selected);
  return { nodes, edges, left: flows.length - shown.length };
}

const isAsked = (edge: EdgeItem): boolean => !edge.classes.includes("dim");

/** Whether both ends are drawn: reports are of different age, and one may tell of a host that another does not know any more. */
const isBetween = ({ source, target }: Hop, drawn: Set<string>): boolean => drawn.has(source) && drawn.has(target);

/** Edges between a group and what is drawn in it. */
function markAround(edges: EdgeItem[], nodes: NodeItem[]): void {
  const around = new Map(nodes.map((one) => [one.id, one.parent]));
  for (const { source, target, classes } of edges) {
    if (around.get(target) === source) classes.push("from-around");
    if (around.get(source) === target) classes.push("to-around");
  }
}

/** What is chosen, what is near it, with all ends of what it or its members have edges with, and what is far from it. */
function markChosen(nodes: NodeItem[], edges: EdgeItem[], selected: string | null): void {
  const all = [...nodes, ...edges];
  if (!all.some((one) => one.id === selected)) return;
  const inner = new Set(nodes.filter((one) => one.parent === selected).map((one) => one.id)).add(selected as string);
  const near = new Set(inner);
  for (const { id, source, target } of edges) {
    if ([id, source, target].some((one) => inner.has(one))) near.add(id).add(source).add(target);
  }
  const around = new Set(nodes.filter((one) => near.has(one.id)).map((one) => one.parent));
  for (const one of all) {
    if (one.id === selected) one.classes.push("chosen");
    if (near.has(one.id)) one.classes.push("near");
    else if (!around.has(one.id)) one.classes.push("far");
  }
}

function hostNode(host: Host, all: Container[], group: Group, box: Box | undefined, opened: Opened): NodeItem {
  const open = group.members.length > 0;
  const hidden = open ? host.more_containers : distinct(all).length + host.more_containers;
  const what = hidden === 1 ? "container" : "containers";
  const more = open ? `+${hidden} more` : `${hidden} ${what}`;
  const below = host.silent ? host.state === "unreachable" ? "unreachable" : "tells nothing" : hidden ? more : open ? "" : "no containers";
  const classes = [host.state, open ? "open" : "closed"];
  if (host.problems.length) classes.push("sick");
  if (opened.filtered && !opened.passes.host(host) && !all.some(opened.passes.container)) classes.push("dim");
  return {
    id: host.id,
    kind: "host",
    label: below ? (open ? `${host.name}  ·  ${below}` : `${host.name}\n${below}`) : host.name,
    x: box?.x ?? 0,
    y: box?.y ?? 0,
    box,
    open,
    classes,
  };
}

/** What hosts have and do not tell, because it is too much: their quieter flows, and containers beyond what one tells. */
export function untold(topology: Topology): { containers: number; flows: number } {
  const { hosts } = topology;
  return {
    containers: hosts.reduce((sum, host) => sum + host.more_containers, 0),
    flows: hosts.reduce((sum, host) => sum + (host.capture?.untold ?? 0), 0),
  };
}

/** Numbers in names by their value. Made once: to compare by a locale's rules without it takes tens of times as long. */
export const byName = new Intl.Collator(undefined, { numeric: true }).compare;

/** Nobody is behind it, or something of it is left out. */
export const isSick = (one: Service): boolean => one.refused.length > 0 || !one.backends.some((backend) => backend.state === "ready");

/** Whether the filter leaves none of these: of Services and of addresses outside those are left that have a flow which is. */
function dimmed(topology: Topology, { filtered, passes }: Opened): (ids: string[]) => boolean {
  if (!filtered) return () => false;
  const asked = topology.flows.filter(passes.flow);
  const left = new Set(asked.flatMap((flow) => [flow.from.id, flow.to.id, `s:${flow.service}`]));
  return (ids) => !ids.some((id) => left.has(id));
}

function serviceNodes(services: Service[], group: Group, places: Places, dims: ReturnType<typeof dimmed>): NodeItem[] {
  const box = places.groups.get(SERVICES);
  const open = group.members.length > 0;
  const label = open ? "Services" : `Services\n${services.length}`;
  const dim = dims(services.map((one) => one.id)) ? ["dim"] : [];
  const nodes: NodeItem[] = [
    { id: SERVICES, kind: "services", label, x: box?.x ?? 0, y: box?.y ?? 0, box, open, classes: [open ? "open" : "closed", ...dim] },
  ];
  for (const one of services) {
    const place = places.members.get(one.id);
    if (!place) continue;
    const classes = isSick(one) ? ["sick"] : [];
    if (dims([one.id])) classes.push("dim");
    nodes.push({ id: one.id, kind: "service", label: one.name, parent: SERVICES, ...place, open: false, classes });
  }
  return nodes;
}

/** Each container once, on however many networks it is: the first of its attachments among these. */
export function distinct(all: Container[]): Container[] {
  const first = new Map<string, Container>();
  for (const one of all) if (!first.has(one.same_as ?? one.id)) first.set(one.same_as ?? one.id, one);
  return [...first.values()];
}

function containerNode(one: Container, host: Host, place: { x: number; y: number }, opened: Opened): NodeItem {
  const classes = [one.alive ? "alive" : "gone"];
  if (opened.filtered && !opened.passes.container(one)) classes.push("dim");
  return { id: one.id, kind: "container", label: one.title, parent: host.id, ...place, open: false, classes };
}

function addresses(topology: Topology): End[] {
  const found = new Map<string, End>();
  for (const flow of topology.flows) {
    for (const end of [flow.from, flow.to]) {
      if (isAway(end)) found.set(end.id, end);
    }
  }
  return [...found.values()].sort((one, two) => byName(one.ip, two.ip));
}

function outsideNodes(away: End[], group: Group, places: Places, dims: ReturnType<typeof dimmed>): NodeItem[] {
  const box = places.groups.get(OUTSIDE);
  const open = group.members.length > 0;
  const label = open ? "Outside" : `Outside\n${away.length} addresses`;
  const dim = dims(away.map((end) => end.id)) ? ["dim"] : [];
  const nodes: NodeItem[] = [
    { id: OUTSIDE, kind: "outside", label, x: box?.x ?? 0, y: box?.y ?? 0, box, open, classes: [open ? "open" : "closed", ...dim] },
  ];
  for (const end of away) {
    const place = places.members.get(end.id);
    if (!place) continue;
    const classes = end.kind === "unknown" ? ["unknown"] : [];
    if (dims([end.id])) classes.push("dim");
    nodes.push({ id: end.id, kind: "address", label: end.ip, parent: OUTSIDE, ...place, open: false, classes });
  }
  return nodes;
}

function linkEdges(topology: Topology, selected: string | null): EdgeItem[] {
  const few = topology.hosts.length <= LINKED;
  const wanted = (link: Link): boolean => few || link.state !== "connected" || [link.id, link.a, link.b].includes(selected ?? "");
  return topology.links.filter(wanted).map((link: Link) => {
    const facts = [
      link.rtt_us === null ? "" : milliseconds(link.rtt_us),
      link.loss_permille ? `${share(link.loss_permille)} lost` : "",
      link.via ? `via ${link.via}` : "",
      link.mtu ? `MTU ${link.mtu.bytes}` : "",
    ];
    return {
      id: link.id,
      kind: "link",
      source: link.a,
      target: link.b,
      label: link.state === "connected" ? facts.filter(Boolean).join(" · ") : "no session",
      weight: 6,
      classes: [link.state],
      ids: [link.id],
    };
  });
}

/** Where a flow's end is drawn: in a group that is closed, as the group. */
function placed(topology: Topology, drawn: Set<string>): (end: End) => string | undefined {
  const hostOf = new Map(topology.containers.map((one) => [one.id, one.host]));
  return (end) => {
    if (drawn.has(end.id)) return end.id;
    if (end.kind === "container") return hostOf.get(end.id);
    if (end.kind === "service") return SERVICES;
    return end.kind === "host" ? undefined : OUTSIDE;
  };
}

/** A flow with both ends in what is closed has no edge; that it fails shows on what is closed. */
function markFailing(nodes: NodeItem[], topology: Topology, drawn: Set<string>): void {
  const at = placed(topology, drawn);
  const within = topology.flows.filter((flow) => flow.failing && at(flow.from) === at(flow.to)).map((flow) => at(flow.from));
  const sore = new Set(within);
  for (const node of nodes) if (!node.open && sore.has(node.id)) node.classes.push("failing");
}

/** A part of a flow's way, and the edge that is drawn for it. */
type Hop = Pick<EdgeItem, "id" | "source" | "target">;

/** The way of a flow over what is drawn; none where both its ends are in one group that is closed. */
function hops(topology: Topology, drawn: Set<string>): (flow: Flow) => Hop[] {
  const at = placed(topology, drawn);
  return (flow) => {
    const front = flow.service === undefined ? undefined : `s:${flow.service}`;
    // A flow through a Service that is drawn goes by it: to the Service, and from there to who answers.
    const way = front !== undefined && drawn.has(front) ? [at(flow.from), front, at(flow.to)] : [at(flow.from), at(flow.to)];
    return way.slice(1).flatMap((target, before) => {
      const source = way[before];
      return source && target && source !== target ? [{ id: `e:${source}>${target}`, source, target }] : [];
    });
  };
}

/** The edge by which a flow goes, that of what is chosen where there are two. */
export function edgeOf(topology: Topology, nodes: NodeItem[], flow: Flow, selected: string | null): string | undefined {
  const drawn = new Set(nodes.map((node) => node.id));
  const way = hops(topology, drawn)(flow).filter((one) => isBetween(one, drawn));
  return (way.find((one) => touches(one, selected)) ?? way[0])?.id;
}

/** One edge for all flows from one drawn node to another; the failing ones first, then the busiest. */
function flowEdges(topology: Topology, drawn: Set<string>, opened: Opened): EdgeItem[] {
  const way = hops(topology, drawn);
  const bundles = new Map<string, Bundle>();
  for (const flow of topology.flows) for (const hop of way(flow)) bundled(bundles, hop, flow);
  const sorted = [...bundles.values()].sort(
    (one, two) => Number(two.failing) - Number(one.failing) || two.moving - one.moving || one.id.localeCompare(two.id),
  );
  const most = Math.max(1, ...sorted.map((bundle) => bundle.moving));
  const few = sorted.filter((bundle) => bundle.failing || bundle.moving > 0).length <= FEW;
  return sorted.map((bundle, place) => edge(bundle, most, few, few && place < LABELLED, opened));
}

function bundled(bundles: Map<string, Bundle>, hop: Hop, flow: Flow): void {
  const bundle = bundles.get(hop.id) ?? { ...hop, flows: [], moving: 0, failing: false };
  bundle.flows.push(flow);
  // What of a flow was never taken up but asked and refused is nothing that goes on.
  if (isTaken(flow)) bundle.moving += flow.sent_rate + flow.received_rate;
  bundle.failing ||= flow.failing;
  bundles.set(hop.id, bundle);
}

/** Whether any connection of a flow was taken up. */
const isTaken = (flow: Flow): boolean => flow.connections > flow.refused + flow.unanswered;

interface Bundle extends Hop {
  flows: Flow[];
  /** Bytes a second, both ways. */
  moving: number;
  failing: boolean;
}

function edge({ id, source, target, flows, moving, failing }: Bundle, most: number, few: boolean, told: boolean, opened: Opened): EdgeItem {
  // Its colour is that of what moves most.
  const busiest = flows.reduce((one, two) => (two.sent_rate + two.received_rate > one.sent_rate + one.received_rate ? two : one));
  const classes = [busiest.protocol];
  if (failing) classes.push("failing");
  if (moving > 0) classes.push(few ? "moving" : "crowded");
  else if (!failing) classes.push("quiet");
  if (opened.filtered && !flows.some(opened.passes.flow)) classes.push("dim");
  if (!told && !(failing && few)) classes.push("untold");
  const why = flows.some((flow) => flow.unanswered) ? "no answer" : "refused";
  // One flow that fails hides nothing of what the others carry.
  const label = [failing ? why : "", moving > 0 ? rate(moving) : ""].filter(Boolean).join(" · ");
  // Its share of the busiest, on a scale where a hundredth can still be seen.
  const busy = moving > 0 ? 1.2 + (few ? 4.3 : 1.6) * Math.sqrt(Math.sqrt(moving / most)) : 1;
  const weight = failing ? Math.max(FAILING, busy) : busy;
  return { id, kind: "flow", source, target, label, weight, classes, ids: flows.map((flow) => flow.id) };
}
