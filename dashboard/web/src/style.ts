// How the graph looks: the page's own colours, read from its style, so that dark and light need one definition.

import type { StylesheetJson } from "cytoscape";

export function styleOf(element: HTMLElement): StylesheetJson {
  const css = getComputedStyle(element);
  const colour = (name: string): string => css.getPropertyValue(`--${name}`).trim();
  const font = css.fontFamily;
  const [ink, soft, line, card, ground] = ["ink", "soft", "line", "card", "ground"].map(colour);
  const [blue, green, red, amber, grey] = ["blue", "green", "red", "amber", "grey"].map(colour);
  // Not as the library's `data(…)`: that it sets anew whenever it looks at an element, and forgets what it knows of all around it.
  const own = (field: string) => (one: { data(field: string): unknown }) => one.data(field);
  // The library's types do not know every property that it has.
  const style: unknown = [
    // Beside the picture that is moved for a large graph there is nothing yet.
    { selector: "core", style: { "outside-texture-bg-opacity": 0 } },
    {
      selector: "node",
      style: {
        label: own("label"),
        "font-family": font,
        "font-size": 13,
        "font-weight": 500,
        color: ink,
        shape: "round-rectangle",
        "text-valign": "center",
        "text-halign": "center",
        "text-wrap": "ellipsis",
        "text-max-width": "112px",
        "border-width": 1.5,
        "border-color": line,
        "background-color": card,
        "overlay-opacity": 0,
      },
    },
    // Edges pass behind what has a name, so that it can be read; what cannot be read, so small is it, is not written.
    { selector: "node.container, node.address, node.service, edge", style: { "min-zoomed-font-size": 5 } },
    { selector: "node.container, node.address, node.service", style: { width: 132, height: 34, "corner-radius": "9", "z-compound-depth": "top", "z-index": 10 } },
    { selector: "node.service", style: { "border-color": colour("violet"), shape: "hexagon", "background-color": card } },
    { selector: "node.service.sick", style: { "border-color": amber, "border-width": 2.5 } },
    { selector: "node.container", style: { "border-color": green, "border-opacity": 0.75 } },
    { selector: "node.container.gone", style: { "border-style": "dashed", "border-color": grey, color: soft } },
    { selector: "node.address", style: { "border-style": "dotted", color: soft, "font-size": 12 } },
    {
      selector: "node.host, node.outside, node.services",
      style: {
        "background-color": ground,
        "background-opacity": 1,
        "corner-radius": "16",
        "font-size": own("name"),
        "font-weight": 600,
        width: own("width"),
        height: own("height"),
        "text-max-width": own("width"),
        "line-height": 1.45,
      },
    },
    { selector: "node.open", style: { "text-valign": "top", "text-margin-y": own("drop"), padding: "0px" } },
    {
      selector: "node.closed",
      style: { "text-wrap": "wrap", "background-color": card, "z-compound-depth": "top", "z-index": 10 },
    },
    { selector: "node.services", style: { "border-color": colour("violet"), "border-opacity": 0.6, color: soft } },
    { selector: "node.outside", style: { "border-style": "dotted", color: soft } },
    { selector: "node.unreachable", style: { "border-color": red, "border-style": "dashed", color: red } },
    { selector: "node.sick", style: { "border-color": amber, "border-width": 2 } },
    { selector: "node.failing", style: { "border-color": red, "border-width": 3 } },
    {
      selector: "edge",
      style: {
        "curve-style": "unbundled-bezier",
        "control-point-distances": [26],
        "control-point-weights": [0.5],
        label: own("label"),
        "font-family": font,
        "font-size": 11,
        color: soft,
        "text-background-color": colour("page"),
        "text-background-opacity": 1,
        "text-background-padding": "3px",
        "text-background-shape": "roundrectangle",
        "overlay-opacity": 0,
      },
    },
    {
      selector: "edge.link",
      style: {
        width: 9,
        "line-color": colour("link"),
        "line-opacity": 0.55,
        "line-cap": "round",
        "z-index": 1,
        "font-size": 12,
        "curve-style": "straight",
        // Beside the rates of what goes the same way.
        "text-margin-y": 18,
      },
    },
    { selector: "edge.link.unreachable", style: { "line-color": red, "line-style": "dashed", color: red } },
    {
      selector: "edge.flow",
      style: {
        width: own("weight"),
        "line-color": blue,
        "target-arrow-color": blue,
        "target-arrow-shape": "triangle",
        "arrow-scale": 0.9,
        "line-opacity": 0.85,
        "z-index": 5,
        "z-compound-depth": "top",
      },
    },
    // Between a group and a member: with the middle of the group's upper edge for its end.
    { selector: "edge.from-around", style: { "source-endpoint": "0% -50%" } },
    { selector: "edge.to-around", style: { "target-endpoint": "0% -50%" } },
    { selector: "edge.udp", style: { "line-color": colour("teal"), "target-arrow-color": colour("teal") } },
    { selector: "edge.icmp", style: { "line-color": colour("violet"), "target-arrow-color": colour("violet") } },
    { selector: "edge.moving", style: { "line-style": "dashed", "line-dash-pattern": [9, 3] } },
    { selector: "edge.crowded", style: { "line-opacity": 0.6, "arrow-scale": 0.75 } },
    { selector: "edge.untold", style: { label: "" } },
    { selector: "edge.untold.over, edge.untold.chosen, edge.untold.near", style: { label: own("label") } },
    { selector: "edge.quiet", style: { "line-opacity": 0.3, "arrow-scale": 0.7 } },
    {
      selector: "edge.failing",
      style: {
        "line-color": red,
        "target-arrow-color": red,
        "line-style": "dashed",
        "line-dash-pattern": [4, 5],
        color: red,
        "line-opacity": 1,
        "font-weight": 600,
      },
    },
    { selector: ".dim", style: { opacity: 0.14 } },
    { selector: "node.far", style: { opacity: 0.5 } },
    // Its members are, one by one.
    { selector: "node.far.open", style: { opacity: 1 } },
    { selector: "edge.far", style: { opacity: 0.14 } },
    { selector: "node.over", style: { "border-color": blue } },
    { selector: "edge.over", style: { "line-opacity": 1, "underlay-color": blue, "underlay-opacity": 0.18, "underlay-padding": 5 } },
    { selector: "node.chosen", style: { "border-color": blue, "border-width": 3 } },
    { selector: "edge.chosen", style: { "line-opacity": 1, "underlay-color": blue, "underlay-opacity": 0.28, "underlay-padding": 6 } },
  ];
  return style as StylesheetJson;
}
