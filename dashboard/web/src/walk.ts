// Where keys lead in the graph: by arrows from node to node, and from each node over its edges. Pure.

import type { EdgeItem, NodeItem, Scene } from "./scene";

interface Point {
  x: number;
  y: number;
}

/** The nearest that lies in a direction; what is off to the side counts as farther. */
function nearest(from: Point, among: NodeItem[], { x: dx, y: dy }: Point): string | undefined {
  let best: { id: string; cost: number } | undefined;
  for (const one of among) {
    const [x, y] = [one.x - from.x, one.y - from.y];
    const along = x * dx + y * dy;
    const cost = along + 3 * Math.abs(x * dy - y * dx);
    if (along > 1 && (!best || cost < best.cost)) best = { id: one.id, cost };
  }
  return best?.id;
}

/** What an arrow key leads to: from a node the nearest in its direction, from an edge that of its ends. */
export function toward({ nodes, edges }: Scene, selected: string | null, way: Point): string | undefined {
  const edge = edges.find((one) => one.id === selected);
  const ends = edge ? nodes.filter((one) => [edge.source, edge.target].includes(one.id)) : [];
  const from = edge ? middle(ends) : nodes.find((one) => one.id === selected);
  return from ? (nearest(from, ends, way) ?? nearest(from, nodes, way)) : nodes[0]?.id;
}

const middle = (points: Point[]): Point => ({
  x: points.reduce((sum, one) => sum + one.x, 0) / points.length,
  y: points.reduce((sum, one) => sum + one.y, 0) / points.length,
});

/** The edges of a node, or all where none is chosen: flows in the order in which they are drawn, then links. */
export function round({ nodes, edges }: Scene, id: string | null): string[] {
  const own = nodes.some((one) => one.id === id) ? edges.filter((one) => [one.source, one.target].includes(id as string)) : edges;
  const of = (kind: EdgeItem["kind"]): string[] => own.filter((one) => one.kind === kind).map((one) => one.id);
  return [...of("flow"), ...of("link")];
}

/** The one after another, or before it; from none the first, or the last. */
export function beside(all: string[], id: string | null, step: 1 | -1): string | undefined {
  const at = all.indexOf(id ?? "");
  return at < 0 ? all.at(step > 0 ? 0 : -1) : all[(at + step + all.length) % all.length];
}
