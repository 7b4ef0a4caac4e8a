// Where everything stands: computed by us, in time that grows with the number of things and not faster, and stable: the same
// mesh always looks the same, and what opens pushes the rest aside without mixing it up. Pure.
//
// Members of a group are a packed grid. Groups stand on an ellipse while they are few, so that links between all of them can
// be told apart, and in rows when they are many. Addresses outside of the network are a group of their own, to the right.

export const CHIP = { width: 132, height: 34, gap: 16 };
const CLOSED = { width: 176, height: 64 };
const PADDING = { side: 22, top: 46, bottom: 22 };
const APART = 130;

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
}

function columns(count: number): number {
  return Math.max(1, Math.min(8, Math.ceil(Math.sqrt(count / 1.6))));
}

function size(group: Group): { width: number; height: number } {
  const count = group.members.length;
  if (count === 0) return CLOSED;
  const wide = columns(count);
  const high = Math.ceil(count / wide);
  return {
    width: Math.max(CLOSED.width, wide * CHIP.width + (wide - 1) * CHIP.gap + 2 * PADDING.side),
    height: high * CHIP.height + (high - 1) * CHIP.gap + PADDING.top + PADDING.bottom,
  };
}

/** The middle of each group. */
function middles(groups: Group[]): { x: number; y: number }[] {
  const sizes = groups.map(size);
  const widest = Math.max(...sizes.map((one) => one.width));
  const highest = Math.max(...sizes.map((one) => one.height));
  const few = groups.length <= 8;
  if (groups.length === 1) return [{ x: 0, y: 0 }];
  if (groups.length === 2) return [-1, 1].map((side) => ({ x: (side * (widest + APART)) / 2, y: 0 }));
  if (few) {
    const across = ((widest + APART) / Math.sin(Math.PI / groups.length)) / 2;
    const down = ((highest + APART) / Math.sin(Math.PI / groups.length)) / 2;
    return groups.map((_, at) => {
      const angle = (2 * Math.PI * at) / groups.length - Math.PI / 2;
      return { x: across * Math.cos(angle), y: down * Math.sin(angle) };
    });
  }
  const perRow = Math.ceil(Math.sqrt(groups.length * (highest / widest) * 1.7)) || 1;
  return groups.map((_, at) => ({
    x: ((at % perRow) - (perRow - 1) / 2) * (widest + APART / 2),
    y: Math.floor(at / perRow) * (highest + APART / 2),
  }));
}

function placeMembers(group: Group, box: Box, places: Places): void {
  const wide = columns(group.members.length);
  const left = box.x - (wide * CHIP.width + (wide - 1) * CHIP.gap) / 2 + CHIP.width / 2;
  const top = box.y - box.height / 2 + PADDING.top + CHIP.height / 2;
  group.members.forEach((id, at) => {
    places.members.set(id, {
      x: left + (at % wide) * (CHIP.width + CHIP.gap),
      y: top + Math.floor(at / wide) * (CHIP.height + CHIP.gap),
    });
  });
}

/** Places hosts and their members, and beside them what is outside. */
export function layout(hosts: Group[], outside: Group | undefined): Places {
  const places: Places = { groups: new Map(), members: new Map() };
  const put = (group: Group, x: number, y: number): Box => {
    const box = { x, y, ...size(group) };
    places.groups.set(group.id, box);
    placeMembers(group, box, places);
    return box;
  };
  let right = 0;
  let [top, bottom] = [Infinity, -Infinity];
  const centres = hosts.length ? middles(hosts) : [];
  hosts.forEach((group, at) => {
    const box = put(group, centres[at].x, centres[at].y);
    right = Math.max(right, box.x + box.width / 2);
    [top, bottom] = [Math.min(top, box.y - box.height / 2), Math.max(bottom, box.y + box.height / 2)];
  });
  if (outside) {
    const middle = Number.isFinite(top) ? (top + bottom) / 2 : 0;
    put(outside, right + APART + size(outside).width / 2, middle);
  }
  return places;
}
