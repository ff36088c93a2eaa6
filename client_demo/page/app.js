/** The demo's page: what it shows is what `ringcast.js`, served by the gateway, tells it. */

import { Jobs } from "./jobs.js";
import { ICONS, clock, element, hue, picture } from "./draw.js";

const $ = (id) => document.getElementById(id);
const asked = Date.now();
const session = await post("/demo/session", {});
// Messages carry the server's time. The answer does too, and came somewhere between these two moments of ours.
const ahead = { least: Date.parse(session.now) - Date.now(), most: Date.parse(session.now) - asked };
const { Ringcast } = await import(`${session.gateway}/static/ringcast.js`);

const NAMES = { websocket: "WebSocket", sse: "server-sent events", longpoll: "long polling", poll: "polling" };
const SHOWN = 200; // notifications kept in the list

let ringcast;
let away = null; // since when the line has been down, and what came back: {since, opened, recovered, gap}
let count = 0;

// The token of the first session is as good as any; later ones are got when the gateway says it has expired.
let token = session.token;
async function getToken() {
  const mine = token ?? (await post("/demo/session", {})).token;
  token = null;
  return mine;
}

function connect(transport, cursor) {
  const before = ringcast;
  const mine = new Ringcast(session.gateway, {
    token: getToken,
    channels: session.channels,
    snapshot: true, // of the jobs, which are a table: a page that comes late has their state at once
    ...(cursor ? { cursor } : { since: "15m" }),
    ...(transport !== "auto" && { transports: [transport] }),
  });
  ringcast = mine;
  before?.close();
  mine.on("snapshot", ({ channel, offset, messages }) => {
    if (channel === session.jobs) jobs.begin(offset, messages.map(({ data }) => data));
  });
  mine.on("message", (message) => (message.channel === session.jobs ? jobs.show(message) : showMessage(message)));
  mine.on("reset", showReset);
  mine.on("state", (status) => mine === ringcast && showState(status));
  mine.on("error", (error) => log(`Error: ${error.message}`));
  mine.on("placement", ({ node }) => {
    if (mine !== ringcast || !session.cluster) return;
    if (node !== lastNode) log(`Now on ${node}`);
    lastNode = node;
    showNodes();
  });
  showState(mine.status);
}

function showState({ state, transport, retryIn, code, reason }) {
  const pill = $("state");
  pill.dataset.state = state;
  pill.dataset.transport = transport ?? "";
  pill.dataset.code = code ?? "";
  const why = reason ? `: ${reason}${code ? ` [${code}]` : ""}` : "";
  const [title, line] = {
    connecting: ["Connecting", `Trying ${NAMES[transport] ?? "to connect"} …`],
    open: [NAMES[transport], `Connected over <b>${NAMES[transport]}</b>. Everything published arrives here, in order.`],
    waiting: ["Reconnecting", `Disconnected${why}. Next attempt in <b>${((retryIn ?? 0) / 1000).toFixed(1)} s</b>.`],
    suspended: ["Line cut", "The line is cut. What is published now waits at the gateway until you reconnect."],
    stopped: ["Refused", `The gateway refused${why}.`],
    closed: ["Closed", "Closed."],
  }[state];
  pill.querySelector("b").textContent = title[0].toUpperCase() + title.slice(1);
  setLine(line);
  for (const input of document.querySelectorAll("#transports input")) {
    input.parentElement.classList.toggle("used", state === "open" && input.value === transport);
  }
  $("cut").setAttribute("aria-pressed", String(state === "suspended"));
  $("cut").textContent = state === "suspended" ? "Reconnect" : "Cut the line";
  if (state === "open") {
    log(`Connected over ${NAMES[transport]}`);
    if (away && !away.opened) away.opened = Date.now();
  }
  if (session.cluster) showNodes();
  if (state !== "open" && state !== "connecting") {
    log({ waiting: `Disconnected${why}`, suspended: "Line cut", stopped: `Refused${why}`, closed: "Closed" }[state]);
    away = away?.opened || !away ? { since: Date.now(), opened: 0, recovered: 0, gap: false } : away;
    $("catch-up").hidden = true;
  }
}

/** The few words that are markup are this file's own; what came from outside is escaped. */
function setLine(html) {
  const [plain, ...bold] = html.split("<b>");
  $("line").replaceChildren(plain);
  for (const part of bold) {
    const [inside, after] = part.split("</b>");
    $("line").append(element("b", {}, inside), after);
  }
}

