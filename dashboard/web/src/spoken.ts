// The picture in words, for a screen reader: the whole, and what is chosen, without figures that change by themselves. Pure.

import { bytes, count } from "./format";
import { distinct, type EdgeItem, isSick, type NodeItem, OUTSIDE, type Scene, SERVICES } from "./scene";
import { podOf } from "./search";
import type { Container, Host, Link, Service, Topology } from "./types";

/** What a screen reader is told of the whole. */
export function described(topology: Topology): string {
  const moving = topology.flows.reduce((total, flow) => total + flow.sent_rate + flow.received_rate, 0);
  const failing = topology.flows.filter((flow) => flow.failing).length;
  return (
    `${topology.hosts.length} hosts, ${distinct(topology.containers).length} containers, ${topology.services.length} services, ${topology.flows.length} flows, ` +
    `${bytes(moving)} a second, ${failing} failing. The table has the same in words.`
  );
}

/** The name of what a node of the graph stands for. */
export function nameOf({ hosts, containers, services, flows }: Topology, id: string): string {
  if (id === SERVICES) return "Services";
  if (id === OUTSIDE) return "Outside";
  const is = (one: { id: string }): boolean => one.id === id;
  const address = (): string | undefined => flows.flatMap((flow) => [flow.from, flow.to]).find(is)?.ip;
  return hosts.find(is)?.name ?? containers.find(is)?.title ?? services.find(is)?.name ?? address() ?? id.slice(0, 10);
}

/** What is chosen: its name, its kind, how it is, and how many edges it has. */
export function spoken(topology: Topology, { nodes, edges }: Scene, id: string): string {
  const edge = edges.find((one) => one.id === id);
  const link = topology.links.find((one) => one.id === id);
  if (link) return [`${nameOf(topology, link.a)} to ${nameOf(topology, link.b)}`, ...ofLink(link)].join(", ");
  if (edge) return [`${nameOf(topology, edge.source)} to ${nameOf(topology, edge.target)}`, ...ofFlows(topology, edge)].join(", ");
  const node = nodes.find((one) => one.id === id);
  if (!node) return "not in this picture";
  const own = edges.filter((one) => one.source === id || one.target === id);
  const failing = own.filter((one) => one.classes.includes("failing")).length;
  const within = node.classes.includes("failing") ? ["flows within fail"] : [];
  const fails = failing ? [`${failing} failing`] : [];
  return [nameOf(topology, id), ...ofNode(topology, node), ...within, count(own.length, "edge"), ...fails].join(", ");
}

const ofLink = ({ state, via }: Link): string[] => [
  "encrypted link",
  state === "unreachable" ? "no session" : "connected",
  ...(via ? [`through ${via}`] : []),
];

function ofFlows(topology: Topology, { ids }: EdgeItem): string[] {
  const failing = topology.flows.filter((flow) => flow.failing && ids.includes(flow.id));
  const why = failing.map((flow) => `${flow.unanswered ? "no answer" : "refused"} at ${flow.protocol} ${flow.port}`);
  return [count(ids.length, "flow"), ...why.slice(0, 2), ...(why.length > 2 ? [`${why.length - 2} more failing`] : [])];
}

function ofNode(topology: Topology, { id, kind, open, classes }: NodeItem): string[] {
  const turned = open ? "open" : "closed";
  const host = topology.hosts.find((one) => one.id === id);
  if (host) return [...ofHost(host), turned];
  const container = topology.containers.find((one) => one.id === id);
  if (container) return ofContainer(container, topology);
  const service = topology.services.find((one) => one.id === id);
  if (service) return ofService(service);
  if (kind !== "address") return ["group", turned];
  return [classes.includes("unknown") ? "unknown address of the network" : "address outside"];
}

const ofHost = ({ state, silent, problems }: Host): string[] => [
  "host",
  state === "myself" ? "this page's node" : state,
  ...(silent ? [`tells nothing: ${silent}`] : []),
  ...(problems.length ? [problems[0].cause] : []),
];

const ofContainer = (one: Container, topology: Topology): string[] => [
  `${podOf(one).pod ? "pod" : "container"} on ${nameOf(topology, one.host)}`,
  one.alive ? "up" : "gone",
];

function ofService(one: Service): string[] {
  const ready = one.backends.filter((backend) => backend.state === "ready").length;
  return ["Service", `${ready} of ${count(one.backends.length, "endpoint")} ready`, ...(isSick(one) && ready ? one.refused.slice(0, 1) : [])];
}
