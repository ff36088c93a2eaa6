import { EventStreamParser, FIRST_BYTES_WITHIN, WELCOME_WITHIN, ask, refusal } from "./wire.js";

/**
 * A response that does not end, read with `fetch`.
 *
 * Not with EventSource: that can send no header, so the token or a ticket would have to be in the URL; it hides why it
 * was refused; it cannot POST a cursor that is too long for a URL; and nobody could tell a proxy that buffers from a
 * quiet channel. A bare EventSource with a stream ticket works too, for pages that do not load this client.
 */
export class EventStreamLink {
  static transport = "sse";
  static heartbeats = true;

  #abort = new AbortController();
  #timer;
  #over = false;

  /** @param {import("../ringcast.d.ts").Desk} desk */
  constructor(desk) {
    const end = (how) => {
      if (this.#over) return;
      this.close();
      desk.end(how);
    };
    this.#read(desk, end).catch((error) => end({ blocked: true, reason: `not an event stream of ours: ${error}` }));
  }

  async #read(desk, end) {
    let heard = false;
    const expect = (milliseconds, reason) => {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => end({ blocked: true, reason }), milliseconds);
    };
    expect(FIRST_BYTES_WITHIN, "no first bytes of the event stream: something buffers it");
    let response;
    try {
      const headers = { Accept: "text/event-stream" };
      response = await ask(desk, "v1/sse", {}, { headers, signal: this.#abort.signal });
    } catch (error) {
      return end({ blocked: true, reason: String(error) });
    }
    if (!response.ok || !response.headers.get("Content-Type")?.startsWith("text/event-stream")) {
      return end(await refusal(response));
    }
    const parser = new EventStreamParser();
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let reason = "the event stream ended";
    try {
      for (;;) {
        const { value, done } = await reader.read();
        if (done || this.#over) break;
        expect(WELCOME_WITHIN, "the event stream opened, but nothing came through");
        for (const { event, data, id } of parser.push(value)) {
          heard = true;
          if (data) desk.frame(JSON.parse(data));
          if (id !== undefined && !this.#over) desk.frame({ type: "checkpoint", cursor: id });
          if (this.#over) return undefined;
        }
        if (heard) clearTimeout(this.#timer);
      }
    } catch (error) {
      reason = String(error); // the connection broke
    }
    return end({ blocked: !heard, reason });
  }

  close() {
    this.#over = true;
    clearTimeout(this.#timer);
    this.#abort.abort();
  }
}
