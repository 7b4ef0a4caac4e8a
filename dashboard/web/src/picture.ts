// The picture as it changes: whole, then step by step. Pure.

import type { Step, Topology } from "./types";

interface Named {
  id: string;
}

/** The list after a change; what is replaced keeps its place, what is new comes last. */
function changed<T extends Named>(list: T[], change: { set?: T[]; gone?: string[] }): T[] {
  if (!change.set?.length && !change.gone?.length) return list;
  const gone = new Set(change.gone ?? []);
  const fresh = new Map((change.set ?? []).map((one) => [one.id, one]));
  const kept = list.filter((one) => !gone.has(one.id)).map((one) => {
    const replaced = fresh.get(one.id);
    fresh.delete(one.id);
    return replaced ?? one;
  });
  return fresh.size ? [...kept, ...fresh.values()] : kept;
}

/** The picture after a step. */
export function stepped(before: Topology, step: Step): Topology {
  const { at, verdict, summary, problems } = step;
  return {
    node: before.node,
    at,
    verdict,
    summary,
    problems,
    hosts: changed(before.hosts, step.hosts),
    containers: changed(before.containers, step.containers),
    links: changed(before.links, step.links),
    services: changed(before.services, step.services),
    flows: changed(before.flows, step.flows),
  };
}
