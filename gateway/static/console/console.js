// The operators' page. It follows `ringcast:nodes` as any subscriber follows a channel, and asks for the rest.

import { Ringcast } from "../ringcast.js";
import { Told, short } from "./rates.js";
import { colour, draw } from "./ring.js";

const NODES = "ringcast:nodes";
const KEPT = 200; // lines of a log
const PAST = 120; // seconds that are drawn
const SILENT = 10_000; // milliseconds after which a node that says nothing is greyed

/** @returns {any} */
const $ = (selector) => document.querySelector(selector);

/** @type {Map<string, Told>} */
const nodes = new Map();
const past = [];
/** @type {{partitions: number, on_ring: string[], homes: number[], hash: string, node: string} | null} */
let view = null;
let marked;
let line = null;
let tail = null;

function made(name, text = "", attributes = {}) {
  const element = Object.assign(document.createElement(name), attributes);
  element.textContent = text;
  return element;
}

/** Ask the gateway; throws an Error that says what it refused. A page that is logged out asks for the key. */
async function ask(path, options = {}) {
  const response = await fetch(path, options);
  if (response.ok) return response.status === 204 ? null : response.json();
  const problem = await response.json().catch(() => ({}));
  if (response.status === 401 && line) leave();
  throw new Error(problem.detail ?? `The gateway answered ${response.status}`);
}

/** Run what a form is for, and show what it refuses beside it. */
function serve(section, work) {
  const refusal = section.querySelector(".refusal");
  const form = section.matches("form") ? section : section.querySelector("form");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    refusal.textContent = "";
    try {
      await work(form);
    } catch (error) {
      refusal.textContent = error.message;
    }
  });
}

// ---------------------------------------------------------------- coming and going

function show(state, text = state) {
  $("#status").dataset.state = state;
  $("#status").textContent = text;
}

function enter() {
  $("#login").hidden = true;
  $("#desk").hidden = $("#logout").hidden = false;
  line = new Ringcast(".", { channels: [NODES], snapshot: true, transports: ["sse"] });
  line.on("state", ({ state, reason }) => {
    show(state, state === "open" ? `live, from ${view?.node ?? "the gateway"}` : `${state}${reason ? `: ${reason}` : ""}`);
    if (state === "stopped") leave();
  });
  line.on("snapshot", ({ channel, messages }) => {
    if (channel !== NODES) return;
    nodes.clear();
    messages.forEach(heard);
    look();
  });
  line.on("message", heard);
  look();
}

function leave() {
  line?.close();
  tail?.close();
  line = tail = null;
  $("#desk").hidden = $("#logout").hidden = true;
  $("#login").hidden = false;
  show("closed", "logged out");
  $("#key").focus();
}

serve($("#login"), async () => {
  const key = $("#key").value;
  $("#key").value = "";
  await ask("login", { method: "POST", headers: { Authorization: `Bearer ${key}` } });
  enter();
});

$("#logout").addEventListener("click", async () => {
  await ask("logout", { method: "POST" }).catch(() => null); // it has ended by itself
  leave();
});

// ---------------------------------------------------------------- nodes

function heard({ channel, key, data, deleted, time }) {
  if (channel !== NODES || key === undefined) return;
  const known = nodes.get(key);
  if (deleted) {
    nodes.delete(key);
    look();
    return;
  }
  const told = known ?? new Told(key);
  const state = told.entry?.state;
  nodes.set(key, told);
  for (const { kind, why, count } of told.hear(data, Date.parse(time))) {
    note($("#events .log"), time, `${key}  ${kind} ${why}${count > 1 ? `  × ${short(count)}` : ""}`);
  }
  if (state !== data.state) look();
}

let looking = null;

/** Ask how the ring is seen, once for all changes that come together. */
function look() {
  looking ??= setTimeout(async () => {
    looking = null;
    try {
      view = await ask("v1/nodes?details=true");
    } catch {
      return; // the next change asks again, and the status line says what is wrong
    }
    for (const entry of view.nodes) {
      if (nodes.has(entry.node)) continue;
      nodes.set(entry.node, new Told(entry.node));
      nodes.get(entry.node).entry = entry;
      nodes.get(entry.node).heard = Date.now();
    }
    draw($("#ring svg"), view, marked);
    $("#view").textContent = `as ${view.node} sees it, ${view.hash}`;
    if (line?.status.state === "open") show("open", `live, from ${view.node}`);
    table();
  }, 100);
}

function table() {
  const order = [...nodes.values()].sort((a, b) => a.name.localeCompare(b.name));
  $("#nodes tbody").replaceChildren(...order.map((told) => {
    const { entry, rates } = told;
    const row = made("tr", "", { className: Date.now() - told.heard > SILENT ? "silent" : "" });
    row.dataset.node = told.name;
    const name = made("td", told.name);
    const index = view?.on_ring.indexOf(told.name) ?? -1;
    const swatch = made("i");
    if (index >= 0) swatch.style.background = colour(index);
    name.prepend(swatch);
    const share = view && index >= 0 ? view.homes.filter((home) => home === index).length : 0;
    const used = entry.load?.budget_limit ? `${Math.round((100 * (entry.load.budget_used ?? 0)) / entry.load.budget_limit)} %` : "–";
    row.append(name, ...[
      entry.state, share, told.connections("websocket"), told.connections("sse"), told.connections("poll"),
      entry.load?.lagging ?? 0, short(rates.published), short(rates.deliveries), used,
    ].map((text) => made("td", String(text))));
    return row;
  }));
}

