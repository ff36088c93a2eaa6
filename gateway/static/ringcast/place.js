/**
 * Where to connect: at the address that was given, or at the home that the gateway named.
 *
 * A home is a hint of the gateway that was spoken to last. It is followed at the next connection, and one that does not let
 * us in costs a single attempt: the next goes to the address that was given, at once. Our token goes there, so no gateway
 * can send us just anywhere: a home has the host of the given address, or one below it, or one that the page names; and it
 * has the same scheme, so TLS is never lost.
 * @module
 */

const LEFT = 300_000; // milliseconds for which a home that did not let us in is not tried again
const DRAINING = 4100;
const TOKEN_EXPIRED = 4200;
const PATTERN = /^(\*\.)?[a-z0-9][a-z0-9.-]*$|^\[[0-9a-f:.]+\]$/;

export class Place {
  #given;
  #hosts;
  /** @type {URL | null} */
  #home = null;
  /** @type {Map<string, number>} */
  #left = new Map(); // homes that did not let us in, and until when they are not tried

  /** What proxies place us by. @type {number | undefined} */
  partition;

  /**
   * @param {URL} given
   * @param {{partition?: number, homes?: string[]}} [options] `homes` are hosts, or `*.` and a domain
   */
  constructor(given, { partition, homes = [] } = {}) {
    this.#given = given;
    this.partition = partition;
    const host = given.hostname;
    this.#hosts = [host, ...(/^[0-9.]+$|^\[/.test(host) ? [] : [`.${host}`])]; // below an address there is nothing
    for (const pattern of homes.map((each) => each.toLowerCase())) {
      if (!PATTERN.test(pattern)) throw new TypeError(`homes are hosts, or '*.' and a domain, not '${pattern}'`);
      this.#hosts.push(pattern.replace(/^\*/, ""));
    }
  }

  /** Where the next connection goes. */
  get now() {
    return this.#home ?? this.#given;
  }

  /** Whether this is not the address that was given. @param {URL} at */
  isHome(at) {
    return at.href !== this.#given.href;
  }

  /**
   * The gateway at `at` let us in and said where we belong; no `home` means that it is the place, or knows none.
   * @param {URL} at
   * @param {{partition?: number, home?: string}} placement
   */
  told(at, { partition, home }) {
    if (Number.isSafeInteger(partition)) this.partition = partition;
    const named = home === undefined ? at : this.#accepted(home);
    const gone = named === null || this.#left.get(named.href) > Date.now();
    this.#home = gone || !this.isHome(named) ? null : named;
  }

  /**
   * The home at `at` did not let us in. One that is about to end, or wants a newer token, is as good as before afterwards.
   * @param {URL} at
   * @param {number} [code] of the gateway's table, where it said why
   */
  leave(at, code) {
    this.forget(at);
    if (code === DRAINING || code === TOKEN_EXPIRED) return;
    for (const [home, until] of this.#left) if (until <= Date.now()) this.#left.delete(home);
    this.#left.set(at.href, Date.now() + LEFT);
  }

  /** The gateway at `at` is about to end: if that is our home, another one will be named. @param {URL} at */
  forget(at) {
    if (this.#home?.href === at.href) this.#home = null;
  }

  /** A token may go there. @param {string} home */
  #accepted(home) {
    let url;
    try {
      url = new URL(home);
    } catch {
      return null;
    }
    if (url.protocol !== this.#given.protocol || url.username || url.password || url.search || url.hash) return null;
    const may = (host) => (host.startsWith(".") ? url.hostname.endsWith(host) : url.hostname === host);
    return this.#hosts.some(may) ? url : null;
  }
}
