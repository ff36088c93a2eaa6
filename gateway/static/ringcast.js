/**
 * The browser's end of Ringcast: subscribe, receive each message once and in order, come back without losing any.
 *
 *     import { Ringcast } from "https://gateway.example/static/ringcast.js";
 *     const ringcast = new Ringcast("https://gateway.example", { token: getToken, channels: ["topic:news"] });
 *     ringcast.on("message", ({ channel, event, data }) => show(channel, event, data));
 *     ringcast.on("reset", ({ channel }) => reload(channel));
 *
 * This object holds what lasts: listeners, the channels wanted, and the position of each. Links come and go below it
 * (`ringcast/line.js`), one class per transport, and all continue at the same positions, so that changing the transport
 * is nothing but a reconnect. `ringcast.d.ts` has the types.
 * @module
 */

import { Line } from "./ringcast/line.js";
import { Place } from "./ringcast/place.js";
import { LongPollLink, PollLink } from "./ringcast/poll.js";
import { Positions } from "./ringcast/positions.js";
import { Requests, RingcastError, post, receiptOf } from "./ringcast/requests.js";
import { EventStreamLink } from "./ringcast/sse.js";
import { Token } from "./ringcast/token.js";
import { WebSocketLink } from "./ringcast/websocket.js";
import { decodeCursor, encodeCursor } from "./ringcast/wire.js";

export { EventStreamLink, LongPollLink, PollLink, RingcastError, WebSocketLink, decodeCursor, encodeCursor };

/** From the best to the one that works nearly everywhere. */
const LADDER = [WebSocketLink, EventStreamLink, LongPollLink, PollLink];

export class Ringcast {
  #options;
  #request;
  #listeners = new Map();
  #positions;
  #wanted = new Map(); // channel -> the `since` it was subscribed with
  #unconfirmed = new Set(); // subscribed later on, and not yet known to be permitted
  #requests = new Requests();
  #token;
  #line;
  #placement = {};
  #status = { state: "connecting", transport: null };
  #everOpened = false;
  #syncing = false;
  #watchers = new AbortController();

  /**
   * Connects at once; add the listeners in the same tick.
   * @param {string | URL} [url] the gateway's; by default the one this module came from
   * @param {import("./ringcast.d.ts").Options} [options]
   */
  constructor(url = new URL("..", import.meta.url), options = {}) {
    const { channels = [], since, cursor, token, credentials = "same-origin" } = options;
    this.#options = options;
    this.#request = { url: new URL(url, globalThis.location?.href), credentials };
    this.#positions = new Positions(cursor);
    this.#token = new Token(token);
    for (const channel of channels) this.#wanted.set(channel, since);
    this.#line = new Line(
      ladderOf(options.transports ?? LADDER),
      this.#token,
      new Place(this.#request.url, options),
      { credentials, upgradeAfter: options.upgradeAfter },
      {
        wanted: () => this.#ask(),
        status: (status) => this.#tell(status),
        opened: (link) => this.#opened(link),
        frame: (link, frame) => this.#frame(link, frame),
        lost: () => this.#requests.lose(),
        refused: (code, reason) => this.#refuseUnconfirmed(code, reason),
        failed: (code, reason) => this.#fail(new RingcastError(code, reason)),
      },
    );
    this.#watch();
    this.#line.start();
  }

  /** The positions reached, to be kept and given to a later `Ringcast`: it continues there, over any transport. */
  get cursor() {
    return this.#positions.cursor;
  }

  /** The newest status; see the event `state`. */
  get status() {
    return this.#status;
  }

  /** The node that was heard of last, the user's partition, and the home that is elsewhere; see the event `placement`. */
  get placement() {
    return this.#placement;
  }

