/**
 * Which link is in use: when to come back, over which transport, and when to try a better one.
 *
 * A link that ends says why (`End`). The gateway's own word is a code: 40xx stop, 41xx come back after a back-off, 42xx
 * come back at once with a new token, and none of them says anything about the transport. Where nobody gave a reason
 * and the transport has not shown that it works, it is *blocked*, and the next one of the ladder is tried. When even
 * the last one fails it was not the transports: the network or the gateway is away, and it begins again at the top.
 * @module
 */

// All in milliseconds.
const HEARTBEAT = 15_000; // until the welcome says otherwise
const BACK_OFF = { first: 1_000, most: 30_000, stable: 60_000 };
const UPGRADE = { first: 15_000, most: 300_000 };
const ANSWER_WITHIN = 5_000; // of a ping that asks whether the line is still there
const HOME_WITHIN = 4_000; // of whatever a home says first

const DRAINING = 4100;
const isRefused = (code) => code >= 4000 && code < 4100;
const isExpired = (code) => code >= 4200 && code < 4300;

export class Line {
  #ladder;
  #owner;
  #token;
  #place;
  #credentials;
  #upgradeAfter;

  #link = null; // in use, or about to be
  #beside = null; // tried while the other still works; takes over once it has opened
  #rung = 0;
  #strikes = 0; // failures in a row of a transport that has worked before
  #worked = new Set();
  #failures = 0; // in a row, of anything: the exponent of the back-off
  #upgradeIn;
  #timers = {};

  /**
   * @param {import("../ringcast.d.ts").LinkClass[]} ladder from the best to the last resort
   * @param {import("./token.js").Token} token
   * @param {import("./place.js").Place} place
   * @param {{credentials: RequestCredentials, upgradeAfter?: number}} options
   * @param {object} owner is told, and asked: `wanted()`, `status(status)`, `opened(link)`, `frame(link, frame)`,
   *   `lost()`, `refused(code, reason)`, which says whether to go on, and `failed(code, reason)`
   */
  constructor(ladder, token, place, { credentials, upgradeAfter = UPGRADE.first }, owner) {
    this.#ladder = ladder;
    this.#token = token;
    this.#place = place;
    this.#credentials = credentials;
    this.#upgradeAfter = this.#upgradeIn = upgradeAfter;
    this.#owner = owner;
  }

  /** Whether another link is being opened beside the one in use. */
  get opening() {
    return this.#beside !== null;
  }

  /** The link in use, once it has opened. */
  get link() {
    return this.#link?.opened ? this.#link : null;
  }

  /** Connect, now and with no back-off behind it. */
  start() {
    this.#failures = 0;
    this.#attempt();
  }