function showMessage(message) {
  const time = new Date(message.time);
  // Published while the line was down, as exactly as the two clocks can be compared.
  const recovered = Boolean(away?.opened) && time - ahead.most <= away.opened && time - ahead.least >= away.since;
  if (recovered) {
    away.recovered += 1;
    showCatchUp(performance.now());
  }
  const { title, text, icon } = Object(message.data);
  const body = element("div", { className: "text" });
  if (typeof title === "string") body.append(element("strong", {}, title), " ");
  if (typeof text === "string") body.append(text);
  else body.append(element("code", {}, JSON.stringify(message.data)));
  const badge = picture(ICONS[icon] ?? ICONS.bell);
  badge.style.setProperty("--hue", hue(message.event));
  const meta = element("div", { className: "meta" });
  meta.append(element("span", {}, message.channel), "·", element("span", {}, message.event));
  if (recovered) meta.append(element("span", { className: "tag" }, "recovered"));
  add({ className: "message", id: `m-${message.id}` }, time, badge, body, clock(time), meta);
  count += 1;
  $("count").textContent = String(count);
}

let gap = null; // the newest reset that is shown: {channels, reason, at, body}

/** Resets that come together are one line: a gateway that began anew tells one for each channel. */
function showReset({ channel, reason }) {
  if (away) {
    away.gap = true;
    showCatchUp();
  }
  log(`Reset of ${channel}: ${reason}`);
  if (channel === session.jobs) loadJobs().catch((error) => log(`Jobs: ${error.message}`));
  if (gap?.reason === reason && Date.now() - gap.at < 1000) {
    gap.channels.push(channel);
  } else {
    const why = {
      unknown: "The gateway does not know this position: it began anew.",
      lost: "The gateway began anew, or lost part of its store.",
      trimmed: "You were away for longer than messages are kept.",
    }[reason];
    const now = new Date(Date.now() + ahead.least);
    gap = { channels: [channel], reason, at: Date.now(), body: element("div", { className: "text" }) };
    const meta = element("div", { className: "meta" }, why ?? reason);
    add({ className: "reset" }, now, picture(ICONS.gap), gap.body, clock(now), meta);
  }
  const names = new Intl.ListFormat("en").format(gap.channels);
  gap.body.replaceChildren(element("strong", {}, "There may be a gap"), ` in ${names}`);
}

const jobs = new Jobs($("jobs"), $("running"), cancelJob);

/** After a gap: the state of all jobs, as a snapshot would have brought it. */
async function loadJobs() {
  const { token: bearer } = await post("/demo/session", {});
  const response = await fetch(`${session.gateway}/v1/jobs`, { headers: { Authorization: `Bearer ${bearer}` } });
  if (!response.ok) throw new Error(`HTTP ${response.status}`);
  const { offset, jobs: states } = await response.json();
  jobs.begin(offset, states);
}

/** The answer is there before a worker has the job, or the gateway has heard of it: the rest comes by the stream. */
async function startJob(kind, course) {
  try {
    const { job } = await post("/demo/jobs", { kind, course });
    jobs.expect(job, kind);
    log(`Started ${kind} ${job}`);
  } catch (error) {
    log(`Not started: ${error.message}`);
  }
}

async function cancelJob(job) {
  try {
    await post("/demo/jobs/cancel", { job });
    log(`Cancelling ${job}`);
    return true;
  } catch (error) {
    log(`Not cancelled: ${error.message}`);
    return false;
  }
}

let nodes = []; // of the demo's cluster: {name, pid, url, up}
let lastNode;

function showNodes() {
  const { node: here, home, partition } = ringcast.placement;
  const connected = ringcast.status.state === "open";
  const items = nodes.map(({ name, pid, url, up }) => {
    const isHere = connected && name === here;
    const item = element("li", { className: `${up ? "" : "down"} ${isHere ? "here" : ""}`.trim(), id: `node-${name}` });
    const text = element("div");
    text.append(element("b", {}, name));
    if (isHere) text.append(element("span", { className: "tag" }, "you are here"));
    // Where welcome names no other home, this is it.
    const isHome = home ? home === url : isHere && partition !== undefined;
    const next = isHome && !isHere ? ", where you go next" : "";
    text.append(element("small", {}, `${up ? `pid ${pid}` : "killed; starts again"}${isHome ? ` · your home${next}` : ""}`));
    const kill = element("button", { type: "button", className: "danger", disabled: !up }, "Kill");
    kill.addEventListener("click", () => killNode(name));
    item.append(element("i"), text, kill);
    return item;
  });
  $("nodes").replaceChildren(...items);
}

