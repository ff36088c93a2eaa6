import { addressOf } from "./wire.js";

/** A refusal or a failure; `code` is a number of the gateway's table, a problem's code, or `lost` or `token`. */
export class RingcastError extends Error {
  constructor(code, message) {
    super(message);
    this.name = "RingcastError";
    this.code = code;
  }
}

/** What was asked over a WebSocket and is not answered yet, by the number that each request carries. */
export class Requests {
  #open = new Map();
  #last = 0;

  /** Send a frame; resolves with the answer, rejects with a RingcastError: the gateway's, or `lost`. */
  send(wire, frame) {
    this.#last += 1;
    const id = this.#last;
    const answer = new Promise((resolve, reject) => this.#open.set(id, { resolve, reject }));
    wire.send({ ...frame, id });
    return answer;
  }

  /** Whether this frame is the answer to a request; then it is settled. */
  settle(frame) {
    const request = this.#open.get(frame.id);
    if (!request || frame.type === "message") return false;
    this.#open.delete(frame.id);
    if (frame.type === "error") request.reject(new RingcastError(frame.code, frame.message));
    else request.resolve(frame);
    return true;
  }

  lose() {
    for (const { reject } of this.#open.values()) reject(new RingcastError("lost", "the connection was lost"));
    this.#open.clear();
  }
}

/**
 * Publish by a request of its own; a token that has expired is replaced once.
 * @param {{url: URL, credentials: RequestCredentials}} request
 * @param {import("./token.js").Token} token
 * @param {object} body
 */
export async function post(request, token, body) {
  const fresh = token.missing;
  const used = token.get();
  const bearer = await used;
  let response;
  try {
    response = await fetch(addressOf(request.url, "v1/publish"), {
      method: "POST",
      headers: { "Content-Type": "application/json", ...(bearer && { Authorization: `Bearer ${bearer}` }) },
      credentials: request.credentials,
      body: JSON.stringify(body),
    });
  } catch (error) {
    throw new RingcastError("lost", String(error));
  }
  const answer = await response.json().catch(() => ({})); // a proxy's page, with a status that says enough
  if (answer.code === "token_expired" && !fresh) {
    token.drop(used);
    return post(request, token, body);
  }
  if (!response.ok) throw new RingcastError(answer.code ?? response.status, answer.detail ?? `HTTP ${response.status}`);
  return answer;
}

/** The receipt of the only target of a publish. */
export function receiptOf({ results }) {
  const [result] = results;
  const problem = result.error ?? (result.code && result);
  if (problem) throw new RingcastError(problem.code, problem.detail ?? problem.title);
  return result;
}