  /** The channels asked for. */
  get channels() {
    return [...this.#wanted.keys()];
  }

  /**
   * Listen for `message`, `reset`, `snapshot`, `unsubscribed`, `state`, `placement` or `error`.
   * @returns {() => void} stops listening
   */
  on(event, listener) {
    if (!this.#listeners.has(event)) this.#listeners.set(event, new Set());
    this.#listeners.get(event).add(listener);
    return () => this.#listeners.get(event).delete(listener);
  }

  /** Receive a channel too, from now on or from `since`. One that is not permitted is told as `error` and forgotten. */
  subscribe(channel, { since } = {}) {
    if (this.#wanted.has(channel)) return;
    this.#positions.enter(channel);
    this.#wanted.set(channel, since);
    if (this.#everOpened) this.#unconfirmed.add(channel);
    this.#syncSoon();
  }

  /** Receive a channel no longer, not even one that comes without asking; its position is forgotten. */
  unsubscribe(channel) {
    this.#forget(channel);
    this.#positions.leave(channel);
    this.#syncSoon();
  }

  /**
   * Publish, where the token permits it: over the WebSocket when there is one, else by a request.
   * @returns {Promise<import("./ringcast.d.ts").Receipt>} once it is stored; rejects with a RingcastError. After
   *   `lost` nobody knows whether it was stored: repeat it with the same `id`.
   */
  async publish(channel, event, data, { id, ...more } = {}) {
    const wire = this.#line.link?.wire;
    if (wire?.send && Object.keys(more).length === 0) {
      const frame = { type: "publish", channel, event, data, ...(id && { message_id: id }) };
      return receiptOf(await this.#requests.send(wire, frame));
    }
    return receiptOf(await post(this.#request, this.#token, { channel, event, data, ...more, ...(id && { id }) }));
  }

  /** Cut the line and stay away, positions kept, until `resume`. */
  suspend() {
    if (this.#status.state !== "closed") this.#line.halt({ state: "suspended" });
  }

  /** Come back after `suspend`, or after a refusal (`stopped`) whose cause is gone; cuts a back-off short. */
  resume() {
    if (["suspended", "stopped", "waiting"].includes(this.#status.state)) this.#line.start();
  }

  /** Leave for good. */
  close() {
    this.#watchers.abort();
    this.#line.halt({ state: "closed" });
  }

  /** What the next link asks for. */
  #ask() {
    const channels = this.channels;
    const added = channels.find((channel) => !this.#positions.has(channel) && this.#wanted.get(channel));
    const since = this.#everOpened ? this.#wanted.get(added) : this.#options.since;
    return { channels, cursor: this.cursor, since, snapshot: this.#options.snapshot };
  }

  #opened(link) {
    this.#everOpened = true;
    if (!link.wire.send) for (const channel of link.asked) this.#unconfirmed.delete(channel); // else it was refused
    this.#syncSoon();
  }

  #syncSoon() {
    if (this.#syncing) return;
    this.#syncing = true; // several changes in a row are one
    queueMicrotask(() => {
      this.#syncing = false;
      this.#sync();
    });
  }

  /** Make the link carry what is wanted: by frames where it can send, else by opening another. */
  #sync() {
    const link = this.#line.link;
    if (!link) return;
    const missing = this.channels.filter((channel) => !link.asked.has(channel));
    const surplus = [...link.asked].filter((channel) => this.#positions.isLeft(channel));
    if (!link.wire.send) {
      if (missing.length || surplus.length) this.#line.reopen();
      return;
    }
    for (const channel of surplus) {
      link.asked.delete(channel);
      // Whatever the answer: what still comes of this channel is dropped.
      this.#requests.send(link.wire, { type: "unsubscribe", channel }).catch(() => undefined);
    }
    for (const channel of missing) {
      link.asked.add(channel);
      const since = this.#wanted.get(channel);
      const position = this.#positions.has(channel) ? { offset: this.#positions.get(channel) } : since && { since };
      const frame = { type: "subscribe", channel, ...position, ...(this.#options.snapshot && { snapshot: true }) };
      this.#requests.send(link.wire, frame).catch((error) => {
        if (error.code === "lost") return; // the next link asks for it at once
        this.#forget(channel);
        this.#fail(error);
      });
    }
  }

  #forget(channel) {
    this.#wanted.delete(channel);
    this.#unconfirmed.delete(channel);
    this.#positions.forget(channel);
  }

  /** A refusal right after channels were added concerns these; without them the rest goes on. */
  #refuseUnconfirmed(code, reason) {
    if ((code !== 4003 && code !== 4008) || this.#unconfirmed.size === 0) return false;
    for (const channel of this.#unconfirmed) this.#forget(channel);
    this.#fail(new RingcastError(code, reason));
    return true;
  }

  #frame(link, frame) {
    if (this.#requests.settle(frame) && frame.type !== "subscribed") return;
    switch (frame.type) {
      case "message":
        if (this.#positions.take(frame, this.#line.opening)) this.#emit("message", frame);
        break;
      case "welcome":
        this.#place(frame);
        for (const entry of frame.channels ?? []) {
          link.asked.add(entry.channel); // some come without asking
          this.#begin(entry);
        }
        break;
      case "subscribed":
        this.#begin(frame);
        break;
      case "reset":
        if (this.#positions.begin(frame)) this.#emit("reset", frame);
        break;
      case "unsubscribed":
        if (this.#positions.isLeft(frame.channel)) break;
        this.#forget(frame.channel);
        link.asked.delete(frame.channel);
        this.#emit("unsubscribed", frame);
        break;
      case "error":
        this.#fail(new RingcastError(frame.code, frame.message));
        break;
      default: // ping, checkpoint, goodbye; what a newer gateway may send beyond that is not needed
        this.#positions.advance(frame.cursor);
    }
  }

  #place({ node, partition, home }) {
    const before = this.#placement;
    this.#placement = { node, partition, home };
    if (before.node !== node || before.partition !== partition || before.home !== home) {
      this.#emit("placement", this.#placement);
    }
  }

  #begin(entry) {
    if (!this.#positions.begin(entry)) return;
    const { channel, offset, snapshot } = entry;
    this.#unconfirmed.delete(channel);
    if (snapshot) this.#emit("snapshot", { channel, offset, messages: snapshot });
  }

  /** What the browser knows about the network spares waiting for it to be noticed. */
  #watch() {
    const { signal } = this.#watchers;
    const back = (event) => event.persisted && this.#line.check(true); // from the browser's back-forward cache
    const visible = () => document.visibilityState === "visible" && this.#line.check(false);
    globalThis.addEventListener?.("online", () => this.#line.check(true), { signal });
    globalThis.addEventListener?.("pageshow", back, { signal });
    globalThis.document?.addEventListener("visibilitychange", visible, { signal });
  }

  #tell(status) {
    this.#status = status;
    this.#emit("state", status);
  }

  #fail(error) {
    this.#emit("error", error);
  }

  #emit(event, detail) {
    for (const listener of this.#listeners.get(event) ?? []) {
      try {
        listener(detail);
      } catch (error) {
        queueMicrotask(() => {
          throw error; // the page's own fault: shown as such, and nothing of ours stops
        });
      }
    }
  }
}

function ladderOf(transports) {
  return transports.map((wish) => {
    const link = typeof wish === "string" ? LADDER.find(({ transport }) => transport === wish) : wish;
    if (!link) throw new TypeError(`there is no transport '${wish}'; use websocket, sse, longpoll or poll`);
    return link;
  });
}
