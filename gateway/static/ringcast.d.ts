/** Types of the browser client; see `ringcast.js` for how it is used and `docs/protocol.md` for the wire. */

/** An opaque, ever growing number below 2^53; only comparing two of the same channel means anything. */
export type Offset = number;

/** A message as it was published, in its envelope. */
export interface Message<Data = unknown> {
  type: "message";
  channel: string;
  offset: Offset;
  id: string;
  event: string;
  /** JSON as `JSON.parse` reads it: integers beyond 2^53 lose their last digits there. */
  data: Data;
  /** When it was stored, RFC 3339 in UTC with milliseconds. */
  time: string;
  key?: string;
  version?: number[];
  deleted?: true;
}

/**
 * The `data` of the messages of `presence:<channel>`: who is subscribed there. The event is `join`, `update` or
 * `leave`, the key is the user, and a `leave` is `deleted`. With `snapshot: true` the members come first.
 */
export interface Member<Info = unknown> {
  user: string;
  /** The `info` claim of the user's newest token. */
  info: Info | null;
}

/** Messages of this channel may be missing before `offset`: load the channel's state anew. What follows is whole. */
export interface Reset {
  type: "reset";
  channel: string;
  /** `unknown`: never issued by this store; `lost`: the store lost something; `trimmed`: away for too long. */
  reason: "unknown" | "lost" | "trimmed" | (string & {});
  offset: Offset;
}

/** The newest message of each key of a channel, as of `offset`. */
export interface Snapshot {
  channel: string;
  offset: Offset;
  messages: Message[];
}

/** An acknowledged publish. */
export interface Receipt {
  channel: string;
  offset: Offset;
  id: string;
  duplicate: boolean;
}

export type TransportName = "websocket" | "sse" | "longpoll" | "poll";

export interface Status {
  /**
   * - `connecting`: trying `transport`
   * - `open`: receiving over `transport`
   * - `waiting`: disconnected; the next attempt is in `retryIn`
   * - `suspended`: by `suspend()`
   * - `stopped`: refused by the gateway (40xx); `resume()` tries again
   * - `closed`: by `close()`
   */
  state: "connecting" | "open" | "waiting" | "suspended" | "stopped" | "closed";
  transport: TransportName | (string & {}) | null;
  /** Milliseconds. */
  retryIn?: number;
  /** Why the last link ended, where the gateway said so: a number of its table of close codes. */
  code?: number;
  reason?: string;
}

/** Where this client is, and where it is best placed. */
export interface Placement {
  /** The name of the node that was heard of last. */
  node?: string;
  /** Of the token's user. */
  partition?: number;
  /** The address of the node that this client connects to next time, where that is another one. */
  home?: string;
}

export interface Options {
  /**
   * The bearer token, or what gets one: called before the first connect and whenever the gateway says that the token
   * has expired. When it throws or rejects, that is told as `error` and tried again after a back-off.
   */
  token?: string | (() => string | undefined | Promise<string | undefined>);
  /** Beside those that the token brings with it (`user:<sub>`, `jobs:<sub>`). */
  channels?: string[];
  /** Where to continue: the `cursor` of an earlier Ringcast, also one that used another transport. */
  cursor?: string;
  /** Where to begin without a position: `latest` (the default), `earliest`, a duration such as `15m`, or RFC 3339. */
  since?: string;
  /** Ask for the snapshot of every channel that is a table, whatever `since` says, when it is subscribed. */
  snapshot?: boolean;
  /** Which transports to use, the best first; all four by default. A class of one's own must behave as a `Link`. */
  transports?: (TransportName | LinkClass)[];
  /** For gateways that read a cookie: `include` where the gateway is of another site. Default `same-origin`. */
  credentials?: RequestCredentials;
  /** The user's partition, where the page knows it before the gateway has said it; proxies place the client by it. */
  partition?: number;
  /**
   * Hosts that the token may go to beside that of the gateway's URL and those below it, when a node names one of them as
   * this client's home: names, or `*.` and a domain.
   */
  homes?: string[];
  /** Milliseconds until a better transport is tried again, doubling up to five minutes. Default 15,000. */
  upgradeAfter?: number;
}

export interface PublishOptions {
  /** The message's id and idempotency key: a repeat within the gateway's window is stored once. */
  id?: string;
  key?: string;
  version?: number[];
  deleted?: boolean;
  /** Seconds. */
  ttl?: number;
}

export interface Events {
  /** Once each, in the order of its channel. */
  message: Message;
  reset: Reset;
  snapshot: Snapshot;
  /** The gateway took a channel away, because the token no longer permits it. */
  unsubscribed: { channel: string };
  state: Status;
  placement: Placement;
  /** A refusal that concerns one request or channel, a stop, or a token callback that failed. */
  error: RingcastError;
}

/** `code` is a number of the gateway's table, a problem's code such as `forbidden`, or `lost` or `token`. */
export class RingcastError extends Error {
  readonly code: number | string;
  constructor(code: number | string, message: string);
}

export class Ringcast {
  constructor(url?: string | URL, options?: Options);
  readonly cursor: string;
  readonly status: Status;
  readonly channels: string[];
  readonly placement: Placement;
  on<Name extends keyof Events>(event: Name, listener: (detail: Events[Name]) => void): () => void;
  subscribe(channel: string, options?: { since?: string }): void;
  unsubscribe(channel: string): void;
  publish(channel: string, event: string, data: unknown, options?: PublishOptions): Promise<Receipt>;
  suspend(): void;
  resume(): void;
  close(): void;
}

/** What a link asks of the gateway. */
export interface Wanted {
  channels: string[];
  /** Empty when there is no position yet. */
  cursor: string;
  since?: string;
  snapshot?: boolean;
  partition?: number;
}

/** Why a link ended. With a `code` it is the gateway's own word; without one nobody said why. */
export interface End {
  code?: number;
  reason: string;
  /** Nobody said why, and this transport has not shown here that it works. */
  blocked?: boolean;
  /** Nor would any transport below it work. */
  unreachable?: boolean;
  /** Milliseconds to stay away at least. */
  wait?: number;
}

/** What a link is given: where to connect, and whom to tell. It calls nothing before its constructor has returned. */
export interface Desk {
  url: URL;
  token: string | undefined;
  credentials: RequestCredentials;
  /** Asked anew for every request, for positions move. */
  wanted(): Wanted;
  /** The gateway's frames; a `checkpoint` brings nothing but a cursor. The first means that the link works. */
  frame(frame: { type: string; [member: string]: unknown }): void;
  /** At most once, and nothing after it. */
  end(end: End): void;
}

/** One connection over one transport; it begins when it is made, never comes back by itself, and is thrown away. */
export interface Link {
  /** Where frames can be sent as well. */
  send?(frame: object): void;
  /** Stop at once and tell nothing more. */
  close(): void;
}

export interface LinkClass {
  new (desk: Desk): Link;
  transport: string;
  /** Whether silence means something: the gateway sends a `ping` every `heartbeat_ms`. */
  heartbeats?: boolean;
}

export const WebSocketLink: LinkClass;
export const EventStreamLink: LinkClass;
export const LongPollLink: LinkClass;
export const PollLink: LinkClass;

/** Positions by channel as a cursor; empty when there are none. */
export function encodeCursor(positions: Map<string, Offset>): string;
/** Throws a TypeError when it is not a cursor. */
export function decodeCursor(cursor: string): Map<string, Offset>;
