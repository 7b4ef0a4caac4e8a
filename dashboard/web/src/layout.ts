// Where everything stands: computed by us, in time that grows with the number of things and not faster, and stable: the same
// mesh always looks the same, and what opens pushes the rest aside without mixing it up. Pure.
//
// Members of a group are a packed grid. Hosts stand on an ellipse while they are few, so that links between all of them can
// be told apart, and in rows when they are many. Services are a strip above them and addresses outside of the network one
// below, so that what comes in and what leaves can be read from top to bottom, and passes no host that it is not about.
// Names of groups are written so large that they can be read when all is in view.

export const CHIP = { width: 132, height: 34, across: 36, down: 30 };
const CLOSED = { width: 176, height: 64 };
const [SIDE, TOP] = [22, 46];
/** How far a group's members are from its lower edge. */
const BOTTOM = 22;
const APART = 118;
/** The size of a group's name, and the part of a screen that a small window has for all. */
export const NAME = 15;
const SCREEN = { width: 1080, height: 680 };

export interface Group {
  id: string;
  /** Members to draw; none when the group is closed. */
  members: string[];
}

export interface Box {
  x: number;
  y: number;
  width: number;
  height: number;
}

export interface Places {
  groups: Map<string, Box>;
  members: Map<string, { x: number; y: number }>;
  /** How much larger than usual the names of groups are. */
  larger: number;
}

/** A group that is to be placed: in how many columns its members stand, and how much larger than usual its name is. */
interface Sized extends Group {
  columns: number;
  larger: number;
}

function sized(group: Group, larger: number, most: number, flat = 1.6): Sized {
  const columns = Math.min(most, Math.ceil(Math.sqrt(group.members.length / flat)));
  return { ...group, larger, columns: Math.max(1, columns) };
}

/** How far a group's members are from its upper edge. */
const below = (name: number): number => TOP * (name / NAME);

function size({ members, columns, larger }: Sized): { width: number; height: number } {
  if (members.length === 0) return { width: CLOSED.width * larger, height: CLOSED.height * larger };
  const high = Math.ceil(members.length / columns);
  return {
    width: Math.max(CLOSED.width, columns * CHIP.width + (columns - 1) * CHIP.across + 2 * SIDE),
    height: high * CHIP.height + (high - 1) * CHIP.down + below(NAME * larger) + BOTTOM,
  };
}

interface Point {
  x: number;
  y: number;
}

/** On an ellipse that is as small as it can be without two groups coming close. */
function round(sizes: { width: number; height: number }[]): Point[] {
  const [widest, highest] = [Math.max(...sizes.map((one) => one.width)), Math.max(...sizes.map((one) => one.height))];
  const at = (scale: number): Point[] =>
    sizes.map((_, place) => {
      const angle = (2 * Math.PI * place) / sizes.length - Math.PI / 2;
      return { x: scale * (widest + APART) * Math.cos(angle), y: scale * (highest + APART) * Math.sin(angle) };
    });
  const close = (points: Point[]): boolean =>
    points.some((one, place) =>
      points.slice(place + 1).some((two, more) => {
        const [a, b] = [sizes[place], sizes[place + 1 + more]];
        const beside = Math.abs(one.x - two.x) >= (a.width + b.width) / 2 + APART;
        return !beside && Math.abs(one.y - two.y) < (a.height + b.height) / 2 + APART * 0.6;
      }),
    );
  let scale = 0.5;
  while (close(at(scale))) scale *= 1.04;
  return at(scale);
}

