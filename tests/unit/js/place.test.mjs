import assert from "node:assert/strict";
import { beforeEach, mock, test } from "node:test";
import { Place } from "../../../gateway/static/ringcast/place.js";

const GIVEN = new URL("https://gateway.example/");
const HOME = "https://one.gateway.example";
const OTHER = "https://two.gateway.example";
const now = (place) => place.now.href.replace(/\/$/, "");

beforeEach(() => {
  mock.timers.reset();
  mock.timers.enable({ apis: ["Date"] });
});

test("a home is where the next connection goes, and stays while it names no other", () => {
  const place = new Place(GIVEN);
  assert.equal(place.now, GIVEN);
  place.told(GIVEN, { partition: 417, home: HOME });
  assert.deepEqual([now(place), place.partition], [HOME, 417]);
  place.told(place.now, { partition: 417 });
  assert.equal(now(place), HOME);
  place.told(place.now, { partition: 417, home: OTHER });
  assert.equal(now(place), OTHER);
  place.told(GIVEN, {});
  assert.deepEqual([place.now, place.partition], [GIVEN, 417]);
  place.told(new URL(HOME), { home: GIVEN.href });
  assert.equal(place.now, GIVEN);
});

test("a home that fails is left at once and for a while, and another one is not", () => {
  const place = new Place(GIVEN);
  place.told(GIVEN, { home: HOME });
  place.leave(place.now);
  assert.equal(place.now, GIVEN);
  place.told(GIVEN, { home: HOME });
  assert.equal(place.now, GIVEN);
  place.told(GIVEN, { home: OTHER });
  assert.equal(now(place), OTHER);
  mock.timers.tick(300_000);
  place.told(GIVEN, { home: HOME });
  assert.equal(now(place), HOME);
});

for (const [code, again] of [[4100, true], [4200, true], [4003, false], [undefined, false]]) {
  test(`one that ends with ${code} ${again ? "may" : "may not"} be named again`, () => {
    const place = new Place(GIVEN);
    place.told(GIVEN, { home: HOME });
    place.leave(place.now, code);
    assert.equal(place.now, GIVEN);
    place.told(GIVEN, { home: HOME });
    assert.equal(now(place) === HOME, again);
  });
}

test("the goodbye of another node does not concern the home", () => {
  const place = new Place(GIVEN);
  place.told(GIVEN, { home: HOME });
  place.forget(GIVEN);
  assert.equal(now(place), HOME);
  place.forget(new URL(HOME));
  assert.equal(place.now, GIVEN);
});

const homes = ["node.elsewhere.example", "*.more.example"];

for (const home of [
  "https://gateway.example:8443",
  "https://one.gateway.example/ringcast",
  "https://a.b.gateway.example",
  "https://One.Gateway.example",
  "https://node.elsewhere.example",
  "https://deep.in.more.example:1",
]) {
  test(`a token may go to ${home}`, () => {
    const place = new Place(GIVEN, { homes });
    place.told(GIVEN, { home });
    assert.equal(place.now.href, new URL(home).href);
  });
}

for (const home of [
  "http://gateway.example",
  "http://one.gateway.example",
  "ws://gateway.example",
  "javascript:alert(1)",
  "",
  "/v1",
  17,
  null,
  "https://evil.example",
  "https://gateway.example.evil.example",
  "https://evilgateway.example",
  "https://gateway.example@evil.example",
  "https://evil.example/gateway.example",
  "https://a:b@gateway.example",
  "https://evil.example\\@gateway.example",
  "https://evil.example\\.gateway.example",
  "https://gateway.example?x=y",
  "https://gateway.example#x",
  "https://evil.example%2f.gateway.example",
  "https://evil.example#.gateway.example",
  "https://more.example",
  "https://x.node.elsewhere.example",
]) {
  test(`a token may not go to ${home}`, () => {
    const place = new Place(GIVEN, { homes });
    place.told(GIVEN, { partition: 1, home });
    assert.equal(place.now, GIVEN);
  });
}

test("other ports are the same host, another scheme is not, and below an address there is nothing", () => {
  const given = new URL("http://127.0.0.1:8000");
  for (const [home, may] of [["http://127.0.0.1:8001", true], ["https://127.0.0.1", false], ["http://x.127.0.0.1", false]]) {
    const place = new Place(given);
    place.told(given, { home });
    assert.equal(place.now !== given, may, home);
  }
});

test("patterns that cannot be meant are refused", () => {
  for (const pattern of ["*", "https://a.example", "a.*.example", "a.example:80", ""]) {
    assert.throws(() => new Place(GIVEN, { homes: [pattern] }), TypeError, pattern);
  }
});
