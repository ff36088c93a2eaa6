import assert from "node:assert/strict";
import { beforeEach, mock, test } from "node:test";
import { Ringcast, decodeCursor, encodeCursor } from "../../../gateway/static/ringcast.js";

/** Links that do nothing by themselves, so that a test is the network and the gateway in one. */
let made;

function fake(transport, { sends = false, heartbeats = false } = {}) {
  return class {
    static transport = transport;
    static heartbeats = heartbeats;
    constructor(desk) {
      Object.assign(this, { desk, transport, asked: desk.wanted(), closed: false, sent: [] });
      if (sends) this.send = (frame) => this.sent.push(frame);
      made.push(this);
    }
    close() {
      this.closed = true;
    }
    welcome(channels = {}, more = {}) {
      const entries = Object.entries(channels).map(([channel, offset]) => ({ channel, offset, ...more }));
      this.desk.frame({ type: "welcome", heartbeat_ms: 15000, channels: entries });
    }
    message(channel, offset) {
      this.desk.frame({ type: "message", channel, offset, event: "e", data: offset });
    }
  };
}

const LADDER = [
  fake("websocket", { sends: true, heartbeats: true }),
  fake("sse", { heartbeats: true }),
  fake("longpoll"),
  fake("poll"),
];
const settled = () => new Promise((resolve) => setImmediate(resolve)); // not among the mocked timers
const newest = () => made.at(-1);

async function open(options = {}) {
  const ringcast = new Ringcast("http://gateway.example", {
    channels: ["a:b"],
    transports: LADDER,
    token: () => "t",
    ...options,
  });
  const seen = { messages: [], resets: [], errors: [], states: [], snapshots: [] };
  ringcast.on("message", ({ channel, offset }) => seen.messages.push([channel, offset]));
  ringcast.on("reset", (reset) => seen.resets.push(reset));
  ringcast.on("error", (error) => seen.errors.push(error));
  ringcast.on("snapshot", (snapshot) => seen.snapshots.push(snapshot));
  ringcast.on("state", (status) => seen.states.push(status));
  await settled();
  return { ringcast, seen };
}

async function pass(milliseconds) {
  mock.timers.tick(milliseconds);
  await settled();
}

/** Go down the ladder to `transport`, the ones above being blocked, and open it. */
async function openOver(transport, options) {
  const opened = await open(options);
  while (newest().transport !== transport) {
    newest().desk.end({ blocked: true, reason: "blocked" });
    await settled();
  }
  newest().welcome({ "a:b": 10 });
  return opened;
}

beforeEach(() => {
  mock.timers.reset();
  mock.timers.enable({ apis: ["setTimeout", "Date"] });
  mock.restoreAll();
  mock.method(Math, "random", () => 1); // the longest back-off each time
  made = [];
});

test("messages come once, in order, and the cursor is what was seen", async () => {
  const { ringcast, seen } = await open();
  newest().welcome({ "a:b": 10, "user:é": 10 });
  for (const offset of [11, 11, 10, 13, 12]) newest().message("a:b", offset);
  assert.deepEqual(seen.messages, [
    ["a:b", 11],
    ["a:b", 13],
  ]);
  assert.deepEqual(Object.fromEntries(decodeCursor(ringcast.cursor)), { "a:b": 13, "user:é": 10 });
  newest().desk.frame({
    type: "ping",
    cursor: encodeCursor(
      new Map([
        ["a:b", 12],
        ["user:é", 20],
      ]),
    ),
  });
  assert.deepEqual(Object.fromEntries(decodeCursor(ringcast.cursor)), { "a:b": 13, "user:é": 20 });
});

test("a reset is told, and its offset replaces the position, even by a lower one", async () => {
  const { seen } = await open({ cursor: encodeCursor(new Map([["a:b", 100]])) });
  newest().welcome({ "a:b": 50 }, { recovered: false });
  newest().desk.frame({ type: "reset", channel: "a:b", reason: "unknown", offset: 50 });
  newest().message("a:b", 60);
  assert.equal(seen.resets[0].reason, "unknown");
  assert.deepEqual(seen.messages, [["a:b", 60]]);
});

test("a lost connection comes back over the same transport with the cursor", async () => {
  const { seen } = await open();
  newest().welcome({ "a:b": 10 });
  newest().message("a:b", 11);
  newest().desk.end({ reason: "cut" });
  assert.equal(seen.states.at(-1).state, "waiting");
  await pass(1000);
  assert.equal(made.length, 2);
  assert.equal(newest().transport, "websocket");
  assert.deepEqual(decodeCursor(newest().asked.cursor), new Map([["a:b", 11]]));
});

