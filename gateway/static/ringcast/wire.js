/**
 * The wire's words, with no I/O: cursors, the event stream format, requests and why a connection ended.
 * @module
 */

/** What one request asks for. @typedef {import("../ringcast.d.ts").Wanted} Wanted */
/** Why a link ended. @typedef {import("../ringcast.d.ts").End} End */

/**
 * Bytes of a cursor, and of a whole query, that a URL may hold; beyond that they travel in a body or a frame. The
 * cursor that counts is the longest that the gateway might have to answer.
 */
const CURSOR_IN_URL = 4096;
const QUERY_IN_URL = 7168;
const ROOM = 32; // for a transport's own parameters

/** How long a transport may take to show that it is not blocked, in milliseconds. */
export const FIRST_BYTES_WITHIN = 5_000;
/** How long the gateway may take to say something useful after that, in milliseconds. */
export const WELCOME_WITHIN = 15_000;

/** The gateway's table of codes, for the problems whose HTTP status alone does not tell. */
const PROBLEM_CODES = { token_expired: 4200, draining: 4100, full: 4104, busy: 4104, too_slow: 4102 };
const STATUS_CODES = { 401: 4001, 403: 4003, 413: 4009, 429: 4103 };

/**
 * Positions by channel as the opaque string that every transport takes.
 * @param {Map<string, number>} positions
 * @returns {string} unpadded base64url of a JSON object; empty when there are no positions
 */
export function encodeCursor(positions) {
  if (positions.size === 0) return "";
  const bytes = new TextEncoder().encode(JSON.stringify(Object.fromEntries(positions)));
  let binary = "";
  for (const byte of bytes) binary += String.fromCharCode(byte);
  return btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

/**
 * The positions that a cursor holds.
 * @param {string} cursor
 * @returns {Map<string, number>}
 * @throws {TypeError} when it is not a cursor
 */
export function decodeCursor(cursor) {
  try {
    const binary = atob(cursor.replaceAll("-", "+").replaceAll("_", "/"));
    const bytes = Uint8Array.from(binary, (character) => character.charCodeAt(0));
    const positions = Object.entries(JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes)));
    if (!positions.every(([, offset]) => Number.isSafeInteger(offset) && offset >= 0)) throw new RangeError("offset");
    return new Map(positions);
  } catch (cause) {
    throw new TypeError("the cursor is not base64url of a JSON object of offsets by channel", { cause });
  }
}

/**
 * What is wanted, as a query string, or null where a URL cannot hold it.
 * @param {Wanted} wanted
 * @returns {URLSearchParams | null}
 */
export function queryOf(wanted) {
  const query = new URLSearchParams();
  if (wanted.channels.length) query.set("channels", wanted.channels.join(","));
  if (wanted.cursor) query.set("cursor", wanted.cursor);
  if (wanted.since) query.set("since", wanted.since);
  if (wanted.snapshot) query.set("snapshot", "true");
  if (wanted.partition !== undefined) query.set("p", String(wanted.partition));
  const longest = encodeCursor(new Map(wanted.channels.map((channel) => [channel, Number.MAX_SAFE_INTEGER])));
  const fits = Math.max(wanted.cursor.length, longest.length) <= CURSOR_IN_URL;
  return fits && query.toString().length <= QUERY_IN_URL - ROOM ? query : null;
}

/** What belongs into the URL even where the rest does not fit: what proxies place us by. @param {Wanted} wanted */
export function placeOf({ partition }) {
  return partition === undefined ? "" : `p=${partition}`;
}

/** What is wanted, as the body of a POST or the members of a `connect` frame. @param {Wanted} wanted */
export function bodyOf(wanted) {
  return {
    channels: wanted.channels,
    ...(wanted.cursor && { cursor: wanted.cursor }),
    ...(wanted.since && { since: wanted.since }),
    ...(wanted.snapshot && { snapshot: true }),
  };
}

/**
 * An address below the gateway's, which may itself have a path.
 * @param {URL} base
 * @param {string} path without a leading slash
 */
