/** The list of the user's jobs: each message brings the whole state of one, so that showing the newest is all there is. */

import { ICONS, clock, element, hue, picture } from "./draw.js";

const SHOWN = 60; // jobs kept in the list

const STATES = {
  pending: "Sent",
  queued: "Waiting",
  started: "Started",
  progress: "Running",
  stalled: "Silent",
  retrying: "Trying again",
  succeeded: "Done",
  failed: "Failed",
  dead_lettered: "Given up",
  cancelled: "Cancelled",
};

export class Jobs {
  #list;
  #running;
  #cancel;
  #rows = new Map(); // id -> Row

  /**
   * @param {HTMLOListElement} list
   * @param {HTMLElement} running where the number of those that go on is shown
   * @param {(job: string) => Promise<boolean>} cancel tells whether that was asked for
   */
  constructor(list, running, cancel) {
    this.#list = list;
    this.#running = running;
    this.#cancel = cancel;
  }

  /** All jobs as they were at `offset`: whatever is not among them, and not newer, is gone. */
  begin(offset, states) {
    const held = new Set(states.map(({ job }) => job));
    for (const [job, row] of this.#rows) if (row.offset && row.offset <= offset && !held.has(job)) this.#forget(job);
    for (const state of states) this.#take(state, offset);
    this.#count();
  }

  /** A message of the jobs' channel. */
  show({ key, offset, data, deleted }) {
    if (deleted) this.#forget(key);
    else this.#take(data, offset);
    this.#count();
  }

  /** It was sent to its queue. Nothing is known of it yet, unless the stream was quicker than that answer. */
  expect(job, name) {
    if (this.#rows.has(job)) return;
    this.#take({ job, name, state: "pending", final: false }, 0);
    this.#count();
  }

  #take(state, offset) {
    let row = this.#rows.get(state.job);
    if (!row) {
      row = new Row(state, this.#cancel);
      this.#rows.set(state.job, row);
      // Parts may be told of before their whole.
      for (const other of this.#rows.values()) if (other.state.parent === state.job) row.adopt(other);
      const parent = this.#rows.get(state.parent);
      if (parent) parent.adopt(row);
      else this.#insert(row);
    }
    if (offset < row.offset) return;
    row.offset = offset;
    row.draw(state);
    this.#rows.get(state.parent)?.draw(); // it counts its parts
  }

  /** The newest first: ids grow with time. */
  #insert(row) {
    const older = [...this.#list.children].find(({ dataset }) => dataset.job < row.state.job);
    this.#list.insertBefore(row.item, older ?? null);
    while (this.#list.childElementCount > SHOWN) this.#forget(this.#list.lastElementChild.dataset.job);
  }

  #forget(job) {
    this.#rows.get(job)?.item.remove();
    this.#rows.delete(job);
    for (const [part, row] of this.#rows) if (row.state.parent === job) this.#rows.delete(part);
  }

  #count() {
    const running = [...this.#rows.values()].filter(({ state }) => !state.final && !state.parent).length;
    this.#running.textContent = String(running);
  }
}

/** One job on the page, or a part of one. */
class Row {
  offset = 0;
  #tag = element("span", { className: "tag" });
  #title = element("strong");
  #attempt = element("span", { className: "attempt" });
  #time = element("span", { className: "when" });
  #bar = element("progress", { max: 1, value: 0 });
  #note = element("span", { className: "note" });
  #percent = element("span", { className: "percent" });
  #button = element("button", { type: "button", className: "quiet" }, "Cancel");
  #parts = element("ol", { className: "parts" });

  constructor(state, cancel) {
    this.state = state;
    this.item = element("li", { className: "job" });
    this.item.dataset.job = state.job;
    this.#button.addEventListener("click", async () => {
      this.#button.disabled = true;
      this.#button.disabled = await cancel(this.state.job);
    });
    if (state.parent) {
      this.item.append(this.#title, this.#bar, this.#tag);
      return;
    }
    const badge = picture(ICONS[state.name] ?? ICONS.box);
    badge.style.setProperty("--hue", hue(state.name ?? ""));
    const head = element("div", { className: "head" });
    head.append(this.#title, this.#tag, this.#attempt, this.#time);
    const foot = element("div", { className: "foot" });
    foot.append(this.#note, this.#percent, this.#button);
    this.item.append(badge, head, this.#bar, foot, this.#parts);
  }

  /** Another row is a part of this one. */
  adopt({ item }) {
    const next = [...this.#parts.children].find(({ dataset }) => dataset.job > item.dataset.job);
    this.#parts.insertBefore(item, next ?? null);
  }

  #counted() {
    if (!this.state.children) return undefined;
    const done = this.#parts.querySelectorAll("[data-state=succeeded]").length;
    return `${done} of ${this.state.children} images`;
  }

  draw(state = this.state) {
    this.state = state;
    const { job, name, parent, attempt, progress, result, error, reason, final, times = {} } = state;
    this.item.dataset.state = state.state;
    this.item.dataset.attempt = String(attempt ?? 1);
    const { done = 0, total, note } = progress ?? {};
    const share = state.state === "succeeded" ? 1 : total ? Math.min(1, done / total) : 0;
    this.#bar.value = share;
    this.#bar.ariaLabel = `Progress of ${name ?? job}`;
    this.#tag.textContent = reason === "lost" ? "Lost" : (STATES[state.state] ?? state.state);
    this.#title.textContent = parent ? (note ?? `Image ${job.slice(parent.length + 1)}`) : titleOf(name ?? job);
    this.#attempt.textContent = attempt > 1 ? `attempt ${attempt}` : "";
    const at = times.ended ?? times.started ?? times.queued ?? times.updated;
    this.#time.replaceChildren(...(at ? [clock(new Date(at))] : []));
    this.#percent.textContent = final && state.state !== "succeeded" ? "" : `${Math.round(100 * share)} %`;
    this.#note.textContent = error ? (error.message ?? "") : (textOf(result) ?? this.#counted() ?? note ?? HINTS[state.state] ?? "");
    this.#button.hidden = final;
  }
}

const HINTS = {
  pending: "Handed to the queue",
  queued: "Waiting for a worker",
  stalled: "Its worker has not been heard of",
  dead_lettered: "Put aside for a person to look at",
};

function titleOf(name) {
  return name[0].toUpperCase() + name.slice(1);
}

/** What came of it, in words where it has some. */
function textOf(result) {
  if (result === undefined || result === null) return undefined;
  return typeof result.text === "string" ? result.text : JSON.stringify(result);
}
