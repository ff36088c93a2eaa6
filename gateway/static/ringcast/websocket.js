import { FIRST_BYTES_WITHIN, WELCOME_WITHIN, addressOf, bodyOf, placeOf, queryOf } from "./wire.js";

/** What a subprotocol may be made of (RFC 9110, token); a JWT is, an opaque token need not be. */
const SUBPROTOCOL = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;

/**
 * Both ways at once, one JSON object a text frame.
 *
 * The token travels as a subprotocol, which no access log shows, or, where it or the cursor does not fit into a
 * handshake, in a first `connect` frame. A browser tells a script nothing about a handshake that failed, so the gateway
 * completes it and says why in the close frame: whatever has no code of its table is not its word.
 */
export class WebSocketLink {
  static transport = "websocket";
  static heartbeats = true;

  #socket;
  #timer;
  #welcomed = false;
  #over = false;

  /** @param {import("../ringcast.d.ts").Desk} desk */
  constructor(desk) {
    const wanted = desk.wanted();
    const url = addressOf(desk.url, "v1/ws");
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    const query = queryOf(wanted);
    const inFrame = !query || (desk.token && !SUBPROTOCOL.test(desk.token));
    url.search = inFrame ? placeOf(wanted) : query.toString();
    const protocols = ["ringcast.v1"];
    if (desk.token && !inFrame) protocols.push(`bearer.${desk.token}`);

    const end = (how) => {
      if (this.#over) return;
      this.close();
      desk.end(how);
    };
    const expect = (milliseconds, reason) => {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => end({ blocked: true, reason }), milliseconds);
    };
    if (!query && !desk.token) {
      // With a cookie the handshake has to say everything, for only a token can be sent in a frame.
      queueMicrotask(() => end({ blocked: true, reason: "the cursor is too long for a handshake" }));
      return;
    }
    try {
      this.#socket = new WebSocket(url, protocols);
    } catch (error) {
      // Mixed content, or a content security policy: the browser itself blocks it.
      queueMicrotask(() => end({ blocked: true, reason: String(error) }));
      return;
    }
    expect(FIRST_BYTES_WITHIN, "the WebSocket handshake was not answered");
    this.#socket.onopen = () => {
      expect(WELCOME_WITHIN, "the WebSocket opened, but nothing came through");
      if (inFrame) this.send({ type: "connect", ...(desk.token && { token: desk.token }), ...bodyOf(wanted) });
    };
    this.#socket.onmessage = ({ data }) => {
      if (this.#over) return;
      const frame = JSON.parse(data);
      if (frame.type === "welcome") {
        this.#welcomed = true;
        clearTimeout(this.#timer);
      }
      desk.frame(frame);
    };
    this.#socket.onclose = ({ code, reason }) => {
      if (code >= 4000) end({ code, reason });
      else end({ blocked: !this.#welcomed, reason: reason || `the WebSocket was closed (${code})` });
    };
  }

  /** @param {object} frame */
  send(frame) {
    this.#socket.send(JSON.stringify(frame));
  }

  close() {
    this.#over = true;
    clearTimeout(this.#timer);
    this.#socket?.close(1000);
  }
}
