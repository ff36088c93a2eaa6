import { decodeCursor, encodeCursor } from "./wire.js";

const MEANWHILE = 10_000; // offsets of a channel that are remembered while a link is opened; what is above may come twice

/** How far each channel was seen, whichever link brought it: all that outlives a connection, and all it takes. */
export class Positions {
  #offsets;
  #left = new Set();
  #meanwhile = new Map(); // by channel: the offsets that came while another link was opened, and the highest of them

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

  /**
   * A message: whether it is a new one, and then its offset is the position. `beside` while another link is opened beside
   * the one that it came on. That one presents where we are now, and where it begins with a reset, it goes back to there:
   * what has come meanwhile comes again.
   */
  take({ channel, offset }, beside = false) {
    return this.#moveTo(channel, offset) && !this.#cameMeanwhile(channel, offset, beside);
  }

  #moveTo(channel, offset) {
    if (this.#left.has(channel) || this.#offsets.get(channel) >= offset) return false;
    this.#offsets.set(channel, offset);
    return true;
  }

  #cameMeanwhile(channel, offset, beside) {
    let seen = this.#meanwhile.get(channel);
    const again = seen?.offsets.has(offset) ?? false;
    if (beside) {
      if (!seen) this.#meanwhile.set(channel, (seen = { offsets: new Set(), last: 0 }));
      if (seen.offsets.size < MEANWHILE) {
        seen.offsets.add(offset);
        seen.last = Math.max(seen.last, offset);
      }
    } else if (seen && offset >= seen.last) {
      this.#meanwhile.delete(channel);
    }
    return again;
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
    if (cursor) for (const [channel, offset] of decodeCursor(cursor)) this.#moveTo(channel, offset);
  }

  forget(channel) {
    this.#offsets.delete(channel);
    this.#meanwhile.delete(channel);
  }

  leave(channel) {
    this.forget(channel);
    this.#left.add(channel);
  }

  enter(channel) {
    this.#left.delete(channel);
  }
}
