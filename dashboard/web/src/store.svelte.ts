// What the page knows: the picture, kept up to date by the server's events, and what each rate was of late.

import { isStale } from "./kept";
import { latest } from "./latest";
import { stepped } from "./picture";
import type { Link, Step, Topology, Whole } from "./types";

/** How many samples of a rate are kept for its chart. */
const SAMPLES = 90;

export type Phase = "starting" | "login" | "live" | "lost";

class Store {
  phase = $state<Phase>("starting");
  /** Why there is no login, if one was tried. */
  refusal = $state("");
  /** The newest picture. */
  now = $state.raw<Topology | null>(null);
  /** The picture of the past that is shown, if one is. */
  past = $state.raw<Topology | null>(null);
  /** When the pictures were made that the node keeps. */
  times = $state.raw<number[]>([]);
  /** Bytes a second, both ways, by the id of flow or link. */
  rates = $state.raw<Map<string, number[]>>(new Map());

  private seq = 0;
  private asking = false;
  private resting = false;
  private again: ReturnType<typeof setTimeout> | undefined;
  private events: EventSource | undefined;
  private carried = new Map<string, { at: number; bytes: number }>();

  get shown(): Topology | null {
    return this.past ?? this.now;
  }

  /** Trades the code of the link for a session, then looks. */
  async start(): Promise<void> {
    const code = new URLSearchParams(location.hash.slice(1)).get("code");
    if (code) {
      // Out of sight and of the history: it is good once.
      history.replaceState(null, "", location.pathname);
      await this.login(code);
    } else {
      await this.connect();
    }
  }

  async login(code: string): Promise<void> {
    try {
      const answer = await fetch("/api/login", {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ code }),
      });
      this.refusal = answer.ok ? "" : (await answer.text()).trim();
    } catch {
      this.refusal = "the node does not answer; try again when it does";
    }
    if (this.refusal === "") await this.connect();
    else this.phase = "login";
  }

  async logout(): Promise<void> {
    this.events?.close();
    try {
      await fetch("/api/logout", { method: "POST" });
      this.refusal = "";
    } catch {
      this.refusal = "the node did not answer, so you are logged out of it only when you are here again and log out";
    }
    this.now = this.past = null;
    this.phase = "login";
  }

  /** Listens no more until it is woken. */
  rest(): void {
    this.resting = true;
    this.events?.close();
  }

  wake(): void {
    this.resting = false;
    if (this.phase !== "login") void this.connect();
  }

  /** Looks for a session, then listens; the browser comes back by itself when the server does. */
  private async connect(): Promise<void> {
    this.events?.close();
    clearTimeout(this.again);
    if (this.resting) return;
    try {
      const answer = await fetch("/api/history");
      if (answer.status === 401) {
        this.phase = "login";
        return;
      }
      if (answer.ok) this.times = await answer.json();
    } catch {
      this.retry();
      return;
    }
    if (this.resting) return;
    const events = new EventSource("/api/events");
    this.events = events;
    events.addEventListener("whole", (event) => this.takeWhole(JSON.parse(event.data)));
    events.addEventListener("step", (event) => this.takeStep(JSON.parse(event.data)));
    events.addEventListener("error", () => this.retry());
  }

  /** Asks for everything anew after a while; whether the session still holds is found out then. */
  private retry(): void {
    this.events?.close();
    if (this.phase !== "login") this.phase = this.now ? "lost" : "starting";
    clearTimeout(this.again);
    this.again = setTimeout(() => void this.connect(), 1500);
  }

  private takeWhole({ seq, topology }: Whole): void {
    this.seq = seq;
    this.take(topology);
  }

  private takeStep(step: Step): void {
    if (!this.now || step.seq !== this.seq + 1) {
      void this.connect();
      return;
    }
    this.seq = step.seq;
    this.take(stepped(this.now, step));
  }

  private take(topology: Topology): void {
    this.phase = "live";
    this.now = topology;
    this.sample(topology);
    if (isStale(this.times, topology.at)) void this.ask();
  }

  /** Asks which pictures the node keeps; while there is no answer, those that it kept. */
  private async ask(): Promise<void> {
    if (this.asking) return;
    this.asking = true;
    try {
      const answer = await fetch("/api/history");
      if (answer.ok) this.times = await answer.json();
    } catch {
      // The node does not answer, which is told elsewhere.
    } finally {
      this.asking = false;
    }
  }

  /** Notes every rate; what is gone is forgotten. */
  private sample(topology: Topology): void {
    const rates = new Map<string, number[]>();
    const note = (id: string, value: number): void => {
      rates.set(id, [...(this.rates.get(id) ?? []).slice(1 - SAMPLES), value]);
    };
    for (const flow of topology.flows) note(flow.id, flow.sent_rate + flow.received_rate);
    for (const link of topology.links) note(link.id, this.linkRate(link, topology.at));
    this.rates = rates;
  }

  private linkRate(link: Link, at: number): number {
    const bytes = link.traffic.sent_bytes + link.traffic.received_bytes;
    const before = this.carried.get(link.id);
    if (before && at <= before.at) return this.rates.get(link.id)?.at(-1) ?? 0;
    this.carried.set(link.id, { at, bytes });
    return before && bytes >= before.bytes ? (bytes - before.bytes) / (at - before.at) : 0;
  }

  /**
   * Shows the picture of a second, or the nearest that the node keeps; the present again without one. When none comes, what is
   * shown stays. Of seconds that are asked for while a picture is on its way the last is shown.
   */
  show = latest(async (at: number | null) => {
    const answer = at === null ? undefined : await fetch(`/api/history/${at}`);
    if (answer && !answer.ok) throw new Error(await answer.text());
    this.past = answer ? ((await answer.json()) as Whole).topology : null;
    if (this.past && this.past.at !== at) await this.ask();
  });
}

export const store = new Store();