/** In rows, each as high as its highest and each column as wide as its widest, in the shape that fills a screen best. */
function rows(sizes: { width: number; height: number }[]): Point[] {
  const gap = APART / 2;
  const shape = (perRow: number): { widths: number[]; heights: number[]; large: number } => {
    const widths = Array.from({ length: perRow }, () => 0);
    const heights = Array.from({ length: Math.ceil(sizes.length / perRow) }, () => 0);
    sizes.forEach(({ width, height }, at) => {
      const [column, row] = [at % perRow, Math.floor(at / perRow)];
      widths[column] = Math.max(widths[column], width + gap);
      heights[row] = Math.max(heights[row], height + gap);
    });
    return { widths, heights, large: Math.max(sum(widths) / SCREEN.width, sum(heights) / SCREEN.height) };
  };
  const shapes = sizes.map((_, at) => shape(at + 1));
  const best = shapes.reduce((one, two) => (two.large < one.large ? two : one));
  const middle = (spans: number[], at: number): number => sum(spans.slice(0, at)) + spans[at] / 2 - sum(spans) / 2;
  return sizes.map((_, at) => ({
    x: middle(best.widths, at % best.widths.length),
    y: middle(best.heights, Math.floor(at / best.widths.length)),
  }));
}

const sum = (all: number[]): number => all.reduce((one, two) => one + two, 0);

/** The middle of each group. */
function middles(sizes: { width: number; height: number }[]): Point[] {
  if (sizes.length === 1) return [{ x: 0, y: 0 }];
  if (sizes.length === 2) {
    const apart = (sizes[0].width + sizes[1].width) / 2 + APART * 2;
    return [-1, 1].map((side) => ({ x: (side * apart) / 2, y: 0 }));
  }
  return sizes.length <= 8 ? round(sizes) : rows(sizes);
}

function placeMembers(group: Sized, box: Box, places: Places): void {
  const wide = Math.min(group.columns, group.members.length);
  const left = box.x - (wide * CHIP.width + (wide - 1) * CHIP.across) / 2 + CHIP.width / 2;
  const top = box.y - box.height / 2 + below(NAME * places.larger) + CHIP.height / 2;
  group.members.forEach((id, at) => {
    places.members.set(id, {
      x: left + (at % wide) * (CHIP.width + CHIP.across),
      y: top + Math.floor(at / wide) * (CHIP.height + CHIP.down),
    });
  });
}

interface Extent {
  left: number;
  right: number;
  top: number;
  bottom: number;
}

function extent(boxes: Iterable<Box>): Extent {
  const all = [...boxes];
  if (!all.length) return { left: 0, right: 0, top: 0, bottom: 0 };
  return {
    left: Math.min(...all.map((box) => box.x - box.width / 2)),
    right: Math.max(...all.map((box) => box.x + box.width / 2)),
    top: Math.min(...all.map((box) => box.y - box.height / 2)),
    bottom: Math.max(...all.map((box) => box.y + box.height / 2)),
  };
}

function placed(hosts: Group[], services: Group | undefined, outside: Group | undefined, larger: number): Places {
  const places: Places = { groups: new Map(), members: new Map(), larger };
  const put = (group: Sized, { x, y }: Point): void => {
    const box = { x, y, ...size(group) };
    places.groups.set(group.id, box);
    placeMembers(group, box, places);
  };
  const groups = hosts.map((group) => sized(group, larger, 8, hosts.length > 1 ? 2.8 : 1.6));
  const centres = middles(groups.map(size));
  groups.forEach((group, at) => put(group, centres[at]));
  const { left, right, top, bottom } = extent(places.groups.values());
  const most = Math.max(4, Math.floor((right - left) / (CHIP.width + CHIP.across)));
  const strip = (group: Group, edge: number, side: -1 | 1): void => {
    const wide = sized(group, larger, most, 1 / group.members.length || 1);
    put(wide, { x: (left + right) / 2, y: edge + side * (APART + size(wide).height / 2) });
  };
  if (services) strip(services, top, -1);
  if (outside) strip(outside, bottom, 1);
  return places;
}

/** Places hosts and their members, Services above them and what is outside below. */
export function layout(hosts: Group[], services: Group | undefined, outside: Group | undefined): Places {
  const places = placed(hosts, services, outside, 1);
  const { left, right, top, bottom } = extent(places.groups.values());
  const smaller = Math.max((right - left) / SCREEN.width, (bottom - top) / SCREEN.height);
  // At three quarters of its size a name is read as well.
  return smaller * 0.75 > 1 ? placed(hosts, services, outside, Math.min(4, smaller * 0.75)) : places;
}
