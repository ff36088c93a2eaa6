import { ask, refusal } from "./wire.js";

/** Seconds that one long poll may be held; most proxies cut a silent request after 30. */
const WAIT = 25;
/** Milliseconds beyond that in which an answer has to come. */
const GRACE = 10_000;
/** Milliseconds between two polls that are answered at once, unless the gateway asks for more. */
const INTERVAL = 3_000;

/**
 * Requests in a row, each continuing where the last answer ended. The first asks without waiting, so that a link is
 * known to work, and what was missed is there, within one round trip.
 */
class Polling {
  #abort = new AbortController();
  #timer;
  #wake;
  #over = false;

  /**
   * @param {import("../ringcast.d.ts").Desk} desk
   * @param {number} wait seconds that the gateway may hold a request
   */
  constructor(desk, wait) {
    this.#run(desk, wait);
  }

  async #run(desk, wait) {
    let held = 0; // seconds, of the request at hand
    let tag = ""; // of the last answer, so that "nothing new" costs no body
    let proven = false; // what makes this way of polling different was seen to work
    while (!this.#over) {
      const signal = AbortSignal.any([this.#abort.signal, AbortSignal.timeout(1000 * held + GRACE)]);
      const headers = wait === 0 && tag ? { "If-None-Match": tag } : {};
      let end;
      let more = false;
      let interval = wait === 0 ? INTERVAL : 0;
      try {
        const response = await ask(desk, "v1/poll", { wait: held }, { headers, signal });
        const told = Number.parseFloat(response.headers.get("Ringcast-Poll-Interval") ?? "0"); // seconds
        interval = Math.max(interval, 1000 * told);
        const answer = await answerOf(response);
        if (this.#over) return;
        if (answer.end) {
          end = answer.end;
          if (end.code === undefined && held > 0 && !proven) end.blocked = true; // short ones work, held ones do not
        } else {
          desk.frame({ type: "welcome", ...placementOf(response) });
          if (this.#over) return;
          tell(desk, answer);
          tag = response.headers.get("ETag") ?? tag;
          more = answer.more;
          proven ||= held === wait;
        }
      } catch (error) {
        end = { blocked: !proven, unreachable: held === 0, reason: String(error) };
      }
      if (end) {
        if (!this.#over) desk.end(end);
        return;
      }
      held = more ? 0 : wait;
      if (!more && interval) await this.#pause(interval);
    }
  }

  /** @param {number} milliseconds */
  #pause(milliseconds) {
    return new Promise((resolve) => {
      this.#wake = resolve;
      this.#timer = setTimeout(resolve, milliseconds);
    });
  }

  close() {
    this.#over = true;
    clearTimeout(this.#timer);
    this.#wake?.();
    this.#abort.abort();
  }
}

/** What a stream's welcome says of where this client belongs. @param {Response} response */
function placementOf({ headers }) {
  const partition = Number.parseInt(headers.get("Ringcast-Partition") ?? "", 10);
  return {
    node: headers.get("Ringcast-Node") ?? undefined,
    home: headers.get("Ringcast-Home") ?? undefined,
    ...(partition >= 0 && { partition }),
  };
}

/** What a poll brought, or why it is not an answer of the gateway's. @param {Response} response */
async function answerOf(response) {
  if (response.status === 204 || response.status === 304) {
    return { messages: [], resets: [], cursor: response.headers.get("Ringcast-Cursor"), more: false };
  }
  const type = response.headers.get("Content-Type") ?? "";
  if (response.status === 200 && type.startsWith("application/json")) return response.json();
  return { end: await refusal(response) };
}

/**
 * One answer as the frames that a stream would have brought. It lists resets apart from the messages; each belongs
 * before the first message above it, for what is not above a position is skipped.
 */
function tell(desk, { messages, resets, snapshot = [], cursor }) {
  for (const [channel, values] of byChannel(snapshot)) {
    desk.frame({ type: "subscribed", channel, offset: values.at(-1).offset, snapshot: values });
  }
  const due = byChannel(resets);
  for (const message of messages) {
    const waiting = due.get(message.channel) ?? [];
    while (waiting.length && message.offset > waiting[0].offset) desk.frame(waiting.shift());
    desk.frame(message);
  }
  for (const rest of due.values()) for (const reset of rest) desk.frame(reset);
  desk.frame({ type: "checkpoint", cursor });
}

/** @returns {Map<string, any[]>} */
function byChannel(entries) {
  const groups = new Map();
  for (const entry of entries) groups.set(entry.channel, [...(groups.get(entry.channel) ?? []), entry]);
  return groups;
}

/** Requests that the gateway holds until something happens: nearly as quick as a stream. */
export class LongPollLink extends Polling {
  static transport = "longpoll";

  /** @param {import("../ringcast.d.ts").Desk} desk */
  constructor(desk) {
    super(desk, WAIT);
  }
}

/** Requests at intervals, answered at once: for networks that cut whatever stays open. */
export class PollLink extends Polling {
  static transport = "poll";

  /** @param {import("../ringcast.d.ts").Desk} desk */
  constructor(desk) {
    super(desk, 0);
  }
}