for (const code of [4100, 4101, 4102, 4103, 4104]) {
  test(`${code} backs off and never makes it downgrade`, async () => {
    const { seen } = await open();
    for (let attempt = 1; attempt <= 8; attempt += 1) {
      newest().desk.end({ code, reason: "not now", wait: 0 });
      assert.equal(seen.states.at(-1).code, code);
      const { retryIn } = seen.states.at(-1);
      assert.equal(retryIn, Math.min(30000, 1000 * 2 ** (attempt - 1)));
      await pass(retryIn);
    }
    assert.deepEqual(new Set(made.map(({ transport }) => transport)), new Set(["websocket"]));
  });
}

test("Retry-After and a refusing goodbye's after_ms are the least to wait", async () => {
  const { seen } = await open();
  newest().desk.end({ code: 4103, reason: "", wait: 7000 });
  assert.equal(seen.states.at(-1).retryIn, 7000);
  await pass(7000);
  newest().desk.frame({ type: "goodbye", code: 4104, reconnect: true, after_ms: 9000, hint: "full" });
  newest().desk.end({ reason: "", blocked: false });
  assert.deepEqual(
    [seen.states.at(-1).code, seen.states.at(-1).retryIn, seen.states.at(-1).reason],
    [4104, 9000, "full"],
  );
  assert.ok(made.every(({ transport }) => transport === "websocket"));
});

test("the back-off begins anew after a minute of stability", async () => {
  const { seen } = await open();
  for (let n = 0; n < 4; n += 1) {
    newest().desk.end({ code: 4101, reason: "" });
    await pass(30000);
  }
  newest().welcome({ "a:b": 10 });
  await pass(20000);
  newest().desk.frame({ type: "ping" });
  newest().desk.end({ reason: "cut" });
  assert.equal(seen.states.at(-1).retryIn, 16000);
  await pass(16000);
  newest().welcome({ "a:b": 10 });
  for (let n = 0; n < 4; n += 1) {
    await pass(15000);
    newest().desk.frame({ type: "ping" });
  }
  newest().desk.end({ reason: "cut" });
  assert.equal(seen.states.at(-1).retryIn, 1000);
});

test("an expired token is replaced and the same transport opened at once", async () => {
  let tokens = 0;
  const { seen } = await open({ token: () => `t${++tokens}` });
  newest().welcome({ "a:b": 10 });
  newest().desk.end({ code: 4200, reason: "expired" });
  await settled();
  assert.deepEqual(
    made.map(({ transport, desk }) => [transport, desk.token]),
    [
      ["websocket", "t1"],
      ["websocket", "t2"],
    ],
  );
  // A callback that keeps giving expired ones must not make it run in circles.
  newest().desk.end({ code: 4200, reason: "expired" });
  assert.equal(seen.states.at(-1).state, "waiting");
  await pass(1000);
  assert.deepEqual([newest().transport, newest().desk.token], ["websocket", "t3"]);
});

test("a token callback that fails is told, and asked again later", async () => {
  let calls = 0;
  const { seen } = await open({ token: () => (++calls === 1 ? Promise.reject(new Error("offline")) : "t") });
  assert.equal(seen.errors[0].code, "token");
  assert.equal(seen.states.at(-1).state, "waiting");
  await pass(1000);
  assert.equal(newest().desk.token, "t");
});

for (const code of [4001, 4003, 4008, 4009]) {
  test(`${code} stops, and says so`, async () => {
    const { ringcast, seen } = await open();
    newest().desk.end({ code, reason: "no" });
    await pass(60000);
    assert.deepEqual([made.length, seen.states.at(-1).state, seen.errors[0].code], [1, "stopped", code]);
    ringcast.resume();
    await settled();
    assert.equal(made.length, 2);
  });
}

test("a blocked transport is left for the next one; when all fail it begins again at the top", async () => {
  const { seen } = await open();
  for (let n = 0; n < 4; n += 1) {
    newest().desk.end({ blocked: true, reason: "403" });
    await settled();
  }
  assert.deepEqual(
    made.map(({ transport }) => transport),
    ["websocket", "sse", "longpoll", "poll"],
  );
  assert.equal(seen.states.at(-1).state, "waiting");
  await pass(1000);
  assert.equal(newest().transport, "websocket");
});