  /** End whatever there is, and stay so. */
  halt(status) {
    for (const timer of Object.values(this.#timers)) clearTimeout(timer);
    this.#timers = {};
    for (const link of [this.#link, this.#beside]) if (link) drop(link);
    this.#link = this.#beside = null;
    this.#owner.lost();
    this.#owner.status({ transport: null, ...status });
  }

  /** Open another link at the same positions; it takes over when it has opened, so nothing is missed in between. */
  reopen(rung = this.#link?.rung) {
    if (!this.link) return;
    if (this.#beside) drop(this.#beside);
    this.#beside = this.#start(rung);
  }

  /** Take a frame of a link: what concerns the link is seen to here, the rest is its owner's. */
  #frame(link, frame) {
    if (link.over) return;
    link.heard = Date.now();
    link.heartbeat = frame.heartbeat_ms ?? link.heartbeat;
    if (frame.type === "ping" || frame.type === "pong" || frame.type === "checkpoint") link.pinged = true;
    if (frame.type === "welcome") this.#place.told(link.at, frame);
    if (!link.opened && frame.type !== "goodbye" && frame.type !== "error") this.#opened(link);
    if (frame.type === "goodbye") this.#goodbye(link, frame);
    this.#owner.frame(link, frame);
    if (frame.type === "welcome" && !link.heartbeats) this.#moveOn(link);
  }

  /** Polls have no connection that would have to be ended: the next one goes where we belong. */
  #moveOn(link) {
    if (link !== this.link || this.#beside || link.at === this.#place.now) return;
    this.reopen();
    this.#beside.moving = true;
  }

  /** A goodbye names the code that the close behind it has; only a draining node says how long the link may stay. */
  #goodbye(link, frame) {
    link.goodbye = frame;
    if (frame.code === DRAINING) this.#place.forget(link.at);
    if (!link.opened || frame.code !== DRAINING) return;
    link.timers.leave = setTimeout(() => link === this.#link && this.reopen(), frame.after_ms ?? 0);
  }

  #attempt() {
    clearTimeout(this.#timers.retry);
    delete this.#timers.retry;
    this.#owner.status({ state: "connecting", transport: this.#ladder[this.#rung].transport });
    this.#link = this.#start(this.#rung);
  }

  #start(rung) {
    const Transport = this.#ladder[rung];
    const link = {
      rung,
      at: this.#place.now,
      moving: false, // to its home, from a link that is as good
      transport: Transport.transport,
      heartbeats: Transport.heartbeats,
      wire: null,
      asked: new Set(), // the channels it carries, beside those that come without asking
      opened: false,
      stableSince: 0,
      heard: Date.now(),
      heartbeat: HEARTBEAT,
      pinged: false,
      goodbye: null,
      over: false,
      timers: {},
      fresh: this.#token.missing, // a token got for this link, refused before it opened, is no reason to hurry
      token: this.#token.get(),
    };
    link.token.then(
      (token) => {
        if (link.over) return;
        if (this.#place.isHome(link.at)) {
          const late = () => link.opened || this.#ended(link, { reason: "the home does not answer" });
          link.timers.home = setTimeout(late, HOME_WITHIN);
        }
        link.wire = new Transport(this.#desk(link, token));
      },
      (error) => {
        this.#token.drop(link.token);
        if (link.over) return;
        this.#owner.failed("token", `the token callback failed: ${error}`);
        this.#ended(link, { reason: `no token: ${error}` });
      },
    );
    return link;
  }

  #desk(link, token) {
    return {
      url: link.at,
      credentials: this.#credentials,
      token,
      wanted: () => {
        const wanted = this.#owner.wanted();
        link.asked = new Set(wanted.channels);
        return { ...wanted, partition: this.#place.partition };
      },
      frame: (frame) => this.#frame(link, frame),
      end: (end) => this.#ended(link, end),
    };
  }

  #opened(link) {
    link.opened = true;
    link.stableSince = Date.now();
    if (link === this.#beside) {
      link.stableSince = this.#link.stableSince;
      drop(this.#link);
      this.#link = link;
      this.#beside = null;
      this.#owner.lost();
    }
    this.#worked.add(link.transport);
    this.#strikes = 0;
    this.#rung = link.rung;
    if (link.heartbeats) this.#listen(link);
    if (link.rung === 0) this.#upgradeIn = this.#upgradeAfter;
    this.#upgradeLater();
    this.#owner.status({ state: "open", transport: link.transport });
    this.#owner.opened(link);
  }

  /** Silence of two heartbeats means that the line is dead, or, before the first ping, that something holds back. */
  #listen(link) {
    const silent = Date.now() - link.heard;
    if (silent >= 2 * link.heartbeat) {
      this.#ended(link, { blocked: !link.pinged, reason: `silence of ${silent} ms` });
    } else {
      link.timers.silence = setTimeout(() => this.#listen(link), 2 * link.heartbeat - silent);
    }
  }

  #ended(link, end) {
    if (link.over) return;
    drop(link);
    const code = end.code ?? link.goodbye?.code;
    const reason = end.reason || link.goodbye?.hint || "";
    if (isExpired(code)) this.#token.drop(link.token);
    if (this.#place.isHome(link.at) && !link.opened && link.wire) {
      this.#astray(link, code);
      return;
    }
    if (link === this.#beside) {
      this.#besideEnded(link, { ...end, code, reason });
      return;
    }
    this.#link = null;
    this.#owner.lost();
    clearTimeout(this.#timers.upgrade);
    if (link.opened && Date.now() - link.stableSince >= BACK_OFF.stable) this.#failures = 0;
    if (this.#beside) {
      this.#link = this.#beside;
      this.#beside = null;
      this.#owner.status({ state: "connecting", transport: this.#link.transport, code, reason });
    } else if (isRefused(code) || link.goodbye?.reconnect === false) {
      if (this.#owner.refused(code, reason)) this.#attempt();
      else this.#stop(code, reason);
    } else if (isExpired(code) && (link.opened || !link.fresh)) {
      this.#attempt();
    } else if (code === undefined && end.blocked && !this.#place.isHome(link.at)) {
      this.#blocked(link, end);
    } else {
      const told = link.opened ? 0 : (link.goodbye?.after_ms ?? 0);
      this.#later({ code, reason, wait: Math.max(end.wait ?? 0, told) });
    }
  }

  /** A home has not let us in, for whatever reason: at once to the address that was given, as if nothing had been. */
  #astray(link, code) {
    this.#place.leave(link.at, code);
    if (link !== this.#beside) {
      this.#link = null;
      this.#attempt();
      return;
    }
    this.#beside = null;
    if (!link.moving) this.reopen(link.rung);
  }

  #stop(code, reason) {
    this.halt({ state: "stopped", code, reason });
    this.#owner.failed(code, reason);
  }

  #blocked(link, { unreachable, reason }) {
    this.#strikes += 1;
    if (!link.opened && this.#worked.has(link.transport) && this.#strikes < 2) {
      this.#later({ reason }); // it did work here, so the network or the gateway is more likely to be away
      return;
    }
    this.#strikes = 0;
    const next = unreachable ? this.#ladder.length : link.rung + 1;
    this.#rung = next < this.#ladder.length ? next : 0;
    if (this.#rung > 0) this.#attempt();
    else this.#later({ reason });
  }

  /** Full jitter: uniform between nothing and one second, then two, four ... */
  #later({ code = undefined, reason, wait = 0 }) {
    const most = Math.min(BACK_OFF.most, BACK_OFF.first * 2 ** Math.min(this.#failures, 10));
    this.#failures += 1;
    const retryIn = Math.max(wait, Math.random() * most);
    this.#timers.retry = setTimeout(() => this.#attempt(), retryIn);
    this.#owner.status({ state: "waiting", transport: null, retryIn, code, reason });
  }

  #besideEnded(link, { code, reason, blocked }) {
    this.#beside = null;
    const upgrade = link.rung < this.#link.rung;
    if (isExpired(code) && !link.fresh) this.reopen(link.rung);
    else if (upgrade && blocked && code === undefined && link.rung + 1 < this.#link.rung) this.reopen(link.rung + 1);
    else if (upgrade) this.#upgradeLater();
    else if (!isRefused(code)) this.#timers.again = setTimeout(() => this.reopen(), this.#again());
    else if (this.#owner.refused(code, reason)) this.reopen();
    else this.#owner.failed(code, reason);
  }

  /** Whose node has said goodbye is to have another link before that one is closed. */
  #again() {
    return this.#link.goodbye ? Math.random() * BACK_OFF.first : UPGRADE.first;
  }

  #upgradeLater() {
    clearTimeout(this.#timers.upgrade);
    if (!this.#link?.rung) return;
    this.#timers.upgrade = setTimeout(() => (this.#beside ? this.#upgradeLater() : this.reopen(0)), this.#upgradeIn);
    this.#upgradeIn = Math.min(UPGRADE.most, 2 * this.#upgradeIn);
  }

  /**
   * Find out whether the line is there, without waiting for a back-off or for silence.
   * @param {boolean} changed the network has changed, so doubt a link that was heard just now as well
   */
  check(changed) {
    const link = this.link;
    if (changed) this.#upgradeIn = this.#upgradeAfter;
    if (!this.#link && this.#timers.retry) {
      this.#attempt();
    } else if (link && (changed || Date.now() - link.heard > 1.5 * link.heartbeat)) {
      if (!link.wire.send) {
        this.reopen();
        return;
      }
      const asked = Date.now();
      link.wire.send({ type: "ping" });
      clearTimeout(link.timers.answer);
      link.timers.answer = setTimeout(() => {
        if (link.heard < asked) this.#ended(link, { reason: "the line was dead" });
      }, ANSWER_WITHIN);
    }
  }
}

function drop(link) {
  link.over = true;
  for (const timer of Object.values(link.timers)) clearTimeout(timer);
  link.wire?.close();
}
