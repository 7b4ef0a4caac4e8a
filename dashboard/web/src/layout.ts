// Where everything stands: computed by us, in time that grows with the number of things and not faster, and stable: the same
// mesh always looks the same, and what opens pushes the rest aside without mixing it up. Pure.
//
// Members of a group are a packed grid. Groups stand on an ellipse while they are few, so that links between all of them can
// be told apart, and in rows when they are many. Services are a group of their own to the left, and addresses outside of the
// network one to the right, so that what comes in and what leaves can be read from left to right.

export const CHIP = { width: 132, height: 34, across: 36, down: 30 };
const CLOSED = { width: 176, height: 64 };
const PADDING = { side: 22, top: 46, bottom: 22 };
const APART = 118;

export interface Group {
  id: string;
  /** Members to draw; none when the group is closed. */
  members: string[];
  /** Members stand one below the other. */
  narrow?: boolean;
  /** It shares the width with so many beside it. */
  beside?: number;
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
}

function columns({ members, narrow, beside = 1 }: Group): number {
  return narrow ? 1 : Math.max(1, Math.min(8, Math.ceil(Math.sqrt(members.length / (beside > 1 ? 2.8 : 1.6)))));
}

function size(group: Group): { width: number; height: number } {
  const count = group.members.length;
  if (count === 0) return CLOSED;
  const wide = columns(group);
  const high = Math.ceil(count / wide);
  return {
    width: Math.max(CLOSED.width, wide * CHIP.width + (wide - 1) * CHIP.across + 2 * PADDING.side),
    height: high * CHIP.height + (high - 1) * CHIP.down + PADDING.top + PADDING.bottom,
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

/** The middle of each group. */
function middles(groups: Group[]): Point[] {
  const sizes = groups.map(size);
  if (groups.length === 1) return [{ x: 0, y: 0 }];
  if (groups.length === 2) {
    const apart = (sizes[0].width + sizes[1].width) / 2 + APART * 2;
    return [-1, 1].map((side) => ({ x: (side * apart) / 2, y: 0 }));
  }
  if (groups.length <= 8) return round(sizes);
  const [widest, highest] = [Math.max(...sizes.map((one) => one.width)), Math.max(...sizes.map((one) => one.height))];
  const perRow = Math.ceil(Math.sqrt(groups.length * (highest / widest) * 1.7)) || 1;
  return groups.map((_, at) => ({
    x: ((at % perRow) - (perRow - 1) / 2) * (widest + APART / 2),
    y: Math.floor(at / perRow) * (highest + APART / 2),
  }));
}

function placeMembers(group: Group, box: Box, places: Places): void {
  const wide = columns(group);
  const left = box.x - (wide * CHIP.width + (wide - 1) * CHIP.across) / 2 + CHIP.width / 2;
  const top = box.y - box.height / 2 + PADDING.top + CHIP.height / 2;
  group.members.forEach((id, at) => {
    places.members.set(id, {
      x: left + (at % wide) * (CHIP.width + CHIP.across),
      y: top + Math.floor(at / wide) * (CHIP.height + CHIP.down),
    });
  });
}

/** Places hosts and their members, and beside them Services and what is outside. */
export function layout(hosts: Group[], services: Group | undefined, outside: Group | undefined): Places {
  const places: Places = { groups: new Map(), members: new Map() };
  const put = (group: Group, x: number, y: number): Box => {
    const box = { x, y, ...size(group) };
    places.groups.set(group.id, box);
    placeMembers(group, box, places);
    return box;
  };
  let [left, right] = [0, 0];
  let [top, bottom] = [Infinity, -Infinity];
  const groups = hosts.map((group) => ({ ...group, beside: hosts.length }));
  const centres = groups.length ? middles(groups) : [];
  groups.forEach((group, at) => {
    const box = put(group, centres[at].x, centres[at].y);
    [left, right] = [Math.min(left, box.x - box.width / 2), Math.max(right, box.x + box.width / 2)];
    [top, bottom] = [Math.min(top, box.y - box.height / 2), Math.max(bottom, box.y + box.height / 2)];
  });
  const middle = Number.isFinite(top) ? (top + bottom) / 2 : 0;
  if (services) put(services, left - APART - size(services).width / 2, middle);
  if (outside) put(outside, right + APART + size(outside).width / 2, middle);
  return places;
}
