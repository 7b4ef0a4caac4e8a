// The filter language: words that must all hold. A word is text to be found anywhere, `field:text`, a number compared
// (`rate>10kB`, `port=80`), or any of these after `!`; `field:=text` is the whole of it. What it is asked of is one flow, container or host. Pure.

import { listening } from "./format";
import type { Container, Flow, Host, Inside, Topology } from "./types";

/** What can be asked: text by field, numbers by field. */
export interface Subject {
  text: Record<string, string[]>;
  numbers: Record<string, number>;
}

type Test = (subject: Subject) => boolean;

const SUFFIX: Record<string, number> = { "": 1, b: 1, k: 1e3, kb: 1e3, m: 1e6, mb: 1e6, g: 1e9, gb: 1e9 };

function numberOf(text: string): number | undefined {
  const parts = /^(\d+(?:\.\d+)?)([a-z]*)(?:\/s)?$/i.exec(text);
  const factor = parts ? SUFFIX[parts[2].toLowerCase()] : undefined;
  return parts && factor !== undefined ? Number(parts[1]) * factor : undefined;
}

function one(word: string): Test {
  if (word.startsWith("!") && word.length > 1) {
    const test = one(word.slice(1));
    return (subject) => !test(subject);
  }
  const compared = /^([a-z]+)(>=|<=|>|<|=)(.+)$/i.exec(word);
  const wanted = compared && numberOf(compared[3]);
  if (compared && wanted !== undefined && wanted !== null) {
    const field = compared[1].toLowerCase();
    return ({ numbers }) => {
      const value = numbers[field];
      if (value === undefined) return false;
      if (compared[2] === ">") return value > wanted;
      if (compared[2] === "<") return value < wanted;
      if (compared[2] === ">=") return value >= wanted;
      return compared[2] === "<=" ? value <= wanted : value === wanted;
    };
  }
  const colon = word.indexOf(":");
  const field = word.slice(0, Math.max(colon, 0)).toLowerCase();
  if (FIELDS.includes(field)) {
    const part = word.slice(colon + 1).toLowerCase();
    if (part.startsWith("=")) return ({ text }) => (text[field] ?? []).some((value) => value.toLowerCase() === part.slice(1));
    return ({ text }) => (text[field] ?? []).some((value) => value.toLowerCase().includes(part));
  }
  const part = word.toLowerCase();
  return (subject) => allOf(subject).includes(part);
}

const texts = new WeakMap<Subject, string>();

/** All text of a subject, made once, in lines: no word has a line's end in it. */
function allOf(subject: Subject): string {
  const all = texts.get(subject) ?? Object.values(subject.text).flat().join("\n").toLowerCase();
  texts.set(subject, all);
  return all;
}

export const FIELDS = ["name", "from", "to", "host", "ip", "net", "label", "proto", "is", "via", "service", "image", "pod", "namespace", "workload", "process", "listens"];
export const NUMBERS = ["rate", "bytes", "port", "conns", "refused", "rtt", "resent", "cpu", "memory"];

/** The test for a whole line; an empty one holds for everything. */
export function parse(line: string): Test {
  const tests = line.split(/\s+/).filter(Boolean).map(one);
  return (subject) => tests.every((test) => test(subject));
}

/** The words by which a line can be narrowed to one network or namespace, where there are several. */
export function places(topology: Topology): string[] {
  const words = (field: string, found: (string | undefined)[]): string[] =>
    [...new Set(found)].filter((one) => one !== undefined && one !== "").sort().map((one) => `${field}:=${one}`);
  const networks = words("net", topology.containers.map((one) => one.network));
  const namespaces = words("namespace", topology.containers.map((one) => podOf(one).namespace));
  return [...(networks.length > 1 ? networks : []), ...namespaces];
}

/** The line with this place in it, and no other of its field. */
export function placed(line: string, place: string): string {
  const rest = line.split(/\s+/).filter((word) => word !== "" && !/^(net|namespace):=/.test(word));
  return [place, ...rest].filter((word) => word !== "").join(" ");
}

const labels = (container?: Container): string[] =>
  Object.entries({ ...container?.runtime?.labels, ...container?.labels }).map(([key, value]) => `${key}=${value}`);