function total(name, number) {
  $(`[data-total=${name}]`).textContent = short(number);
}

setInterval(() => {
  if (!line) return;
  const all = [...nodes.values()].filter((told) => Date.now() - told.heard < SILENT);
  const sum = (of) => all.reduce((whole, told) => whole + of(told), 0);
  const deliveries = sum((told) => told.rates.deliveries);
  total("nodes", all.length);
  total("connections", sum((told) => told.connected));
  total("published", sum((told) => told.rates.published));
  total("deliveries", deliveries);
  total("bytes", sum((told) => told.rates.bytes));
  total("lagging", sum((told) => told.entry.load?.lagging ?? 0));
  past.push(deliveries);
  if (past.length > PAST) past.shift();
  const most = Math.max(...past, 1);
  const x = (index) => 240 - 2 * (past.length - 1 - index);
  $("#past polyline").setAttribute("points", past.map((rate, index) => `${x(index)},${46 - (44 * rate) / most}`).join(" "));
  $("#most").textContent = short(Math.max(...past));
  table();
}, 1000);

// ---------------------------------------------------------------- questions

function note(log, time, text) {
  log.querySelector(".none")?.remove();
  const item = made("li", text);
  item.prepend(made("time", new Date(time).toLocaleTimeString("en-GB"), { dateTime: time }));
  log.prepend(item);
  while (log.childElementCount > KEPT) log.lastElementChild.remove();
}

function listing(pairs) {
  const list = made("dl");
  for (const [term, value] of pairs) list.append(made("dt", term), made("dd", value === null ? "–" : String(value)));
  return list;
}

function rows(titles, records) {
  const whole = made("table"), head = made("tr"), box = made("div", "", { className: "wide" });
  head.append(...titles.map((title) => made("th", title, { scope: "col" })));
  whole.append(head, ...records.map((record) => {
    const row = made("tr");
    row.append(...record.map((value) => made("td", String(value))));
    return row;
  }));
  box.append(whole);
  return box;
}

serve($("#find"), async (form) => {
  const [select, input] = form.elements;
  const kind = select.value, name = input.value.trim();
  const answer = $("#find .answer");
  answer.replaceChildren();
  const query = new URLSearchParams({ [kind]: name });
  const way = await ask(`v1/route?${query}`);
  const held = kind === "user" ? await ask(`v1/connections?${query}`) : null;
  marked = way.partition;
  if (view) draw($("#ring svg"), view, marked);
  answer.append(listing([
    ["channel", way.channel], ["partition", way.partition], ["home", way.home], ["asked", way.node],
    ["follows it", way.interest ? "yes" : "no"], ["watermark", way.watermark], ["top of the store", way.top],
    ["subscriptions here", way.subscriptions],
  ]));
  if (way.sessions.length) {
    answer.append(rows(["session", "position", "queued", "unsent bytes", "live"], way.sessions.map((each) =>
      [each.session, each.position, each.queued, each.unsent_bytes, each.live ? "yes" : "no"])));
  }
  if (held) {
    answer.append(made("p", held.connections.length
      ? `${held.total} connection${held.total > 1 ? "s" : ""} on all nodes`
      : "No connection on any node"));
    if (held.connections.length) {
      answer.append(rows(["node", "transport", "since", "channels", "session"],
        held.connections.map((each) => [each.node, each.transport, each.connected, each.subscriptions, each.session])));
    }
    if (held.unanswered.length) answer.append(made("p", `No answer from ${held.unanswered.join(", ")}`, { className: "refusal" }));
  }
});

serve($("#publish"), async (form) => {
  const { channel, event, data } = form.elements;
  const answer = $("#publish .answer");
  answer.textContent = "";
  let parsed;
  try {
    parsed = JSON.parse(data.value);
  } catch {
    throw new Error("The data is not JSON: a text needs its quotes");
  }
  const body = JSON.stringify({ channel: channel.value.trim(), event: event.value.trim(), data: parsed });
  const { results } = await ask("v1/publish", { method: "POST", headers: { "Content-Type": "application/json" }, body });
  answer.textContent = `Stored at ${results[0].offset}, id ${results[0].id}`;
});

serve($("#tail"), (form) => {
  const channel = form.elements[0].value.trim(), log = $("#tail .log"), refusal = $("#tail .refusal");
  tail?.close();
  log.replaceChildren(made("li", `Waiting for what comes to ${channel}`, { className: "none" }));
  tail = new Ringcast(".", { channels: [channel], transports: ["sse"] });
  tail.on("message", (message) => {
    note(log, message.time, `${message.offset}  ${message.event}  ${JSON.stringify(message.data)}`);
  });
  tail.on("reset", ({ reason, offset }) => note(log, new Date().toISOString(), `reset (${reason}) at ${offset}`));
  tail.on("state", ({ state, reason }) => {
    refusal.textContent = state === "stopped" ? reason ?? "refused" : "";
  });
});

// ---------------------------------------------------------------- begin

try {
  const { operator } = await ask("session");
  if (operator) enter();
  else leave();
} catch (error) {
  show("closed", error.message);
}
