// Numbers as people read them.

/** `999 B`, `1.5 kB`, `20.1 MB`. */
export function bytes(count: number): string {
  if (count < 1000) return `${Math.round(count)} B`;
  const units = ["kB", "MB", "GB", "TB", "PB"];
  let value = count / 1000;
  let unit = 0;
  while (value >= 999.95 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value.toFixed(value < 100 ? 1 : 0)} ${units[unit]}`;
}

/** Bytes a second. */
export const rate = (count: number): string => `${bytes(count)}/s`;

/** A time ago, in the largest unit that says something. */
export function ago(seconds: number): string {
  if (seconds < 1) return "now";
  if (seconds < 120) return `${Math.round(seconds)} s ago`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86400)} d ago`;
}

/** Thousandths, of one core or of what was sent. */
export const share = (permille: number | null): string => (permille === null ? "" : `${(permille / 10).toFixed(permille < 100 ? 1 : 0)} %`);

/** `tcp/80` where every address is listened on, else with the address. */
export function listening({ protocol, ip, port }: { protocol: string; ip: string; port: number }): string {
  if (ip === "0.0.0.0" || ip === "::") return `${protocol}/${port}`;
  return `${protocol}/${ip.includes(":") ? `[${ip}]` : ip}:${port}`;
}

/** The address in `192.0.2.1:80` and `[2001:db8::1]:80`. */
export const hostOf = (place: string): string =>
  place.startsWith("[") ? place.slice(1, place.indexOf("]")) : (place.split(":")[0] ?? place);

export const milliseconds = (us: number): string =>
  us < 10_000 ? `${(us / 1000).toFixed(2)} ms` : `${(us / 1000).toFixed(0)} ms`;

export const count = (n: number, one: string, many = `${one}s`): string => `${n} ${n === 1 ? one : many}`;