export function addressOf(base, path) {
  return new URL(path, base.href.endsWith("/") ? base : `${base.href}/`);
}

/**
 * Ask the gateway: GET while a URL can hold what is wanted, POST beyond that. The token travels in a header.
 * @param {import("../ringcast.d.ts").Desk} desk
 * @param {string} path
 * @param {Record<string, string | number>} extra parameters beside those of `wanted`
 * @param {RequestInit & {headers?: Record<string, string>}} init
 */
export function ask(desk, path, extra, { headers = {}, ...init }) {
  const wanted = desk.wanted();
  const url = addressOf(desk.url, path);
  const query = queryOf(wanted);
  const all = { ...headers };
  if (desk.token) all.Authorization = `Bearer ${desk.token}`;
  const common = { ...init, credentials: desk.credentials, cache: /** @type {const} */ ("no-store") };
  if (query) {
    for (const [name, value] of Object.entries(extra)) query.set(name, String(value));
    url.search = query.toString();
    return fetch(url, { ...common, headers: all });
  }
  url.search = placeOf(wanted);
  all["Content-Type"] = "application/json";
  const body = JSON.stringify({ ...bodyOf(wanted), ...extra });
  return fetch(url, { ...common, method: "POST", headers: all, body });
}

/**
 * Why an HTTP answer is not the one that was asked for. Only problem+json with a `code` is the gateway's own word.
 * A proxy's 5xx says that the gateway is away; anything else (403, 404, a login page) that somebody blocks this way.
 * @param {Response} response
 * @returns {Promise<End>}
 */
export async function refusal(response) {
  const status = response.status;
  const type = response.headers.get("Content-Type") ?? "";
  const wait = 1000 * (Number.parseFloat(response.headers.get("Retry-After") ?? "") || 0);
  if (type.startsWith("application/problem+json")) {
    const problem = await response.json().catch(() => ({}));
    if (typeof problem.code === "string") {
      const code = PROBLEM_CODES[problem.code] ?? STATUS_CODES[status] ?? (status < 500 ? 4008 : 4101);
      return { code, reason: problem.detail ?? problem.title ?? problem.code, wait };
    }
  }
  await response.body?.cancel().catch(() => undefined); // an unread body would keep the connection
  const away = status >= 500 || status === 408 || status === 429;
  return { blocked: !away, reason: `HTTP ${status} that is not the gateway's`, wait };
}

/** Server-sent events out of text that comes in pieces (WHATWG HTML, 9.2.6). */
export class EventStreamParser {
  #rest = "";
  #data = [];
  #event = "";
  /** @type {string | undefined} */
  #id;
  #started = false;

  /**
   * Feed the next piece; get what it completed. A block with an `id` and no data, a checkpoint, is told too.
   * @param {string} text
   * @returns {{event: string, data: string, id: string | undefined}[]}
   */
  push(text) {
    const events = [];
    let buffer = this.#rest + text;
    if (!this.#started && buffer) {
      this.#started = true;
      if (buffer.startsWith("\ufeff")) buffer = buffer.slice(1);
    }
    let start = 0;
    for (let at = start; at < buffer.length; at += 1) {
      const character = buffer[at];
      if (character !== "\n" && character !== "\r") continue;
      if (character === "\r" && at + 1 === buffer.length) break; // its "\n" may come with the next piece
      this.#line(buffer.slice(start, at), events);
      if (character === "\r" && buffer[at + 1] === "\n") at += 1;
      start = at + 1;
    }
    this.#rest = buffer.slice(start);
    return events;
  }

  #line(line, events) {
    if (line === "") {
      if (this.#data.length || this.#id !== undefined) {
        events.push({ event: this.#event || "message", data: this.#data.join("\n"), id: this.#id });
      }
      this.#data = [];
      this.#event = "";
      this.#id = undefined;
      return;
    }
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + (line[colon + 1] === " " ? 2 : 1));
    if (field === "data") this.#data.push(value);
    else if (field === "event") this.#event = value;
    else if (field === "id" && !value.includes("\0")) this.#id = value;
  }
}
