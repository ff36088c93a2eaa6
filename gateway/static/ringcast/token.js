/** The token in use: asked for once, shared by all that need it, and anew when the gateway says that it has expired. */
export class Token {
  #source;
  /** @type {Promise<string | undefined> | null} */
  #current = null;

  /** @param {string | (() => string | undefined | Promise<string | undefined>) | undefined} source */
  constructor(source) {
    this.#source = source;
  }

  /** Whether the next `get` asks the page for a token. */
  get missing() {
    return this.#current === null;
  }

  /** Rejects as the page's callback does. */
  get() {
    const source = this.#source;
    this.#current ??= Promise.resolve().then(() => (typeof source === "function" ? source() : source));
    return this.#current;
  }

  /** This one is of no use; a newer one, that somebody else has asked for meanwhile, stays. */
  drop(token) {
    if (this.#current === token) this.#current = null;
  }
}
