// What the server says, as the node API's document has it (/v1/topology).

/** Which table is shown. */
export type Tab = "flows" | "services" | "containers" | "processes";

export type PeerState = "myself" | "connected" | "unreachable";
export type EndKind = "container" | "host" | "service" | "unknown" | "outside";

export interface Problem {
  cause: string;
  fix: string;
}

export interface Capture {
  connections: number;
  lost: number;
  untold: number;
  accounting: boolean;
  interval_ms: number;
  took_us: number;
  unseen: number;
  failure: string | null;
}

export interface Process {
  pid: number;
  name: string;
  cpu_permille: number | null;
  memory_bytes: number;
  ports?: { protocol: string; ip: string; port: number }[];
}

/** What runs in a container, or on a host outside of all containers. */
export interface Inside {
  processes: Process[];
  more_processes: number;
  cpu_permille: number | null;
  memory_bytes: number;
}

/** What the runtime that made a container says of it. */
export interface Runtime {
  runtime: string;
  id: string;
  name: string;
  image: string;
  pod?: string;
  namespace?: string;
  workload?: string;
  labels?: Record<string, string>;
}

export interface Host {
  id: string;
  name: string;
  state: PeerState;
  version: string | null;
  endpoints: string[];
  blocks: string[];
  exposed: { ip: string; ip6: string | null } | null;
  silent: string | null;
  more_containers: number;
  more_links: number;
  capture: Capture | null;
  problems: Problem[];
  inside?: Inside;
}

export interface Container {
  id: string;
  /** What people call it. */
  title: string;
  /** The first attachment of the same container, if this is a further one. */
  same_as?: string;
  host: string;
  /** As it was attached. */
  name: string;
  ifname: string;
  network: string;
  ip: string;
  ip6: string | null;
  labels: Record<string, string>;
  attached_at: number;
  alive: boolean;
  inside?: Inside;
  runtime?: Runtime;
}

export interface Link {
  id: string;
  a: string;
  b: string;
  state: PeerState;
  rtt_us: number | null;
  loss_permille: number | null;
  /** The host that hands on what the two cannot send each other straight. */
  via?: string;
  mtu: { bytes: number; reason: string } | null;
  suite: string | null;
  traffic: { sent_bytes: number; received_bytes: number; sent_packets: number; received_packets: number };
}

export interface Backend {
  address: string;
  container?: string;
  node?: string;
  state: "ready" | "unreachable" | "failing" | "unchecked" | "refused";
}

export interface Service {
  id: string;
  name: string;
  addresses: string[];
  ports: { port: number; target: number; protocol: string; node_port?: number }[];
  selector?: Record<string, string>;
  affinity_s?: number;
  node: string;
  made_at: number;
  backends: Backend[];
  refused: string[];
}

/** What the kernel knows of the open TCP connections of a flow. */
export interface Tcp {
  sockets: number;
  rtt_us: number | null;
  retransmits: number;
}

export interface End {
  kind: EndKind;
  id: string;
  name: string;
  ip: string;
}

export interface Flow {
  id: string;
  from: End;
  to: End;
  protocol: string;
  port: number;
  via: string | null;
  /** The Service that has the address of `via`. */
  service?: string;
  tcp?: Tcp;
  connections: number;
  open: number;
  refused: number;
  unanswered: number;
  sent_bytes: number;
  sent_packets: number;
  received_bytes: number;
  received_packets: number;
  sent_rate: number;
  received_rate: number;
  failing: boolean;
  last_at: number;
}

export interface Topology {
  at: number;
  node: string;
  verdict: "ok" | "degraded";
  summary: string;
  problems: Problem[];
  hosts: Host[];
  containers: Container[];
  links: Link[];
  services: Service[];
  flows: Flow[];
}

export interface Whole {
  seq: number;
  topology: Topology;
}

interface Changes<T> {
  set?: T[];
  gone?: string[];
}

export interface Step {
  seq: number;
  at: number;
  verdict: Topology["verdict"];
  summary: string;
  problems: Problem[];
  hosts: Changes<Host>;
  containers: Changes<Container>;
  links: Changes<Link>;
  services: Changes<Service>;
  flows: Changes<Flow>;
}
