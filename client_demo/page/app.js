/** The demo's page: what it shows is what `ringcast.js`, served by the gateway, tells it. */

const $ = (id) => document.getElementById(id);
const asked = Date.now();
const session = await post("/demo/session", {});
// Messages carry the server's time. The answer does too, and came somewhere between these two moments of ours.
const ahead = { least: Date.parse(session.now) - Date.now(), most: Date.parse(session.now) - asked };
const { Ringcast } = await import(`${session.gateway}/static/ringcast.js`);

const NAMES = { websocket: "WebSocket", sse: "server-sent events", longpoll: "long polling", poll: "polling" };
const SHOWN = 200; // notifications kept in the list

/** Drawn in a box of 24 by 24, by the name that a notification gives as its `icon`. */
const ICONS = {
  bell: "M6 16v-5a6 6 0 1 1 12 0v5l1.5 2.5h-15L6 16Zm4 5.2h4",
  box: "m4 7.5 8-4 8 4v9l-8 4-8-4v-9Zm0 0 8 4 8-4m-8 4v9M8 5.5l8 4",
  chat: "M4 5h16v11H11l-4.5 4v-4H4V5Zm4 4h8M8 12.3h5",
  check: "M12 3.2a8.8 8.8 0 1 0 0 17.6 8.8 8.8 0 0 0 0-17.6ZM8 12.2l2.8 2.8L16 9.5",
  coin: "M12 3.2a8.8 8.8 0 1 0 0 17.6 8.8 8.8 0 0 0 0-17.6ZM15.5 8.8a4.3 4.3 0 1 0 0 6.4M7.5 11h5m-5 2.4h5",
  rocket:
    "M9 15c-2 0-3.5 1.5-4 5 3.5-.5 5-2 5-4M9 15l-2.5-2.5C8 7 12 3.5 19.5 4.5 20.5 12 17 16 11.5 17.5L9 15Z" +
    "m5.3-7.2a1.7 1.7 0 1 1 0 3.4 1.7 1.7 0 0 1 0-3.4Z",
  gap: "M12 4 2.8 20h18.4L12 4Zm0 6v4.5m0 2.6v.4",
};

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
    ...(cursor ? { cursor } : { since: "15m" }),
    ...(transport !== "auto" && { transports: [transport] }),
  });
  ringcast = mine;
  before?.close();
  mine.on("message", showMessage);
  mine.on("reset", showReset);
  mine.on("state", (status) => mine === ringcast && showState(status));
  mine.on("error", (error) => log(`Error: ${error.message}`));
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
  } else if (state !== "connecting") {
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

function element(name, properties = {}, text = "") {
  const made = Object.assign(document.createElement(name), properties);
  if (text) made.textContent = text;
  return made;
}

function picture(path) {
  const badge = element("div", { className: "badge", ariaHidden: "true" });
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.append(document.createElementNS(svg.namespaceURI, "path"));
  svg.firstChild.setAttribute("d", path);
  badge.append(svg);
  return badge;
}

function clock(time) {
  const shown = time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  return element("time", { dateTime: time.toISOString(), title: time.toLocaleString() }, shown);
}

/** The same event, the same colour. */
function hue(word) {
  let sum = 7;
  for (const character of word) sum = (sum * 31 + character.codePointAt(0)) % 360;
  return String(sum);
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

connect(document.querySelector("#transports input:checked").value); // a reloaded page keeps the choice
