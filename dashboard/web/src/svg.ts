// The drawn graph as an SVG document: what cytoscape has on its canvas, in its own coordinates, as shapes and text.

import type { Core, EdgeSingular, NodeSingular, Position } from "cytoscape";

const MARGIN = 24;

/** Text as it stands in a document, whatever is in it. */
export const escaped = (text: string): string => text.replace(/[&<>"]/g, (one) => `&#${one.charCodeAt(0)};`);
const figure = (value: number): string => value.toFixed(1);
const number = (one: NodeSingular | EdgeSingular, name: string): number => Number.parseFloat(one.style(name)) || 0;

/** Lines of text around a middle, on a ground of their own if there is one. */
function text(lines: string[], { x, y }: Position, one: NodeSingular | EdgeSingular, ground = ""): string {
  const size = number(one, "font-size");
  const wide = Math.max(...lines.map((line) => line.length)) * size * 0.56 + 6;
  const box = ground
    ? `<rect x="${figure(x - wide / 2)}" y="${figure(y - size * 0.75)}" width="${figure(wide)}" height="${figure(size * 1.5)}" rx="3" fill="${ground}" fill-opacity="0.86"/>`
    : "";
  const rows = lines.map((line, at) => {
    const down = y + (at - (lines.length - 1) / 2) * size * 1.45 + size * 0.36;
    return `<text x="${figure(x)}" y="${figure(down)}" font-size="${size}" font-weight="${one.style("font-weight")}" fill="${one.style("color")}">${escaped(line)}</text>`;
  });
  return box + rows.join("");
}

function node(one: NodeSingular): string {
  const box = one.boundingBox({ includeLabels: false, includeOverlays: false });
  const line = one.style("border-style");
  const dash = line === "dashed" ? ' stroke-dasharray="6 4"' : line === "dotted" ? ' stroke-dasharray="2 3"' : "";
  const radius = Number.parseFloat(one.style("corner-radius")) || 9;
  const shape =
    `<rect x="${figure(box.x1)}" y="${figure(box.y1)}" width="${figure(box.w)}" height="${figure(box.h)}" rx="${radius}" ` +
    `fill="${one.style("background-color")}" stroke="${one.style("border-color")}" stroke-width="${number(one, "border-width")}"${dash}/>`;
  const lines = String(one.data("label")).split("\n");
  const middle = one.hasClass("open") ? { x: (box.x1 + box.x2) / 2, y: box.y1 + 1.47 * number(one, "font-size") } : one.position();
  return `<g opacity="${one.style("opacity")}">${shape}${text(lines, middle, one)}</g>`;
}

function arrow(from: Position, to: Position, size: number, colour: string): string {
  const length = Math.hypot(to.x - from.x, to.y - from.y) || 1;
  const [dx, dy] = [((to.x - from.x) / length) * size, ((to.y - from.y) / length) * size];
  const corner = (side: number): string => `${figure(to.x - dx + side * dy * 0.5)},${figure(to.y - dy - side * dx * 0.5)}`;
  return `<polygon points="${figure(to.x)},${figure(to.y)} ${corner(1)} ${corner(-1)}" fill="${colour}"/>`;
}

function edge(one: EdgeSingular, ground: string): string {
  const [from, to] = [one.sourceEndpoint(), one.targetEndpoint()];
  const bend = one.controlPoints()?.[0];
  const way = bend ? `Q ${figure(bend.x)} ${figure(bend.y)}` : "L";
  const colour = one.style("line-color");
  const width = number(one, "width");
  const dash = one.style("line-style") === "dashed" ? ` stroke-dasharray="${String(one.style("line-dash-pattern")).replace(/,/g, " ")}"` : "";
  const path =
    `<path d="M ${figure(from.x)} ${figure(from.y)} ${way} ${figure(to.x)} ${figure(to.y)}" fill="none" stroke="${colour}" ` +
    `stroke-width="${figure(width)}" stroke-opacity="${one.style("line-opacity")}"${dash}/>`;
  const head = one.hasClass("flow") ? arrow(bend ?? from, to, 7 + width, colour) : "";
  const label = String(one.style("label") ?? "");
  const { x, y } = one.midpoint();
  const words = label ? text([label], { x, y: y + number(one, "text-margin-y") }, one, ground) : "";
  return `<g opacity="${one.style("opacity")}">${path}${head}${words}</g>`;
}

/** The whole graph, on a ground of this colour. */
export function svgOf(graph: Core, ground: string, font: string): string {
  const box = graph.elements().boundingBox();
  const view = [box.x1 - MARGIN, box.y1 - MARGIN, box.w + 2 * MARGIN, box.h + 2 * MARGIN].map(figure);
  const groups = graph.nodes().filter((one) => one.hasClass("open"));
  const others = graph.nodes().filter((one) => !one.hasClass("open"));
  // As on the canvas: groups, what leads from one to the other, and names above both.
  const drawn = [...groups.map(node), ...graph.edges().map((one) => edge(one, ground)), ...others.map(node)];
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="${view.join(" ")}" font-family="${escaped(font)}" text-anchor="middle">` +
    `<rect x="${view[0]}" y="${view[1]}" width="${view[2]}" height="${view[3]}" fill="${ground}"/>${drawn.join("")}</svg>\n`
  );
}