test("where nothing can be reached at all, polling otherwise is not tried", async () => {
  await open();
  for (const end of [{ blocked: true }, { blocked: true }, { blocked: true, unreachable: true }]) {
    newest().desk.end({ reason: "", ...end });
    await settled();
  }
  await pass(1000);
  assert.deepEqual(
    made.map(({ transport }) => transport),
    ["websocket", "sse", "longpoll", "websocket"],
  );
});

test("a transport that has worked before is given a second attempt", async () => {
  await open();
  newest().welcome({ "a:b": 10 });
  newest().desk.end({ reason: "cut" });
  await pass(1000);
  newest().desk.end({ blocked: true, reason: "refused" });
  await pass(2000);
  assert.equal(newest().transport, "websocket");
  newest().desk.end({ blocked: true, reason: "refused" });
  await settled();
  assert.equal(newest().transport, "sse");
});

test("silence of two heartbeats is a lost line; before the first ping, a transport that is held back", async () => {
  await open();
  newest().welcome({ "a:b": 10 });
  await pass(15000);
  newest().desk.frame({ type: "ping" });
  await pass(15000);
  assert.equal(made.length, 1);
  await pass(15000);
  await pass(1000);
  assert.deepEqual(
    made.map(({ transport, closed }) => [transport, closed]),
    [
      ["websocket", true],
      ["websocket", false],
    ],
  );
  newest().welcome({ "a:b": 10 });
  await pass(30000);
  assert.equal(newest().transport, "sse");
});

test("a better transport is tried beside and takes over without loss or repetition", async () => {
  const { ringcast, seen } = await openOver("longpoll");
  const old = newest();
  await pass(15000);
  const better = newest();
  assert.deepEqual([better.transport, old.closed], ["websocket", false]);
  old.message("a:b", 11); // after the position that the other presents
  better.welcome({ "a:b": 10 }, { recovered: true });
  assert.ok(old.closed);
  old.message("a:b", 12); // a closed link has nothing to say
  for (const offset of [11, 12]) better.message("a:b", offset);
  assert.deepEqual(seen.messages, [
    ["a:b", 11],
    ["a:b", 12],
  ]);
  assert.equal(ringcast.status.transport, "websocket");
});

test("while the better transport is still blocked, the next better one is, and later both again", async () => {
  const { ringcast } = await openOver("longpoll");
  await pass(15000);
  newest().desk.end({ blocked: true, reason: "403" });
  await settled();
  assert.equal(newest().transport, "sse");
  newest().desk.end({ blocked: true, reason: "403" });
  await pass(30000);
  assert.equal(newest().transport, "websocket");
  assert.deepEqual([ringcast.status.state, ringcast.status.transport], ["open", "longpoll"]);
});

test("when the link ends while another is tried beside, that one goes on alone", async () => {
  const { ringcast } = await openOver("sse");
  await pass(15000);
  made.at(-2).desk.end({ reason: "cut" });
  assert.equal(ringcast.status.state, "connecting");
  newest().welcome({ "a:b": 10 }, { recovered: true });
  assert.deepEqual([ringcast.status.state, made.length], ["open", 3]);
});

test("a draining node's goodbye is obeyed: another link when after_ms has passed, then this one is left", async () => {
  const { seen } = await open();
  newest().welcome({ "a:b": 10 });
  const leaving = newest();
  leaving.desk.frame({ type: "goodbye", code: 4100, reconnect: true, after_ms: 3000 });
  await pass(2999);
  leaving.message("a:b", 11);
  assert.equal(made.length, 1);
  await pass(1);
  assert.equal(made.length, 2);
  leaving.message("a:b", 12);
  newest().welcome({ "a:b": 11 }, { recovered: true });
  newest().message("a:b", 12);
  newest().message("a:b", 13);
  assert.deepEqual(
    seen.messages.map(([, offset]) => offset),
    [11, 12, 13],
  );
  assert.ok(leaving.closed && !seen.states.some(({ state }) => state === "waiting"));
});

test("where the other link is turned away it is tried again while the draining node still serves", async () => {
  await open();
  newest().welcome({ "a:b": 10 });
  const leaving = newest();
  leaving.desk.frame({ type: "goodbye", code: 4100, reconnect: true, after_ms: 500 });
  await pass(500);
  newest().desk.end({ code: 4100, reason: "draining" });
  assert.ok(!leaving.closed);
  await pass(1000);
  assert.equal(made.length, 3);
  newest().welcome({ "a:b": 10 }, { recovered: true });
  assert.ok(leaving.closed);
});

