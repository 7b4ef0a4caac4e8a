// The pictures of the past that the node keeps: it alone knows which, and forgets some that lie between others. Pure.

/** Seconds between two pictures that a node keeps, at least. */
const EVERY = 5;

/** Whether a node may keep others than when it said which, now that there is a picture made at this second. */
export function isStale(times: number[], at: number): boolean {
  const last = times.at(-1);
  return last === undefined || at >= last + EVERY || at < last;
}

/** The place of the time that is nearest to one; -1 if there is none. */
export const nearest = (times: number[], wanted: number): number =>
  times.reduce((best, at, place) => (best < 0 || Math.abs(at - wanted) < Math.abs(times[best] - wanted) ? place : best), -1);