/** What a container is in Kubernetes: its runtime knows, or whoever attached it said it in labels. */
export function podOf(one: Container): { pod?: string; namespace?: string; workload?: string } {
  const said = (label: string): string | undefined => one.labels[`io.kubernetes.pod.${label}`];
  const { pod = said("name"), namespace = said("namespace"), workload } = one.runtime ?? {};
  return { pod, namespace, workload };
}

/** The same as text by field, of all that are given. */
function inPods(containers: (Container | undefined)[]): Record<string, string[]> {
  const pods = containers.map((one) => (one ? podOf(one) : {}));
  const all = (field: "pod" | "namespace" | "workload"): string[] => pods.map((pod) => pod[field] ?? "");
  return { pod: all("pod"), namespace: all("namespace"), workload: all("workload") };
}

/** All that a container is called: by people, by whoever attached it, and by its runtime. */
const named = (one?: Container): string[] => (one ? [one.title, one.name, one.runtime?.name ?? ""] : []);

/** What can be asked of what runs somewhere. */
const runs = (inside?: Inside): Subject => ({
  text: {
    process: inside?.processes.map((one) => one.name) ?? [],
    listens: inside?.processes.flatMap((one) => one.ports ?? []).map(listening) ?? [],
  },
  // A share in hundredths of a core; of whom none is known is on neither side of any figure.
  numbers: { cpu: (inside?.cpu_permille ?? NaN) / 10, memory: inside?.memory_bytes ?? NaN },
});

export function ofContainer(one: Container, host?: Host): Subject {
  const { text, numbers } = runs(one.inside);
  return {
    text: {
      ...text,
      name: named(one),
      image: [one.runtime?.image ?? ""],
      host: [host?.name ?? ""],
      ip: [one.ip, one.ip6 ?? ""],
      net: [one.network],
      label: labels(one),
      ...inPods([one]),
      is: [one.alive ? "up" : "gone"],
    },
    numbers,
  };
}

export function ofHost(host: Host): Subject {
  const { text, numbers } = runs(host.inside);
  return { text: { ...text, name: [host.name], host: [host.name], ip: host.endpoints, is: [host.state] }, numbers };
}

export function ofFlow(flow: Flow, containers: Map<string, Container>, hosts: Map<string, Host>): Subject {
  const ends = [containers.get(flow.from.id), containers.get(flow.to.id)];
  const states = [flow.failing ? "failing" : "ok", flow.open > 0 ? "open" : "ended"];
  if (flow.from.kind === "outside" || flow.to.kind === "outside") states.push("outside");
  return {
    text: {
      name: [flow.from.name, flow.to.name, ...ends.flatMap(named)],
      from: [flow.from.name, flow.from.ip, ...named(ends[0])],
      to: [flow.to.name, flow.to.ip, ...named(ends[1])],
      host: ends.map((end) => (end && hosts.get(end.host)?.name) ?? ""),
      ip: [flow.from.ip, flow.to.ip],
      net: ends.map((end) => end?.network ?? ""),
      label: ends.flatMap(labels),
      ...inPods(ends),
      proto: [flow.protocol],
      via: [flow.via ?? "", flow.service ?? ""],
      service: [flow.service ?? ""],
      is: states,
    },
    numbers: {
      rate: flow.sent_rate + flow.received_rate,
      bytes: flow.sent_bytes + flow.received_bytes,
      port: flow.port,
      conns: flow.open,
      refused: flow.refused,
      // In milliseconds; a flow of which none is known is on neither side of any figure.
      rtt: (flow.tcp?.rtt_us ?? NaN) / 1000,
      resent: flow.tcp?.retransmits ?? 0,
    },
  };
}

/** What can be asked of each thing in a picture, made when it is asked first: a line is typed letter by letter. */
export function subjects({ containers, hosts }: Topology) {
  const insides = new Map(containers.map((one) => [one.id, one]));
  const byId = new Map(hosts.map((host) => [host.id, host]));
  return {
    flow: once((flow: Flow) => ofFlow(flow, insides, byId)),
    container: once((one: Container) => ofContainer(one, byId.get(one.host))),
    host: once(ofHost),
  };
}

function once<T extends object>(make: (one: T) => Subject): (one: T) => Subject {
  const made = new WeakMap<T, Subject>();
  return (one) => {
    const subject = made.get(one) ?? make(one);
    made.set(one, subject);
    return subject;
  };
}