async function killNode(name) {
  log(`Killing ${name}`);
  await publish("/demo/kill", { node: name });
  await watchNodes();
}

async function watchNodes() {
  const answer = await post("/demo/nodes", {});
  if (JSON.stringify(answer.nodes) === JSON.stringify(nodes)) return;
  nodes = answer.nodes;
  showNodes();
}

let resumedAt = 0;
function showCatchUp(now) {
  const { recovered, gap } = away;
  $("catch-up").hidden = false;
  $("catch-up").dataset.recovered = String(recovered);
  $("catch-up").classList.toggle("gap", gap);
  const many = recovered === 1 ? "1 message recovered" : `${recovered} messages recovered`;
  $("recovered").textContent = gap ? `${many}, and a gap` : many;
  const seconds = ((away.opened - away.since) / 1000).toFixed(1);
  const took = now && resumedAt ? `, ${Math.max(1, Math.round(now - resumedAt))} ms after reconnecting` : "";
  $("recovered-note").textContent = gap
    ? "What may be missing is told by a reset, never by silence."
    : `Published during ${seconds} s without a line${took}. None lost, none twice.`;
}

/** The newest first. Order is a channel's own; between channels a replay comes one after the other. */
function add(properties, time, ...children) {
  const item = element("li", properties);
  item.classList.add("new");
  item.dataset.time = time.toISOString();
  item.append(...children);
  const older = [...$("messages").children].find((other) => other.dataset.time <= item.dataset.time);
  $("messages").insertBefore(item, older ?? null);
  while ($("messages").childElementCount > SHOWN) $("messages").lastElementChild.remove();
  $("empty").hidden = true;
}

function log(text) {
  const entry = element("li");
  entry.append(clock(new Date()), element("span", {}, text));
  $("log").prepend(entry);
  while ($("log").childElementCount > 50) $("log").lastElementChild.remove();
}

async function post(path, body) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.detail ?? `HTTP ${response.status}`);
  return answer;
}

async function publish(path, body) {
  const receipt = $("receipt");
  try {
    const { receipts } = await post(path, body);
    const last = receipts.at(-1);
    const many = receipts.length > 1 ? `${receipts.length} stored, the last` : "Stored";
    receipt.textContent = `${many} as ${last.id} at offset ${last.offset}`;
    receipt.classList.remove("failed");
  } catch (error) {
    receipt.textContent = `Not published: ${error.message}`;
    receipt.classList.add("failed");
  }
}

const form = $("publish");
form.elements.channel.append(...session.publishable.map((channel) => new Option(channel)));
form.addEventListener("submit", (event) => {
  event.preventDefault();
  const { channel, event: name, text } = Object.fromEntries(new FormData(form));
  publish("/demo/publish", { channel, event: name, data: { text } });
});
$("burst").addEventListener("click", () => publish("/demo/burst", {}));
$("report").addEventListener("click", () => {
  startJob("report", document.querySelector("#courses input:checked").value);
});
$("images").addEventListener("click", () => startJob("images", "works"));
$("cut").addEventListener("click", () => {
  if (ringcast.status.state === "suspended") {
    resumedAt = performance.now();
    ringcast.resume();
  } else {
    ringcast.suspend();
    publish("/demo/burst", {}); // so that there is something to recover
  }
});
$("transports").addEventListener("change", ({ target }) => {
  log(`Transport: ${target.value}, at the same cursor`);
  connect(target.value, ringcast.cursor);
});
$("clear").addEventListener("click", () => {
  $("messages").replaceChildren();
  $("empty").hidden = false;
  $("count").textContent = String((count = 0));
});
$("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
$("curl").textContent = session.curl;
$("cluster").hidden = !session.cluster;

connect(document.querySelector("#transports input:checked").value); // a reloaded page keeps the choice

if (session.cluster) {
  await watchNodes();
  setInterval(() => watchNodes().catch((error) => log(`The demo's backend: ${error.message}`)), 1000);
}
