// What nodes tell of themselves (the `load` of their entries in `ringcast:nodes`), made into rates and happenings.

const MEANINGS = {
  1000: "closed by the client", 1001: "going away", 1002: "protocol error", 1006: "cut off", 1009: "frame too large",
  1011: "server error", 4001: "unauthorised", 4003: "forbidden", 4008: "bad request", 4009: "too large",
  4100: "draining", 4101: "server error", 4102: "too slow", 4103: "rate limited", 4104: "full", 4200: "token expired",
};
const COUNTED = { closes: "closed", resets: "reset", refusals: "refused" };
const NONE = { published: 0, deliveries: 0, bytes: 0 };

const sum = (counts) => Object.values(counts ?? {}).reduce((all, count) => all + count, 0);

/** One node, as its last two words tell: `entry` is the last, `rates` are per second, `heard` when (milliseconds). */
export class Told {
  /** @param {string} name */
  constructor(name) {
    this.name = name;
    this.entry = null;
    this.rates = NONE;
    this.heard = 0;
    this.at = 0;
  }

  /**
   * Take the node's next word. Returns what has happened since the one before, as {kind, why, count}.
   * @param {object} entry its `data`
   * @param {number} at when it was published, in milliseconds
   */
  hear(entry, at) {
    const before = this.entry?.boot === entry.boot ? this.entry.load : null;
    const seconds = (at - this.at) / 1000;
    this.entry = entry;
    this.heard = Date.now();
    if (!before || !entry.load || !(seconds > 0)) {
      this.at = at;
      this.rates = NONE;
      return [];
    }
    const grown = (name) => (sum(entry.load[name]) - sum(before[name])) / seconds;
    const more = (name) => ((entry.load[name] ?? 0) - (before[name] ?? 0)) / seconds;
    this.rates = { published: grown("published"), deliveries: more("deliveries"), bytes: more("delivered_bytes") };
    this.at = at;
    return happened(entry.load, before);
  }

  /** @param {string} transport */
  connections(transport) {
    return this.entry?.load?.connections?.[transport] ?? 0;
  }

  get connected() {
    return sum(this.entry?.load?.connections);
  }
}

function happened(load, before) {
  const found = [];
  for (const [name, kind] of Object.entries(COUNTED)) {
    for (const [why, total] of Object.entries(load[name] ?? {})) {
      const count = total - (before[name]?.[why] ?? 0);
      if (count > 0) found.push({ kind, why: MEANINGS[why] ? `${why} ${MEANINGS[why]}` : why, count });
    }
  }
  return found;
}

const NUMBERS = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const LARGE = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

/** A number as people read it: 12.5, 340, 12.3K. */
export function short(number) {
  return Math.abs(number) < 10_000 ? NUMBERS.format(Math.abs(number) < 100 ? number : Math.round(number)) : LARGE.format(number);
}