test("over a WebSocket channels come and go by frames; one that is refused is told and forgotten", async () => {
  const { ringcast, seen } = await open();
  newest().welcome({ "a:b": 10 });
  await settled();
  ringcast.subscribe("c:d", { since: "5m" });
  ringcast.subscribe("c:secret");
  await settled();
  const [first, second] = newest().sent;
  assert.deepEqual(first, { type: "subscribe", channel: "c:d", since: "5m", id: first.id });
  newest().desk.frame({ type: "subscribed", id: first.id, channel: "c:d", offset: 20, snapshot: [] });
  newest().desk.frame({ type: "error", id: second.id, code: "forbidden", message: "no" });
  await settled();
  assert.deepEqual([seen.errors[0].code, ringcast.channels, seen.snapshots.length], ["forbidden", ["a:b", "c:d"], 1]);
  ringcast.unsubscribe("a:b");
  newest().message("a:b", 11);
  await settled();
  assert.equal(newest().sent.at(-1).type, "unsubscribe");
  newest().desk.end({ reason: "cut" });
  await pass(1000);
  assert.deepEqual(
    [newest().asked.channels, decodeCursor(newest().asked.cursor), seen.messages],
    [["c:d"], new Map([["c:d", 20]]), []],
  );
});

test("a stream cannot change its channels, so another is opened beside; a refusal keeps the old one", async () => {
  const { ringcast, seen } = await openOver("sse");
  const old = newest();
  ringcast.subscribe("c:d");
  ringcast.subscribe("c:secret");
  await settled();
  assert.deepEqual(newest().asked.channels, ["a:b", "c:d", "c:secret"]);
  newest().desk.end({ code: 4003, reason: "not c:secret" });
  await settled();
  assert.deepEqual([seen.errors[0].code, ringcast.channels, old.closed], [4003, ["a:b"], false]);
  newest().welcome({ "a:b": 10 }, { recovered: true });
  ringcast.subscribe("c:d");
  await settled();
  newest().desk.frame({
    type: "checkpoint",
    cursor: encodeCursor(
      new Map([
        ["a:b", 10],
        ["c:d", 30],
      ]),
    ),
  });
  assert.deepEqual([ringcast.status.state, ringcast.channels], ["open", ["a:b", "c:d"]]);
});

test("suspended means silent; resumed, it goes on at the same positions", async () => {
  const { ringcast, seen } = await open();
  newest().welcome({ "a:b": 10 });
  ringcast.suspend();
  newest().message("a:b", 11);
  await pass(120000);
  assert.deepEqual([made.length, seen.messages, seen.states.at(-1).state], [1, [], "suspended"]);
  ringcast.resume();
  await settled();
  assert.deepEqual(decodeCursor(newest().asked.cursor), new Map([["a:b", 10]]));
  ringcast.close();
  ringcast.resume();
  await pass(120000);
  assert.deepEqual([made.length, ringcast.status.state], [2, "closed"]);
});

test("a publish over the WebSocket is answered, refused or lost", async () => {
  const { ringcast } = await open();
  newest().welcome({ "a:b": 10 });
  const all = ["one", "two", "three"].map((event) => ringcast.publish("a:b", event, { n: 1 }, { id: event }));
  const [one, two] = newest().sent;
  assert.deepEqual(one, {
    type: "publish",
    channel: "a:b",
    event: "one",
    data: { n: 1 },
    message_id: "one",
    id: one.id,
  });
  newest().desk.frame({
    type: "published",
    id: one.id,
    results: [{ channel: "a:b", offset: 11, id: "one", duplicate: false }],
  });
  newest().desk.frame({ type: "error", id: two.id, code: "forbidden", message: "no" });
  newest().desk.end({ reason: "cut" });
  const [first, second, third] = await Promise.allSettled(all);
  assert.equal(first.value.offset, 11);
  assert.deepEqual([second.reason.code, third.reason.code], ["forbidden", "lost"]);
});

