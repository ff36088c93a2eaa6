import assert from "node:assert/strict";
import { test } from "node:test";
import {
  EventStreamParser,
  addressOf,
  decodeCursor,
  encodeCursor,
  placeOf,
  queryOf,
  refusal,
} from "../../../gateway/static/ringcast/wire.js";

test("a cursor is unpadded base64url of JSON, whatever the channels are called", () => {
  const positions = new Map([
    ["topic:ünï-日本-🎉", 1763712345123456],
    ["user:~~~???", 0],
    ["a:b", 2 ** 53 - 1],
  ]);
  const cursor = encodeCursor(positions);
  assert.match(cursor, /^[A-Za-z0-9_-]+$/);
  assert.deepEqual(JSON.parse(Buffer.from(cursor, "base64url").toString()), Object.fromEntries(positions));
  assert.deepEqual(decodeCursor(cursor), positions);
  assert.equal(encodeCursor(new Map()), "");
});

test("what is not a cursor is refused", () => {
  for (const text of ["%%%", "e30x", "bnVsbA", btoa('{"a:b":-1}'), btoa('{"a:b":1.5}'), btoa('{"a:b":"1"}')]) {
    assert.throws(() => decodeCursor(text), TypeError, text);
  }
});

const STREAM = [
  "\ufeff: a comment\r\nretry: 1000\r\n\r\n",
  'event: ringcast.welcome\ndata: {"type":"welcome"}\n\n',
  "id: abc\n\n",
  'event:order.shipped\rdata: {"text":\rdata:  "é🎉"}\r\r',
  "data\n\ndata: one\nnonsense: field\nid: with\0nul\n\nevent: empty\n\ndata: never ended",
].join("");

const EVENTS = [
  { event: "ringcast.welcome", data: '{"type":"welcome"}', id: undefined },
  { event: "message", data: "", id: "abc" },
  { event: "order.shipped", data: '{"text":\n "é🎉"}', id: undefined },
  { event: "message", data: "", id: undefined },
  { event: "message", data: "one", id: undefined },
];

test("an event stream is the same events wherever it is torn apart", () => {
  assert.deepEqual(new EventStreamParser().push(STREAM), EVENTS);
  for (let size = 1; size < 9; size += 1) {
    const parser = new EventStreamParser();
    const events = [];
    for (let at = 0; at < STREAM.length; at += size) events.push(...parser.push(STREAM.slice(at, at + size)));
    assert.deepEqual(events, EVENTS, `in pieces of ${size}`);
  }
});

test("what a URL cannot hold is not put into one", () => {
  const wanted = { channels: ["topic:news"], cursor: "abc", since: "15m", snapshot: true };
  assert.equal(String(queryOf(wanted)), "channels=topic%3Anews&cursor=abc&since=15m&snapshot=true");
  assert.equal(String(queryOf({ channels: [], cursor: "" })), "");
  assert.equal(queryOf({ channels: [], cursor: "c".repeat(4097) }), null);
  const many = Array.from({ length: 150 }, (_, n) => `topic:channel-${n}`);
  assert.equal(queryOf({ channels: many, cursor: "" }), null, "the cursor of the answer would not fit");
});

test("a gateway below a path keeps it", () => {
  assert.equal(addressOf(new URL("https://x.example/rt"), "v1/sse").href, "https://x.example/rt/v1/sse");
  assert.equal(addressOf(new URL("https://x.example"), "v1/sse").href, "https://x.example/v1/sse");
});

function problem(status, code, headers = {}) {
  const body = JSON.stringify({ code, status, title: "T", detail: "D" });
  return new Response(body, { status, headers: { "Content-Type": "application/problem+json", ...headers } });
}

test("the gateway's refusals are its codes", async () => {
  const table = [
    [401, "token_expired", 4200],
    [401, "unauthorised", 4001],
    [403, "forbidden", 4003],
    [403, "forbidden_origin", 4003],
    [400, "bad_cursor", 4008],
    [413, "too_large", 4009],
    [429, "rate_limited", 4103],
    [503, "draining", 4100],
    [503, "full", 4104],
    [503, "busy", 4104],
    [503, "unavailable", 4101],
    [500, "server_error", 4101],
    [404, "not_found", 4008],
  ];
  for (const [status, code, expected] of table) {
    const end = await refusal(problem(status, code, { "Retry-After": "3" }));
    assert.deepEqual(end, { code: expected, reason: "D", wait: 3000 });
  }
});

test("what somebody else answers is no refusal: it blocks, or the gateway is away", async () => {
  const answer = (status, type = "text/html") => new Response("<html>", { status, headers: { "Content-Type": type } });
  for (const status of [200, 403, 404, 405, 407, 451])
    assert.equal((await refusal(answer(status))).blocked, true, status);
  for (const status of [408, 429, 502, 503, 504]) assert.equal((await refusal(answer(status))).blocked, false, status);
  assert.equal((await refusal(answer(403, "application/json"))).code, undefined);
});

test("the partition is in a URL that holds all, and in one that holds nothing else", () => {
  const wanted = { channels: ["a:b"], cursor: "" };
  assert.equal(queryOf({ ...wanted, partition: 417 }).toString(), "channels=a%3Ab&p=417");
  assert.equal(queryOf({ ...wanted, partition: 0 }).get("p"), "0");
  assert.equal(queryOf(wanted).has("p"), false);
  assert.deepEqual([placeOf({ ...wanted, partition: 0 }), placeOf(wanted)], ["p=0", ""]);
});
