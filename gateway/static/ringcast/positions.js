import { decodeCursor, encodeCursor } from "./wire.js";

/** How far each channel was seen, whichever link brought it: all that outlives a connection, and all it takes. */
export class Positions {
  #offsets;
  #left = new Set();

  /** @param {string | undefined} cursor */
  constructor(cursor) {
    this.#offsets = cursor ? decodeCursor(cursor) : new Map();
  }

  get cursor() {
    return encodeCursor(this.#offsets);
  }

  has(channel) {
    return this.#offsets.has(channel);
  }

  get(channel) {
    return this.#offsets.get(channel);
  }

  /** Whether what comes of this channel is not wanted any more. */
  isLeft(channel) {
    return this.#left.has(channel);
  }

  /** A message: whether it is a new one, and then its offset is the position. */
  take({ channel, offset }) {
    if (this.#left.has(channel) || this.#offsets.get(channel) >= offset) return false;
    this.#offsets.set(channel, offset);
    return true;
  }

  /** What the gateway begins a channel at, in `welcome`, `subscribed` or `reset`, replaces our own; false when left. */
  begin({ channel, offset, recovered }) {
    if (this.#left.has(channel)) return false;
    // A link that was opened beside another presented a position which the other has since moved on from.
    if (!recovered || !(this.#offsets.get(channel) > offset)) this.#offsets.set(channel, offset);
    return true;
  }

  /** Quiet channels move on as well: the gateway tells where all of them are. */
  advance(cursor) {
    if (cursor) for (const [channel, offset] of decodeCursor(cursor)) this.take({ channel, offset });
  }

  forget(channel) {
    this.#offsets.delete(channel);
  }

  leave(channel) {
    this.forget(channel);
    this.#left.add(channel);
  }

  enter(channel) {
    this.#left.delete(channel);
  }
}