test("a listener that throws stops nothing, and its error is the page's", async () => {
  const { ringcast, seen } = await open();
  ringcast.on("message", () => {
    throw new Error("the page's fault");
  });
  newest().welcome({ "a:b": 10 });
  await settled();
  const later = [];
  mock.method(globalThis, "queueMicrotask", (task) => later.push(task));
  newest().message("a:b", 11);
  newest().message("a:b", 12);
  assert.equal(seen.messages.length, 2);
  for (const task of later) assert.throws(task, /the page's fault/);
  assert.equal(later.length, 2);
});

test("a refusal of the token is not taken for one of the channel that was just added", async () => {
  const { ringcast } = await openOver("sse");
  ringcast.subscribe("c:d");
  await settled();
  made.at(-2).desk.end({ reason: "cut" });
  newest().desk.end({ code: 4001, reason: "no" });
  assert.deepEqual([ringcast.status.state, ringcast.channels], ["stopped", ["a:b", "c:d"]]);
});

const HOME = "http://one.gateway.example/";

async function named(transport = "websocket", options) {
  const opened = await openOver(transport, options);
  newest().desk.frame({ type: "welcome", node: "n-2", partition: 417, home: HOME, channels: [] });
  await settled();
  return opened;
}

test("a home is followed at the next connect, with the partition, and not before", async () => {
  const { ringcast, seen } = await named();
  assert.equal(made.length, 1);
  assert.deepEqual(ringcast.placement, { node: "n-2", partition: 417, home: HOME });
  newest().desk.end({ reason: "cut" });
  await pass(1000);
  assert.equal(newest().desk.url.href, HOME);
  assert.equal(newest().asked.partition, 417);
  newest().welcome({ "a:b": 10 });
  newest().desk.end({ reason: "cut" });
  await pass(2000);
  assert.equal(newest().desk.url.href, HOME);
  assert.equal(seen.errors.length, 0);
});

for (const [what, end] of [
  ["is not reached", { blocked: true, unreachable: true, reason: "refused" }],
  ["is blocked", { blocked: true, reason: "403 of somebody else" }],
  ["refuses the token", { code: 4001, reason: "who?" }],
  ["is full", { code: 4104, reason: "full", wait: 5000 }],
]) {
  test(`a home that ${what} costs one attempt, and the given address is next at once`, async () => {
    const { seen } = await named();
    newest().desk.end({ reason: "cut" });
    await pass(1000);
    newest().desk.end(end);
    await settled();
    assert.equal(made.length, 3);
    assert.deepEqual([newest().transport, newest().desk.url.href], ["websocket", "http://gateway.example/"]);
    newest().desk.frame({ type: "welcome", node: "n-2", partition: 417, home: HOME, channels: [] });
    newest().desk.end({ reason: "cut" });
    await pass(2000);
    assert.equal(newest().desk.url.href, "http://gateway.example/");
    assert.deepEqual(seen.errors, []);
  });
}

test("a home that says nothing is left after four seconds", async () => {
  await named();
  newest().desk.end({ reason: "cut" });
  await pass(1000);
  const home = newest();
  await pass(3999);
  assert.equal(newest(), home);
  await pass(1);
  assert.ok(home.closed);
  assert.equal(newest().desk.url.href, "http://gateway.example/");
});

test("a home that lets us in may be silent until its heartbeat", async () => {
  await named();
  newest().desk.end({ reason: "cut" });
  await pass(1000);
  newest().welcome({ "a:b": 10 });
  await pass(10_000);
  assert.equal(made.length, 2);
});

test("a home that drains is left for the given address when its time has come", async () => {
  await named();
  newest().desk.end({ reason: "cut" });
  await pass(1000);
  newest().welcome({ "a:b": 10 });
  newest().desk.frame({ type: "goodbye", code: 4100, reconnect: true, after_ms: 500 });
  await pass(500);
  assert.equal(made.length, 3);
  assert.equal(newest().desk.url.href, "http://gateway.example/");
});

test("polls go home beside the chain that runs, and stay where they are when that fails", async () => {
  await named("longpoll");
  const [before, home] = made.slice(-2);
  assert.equal(home.desk.url.href, HOME);
  assert.equal(home.transport, "longpoll");
  assert.ok(!before.closed);
  home.desk.end({ blocked: true, unreachable: true, reason: "refused" });
  await settled();
  assert.equal(newest(), home, "nothing more is tried");
  before.desk.frame({ type: "welcome", node: "n-1", partition: 417, home: HOME });
  await settled();
  assert.equal(newest(), home, "it is left alone for a while");
  before.desk.frame({ type: "welcome", node: "n-1", partition: 417, home: "http://two.gateway.example/" });
  await settled();
  assert.equal(newest().desk.url.href, "http://two.gateway.example/");
  newest().desk.frame({ type: "welcome", node: "n-3", partition: 417 });
  assert.ok(before.closed);
});

test("a page may know the partition beforehand", async () => {
  await open({ partition: 7 });
  assert.equal(newest().asked.partition, 7);
});
