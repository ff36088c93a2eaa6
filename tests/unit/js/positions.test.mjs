import assert from "node:assert/strict";
import { test } from "node:test";
import { Positions } from "../../../gateway/static/ringcast/positions.js";
import { encodeCursor } from "../../../gateway/static/ringcast/wire.js";

const channel = "topic:a";
const at = (offset) => ({ channel, offset });

test("a reset of a link opened beside another shows only what that one did not", () => {
  const positions = new Positions(encodeCursor(new Map([[channel, 50]])));
  positions.begin(at(50)); // the reset that the link in use is told
  assert.deepEqual([60, 62].map((offset) => positions.take(at(offset), true)), [true, true]);
  positions.advance(encodeCursor(new Map([[channel, 62]])));
  positions.begin(at(50)); // the same one, told again by the link that has taken over
  assert.deepEqual([60, 61, 62, 63].map((offset) => positions.take(at(offset))), [false, true, false, true]);
  positions.begin(at(50)); // another one
  assert.deepEqual([60, 61, 62, 63].map((offset) => positions.take(at(offset))), [true, true, true, true]);
});
