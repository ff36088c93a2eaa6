"""The browser client itself in a page of the gateway's origin, with nothing around it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from tests.browser.conftest import ICON, Visit, Visits
from tests.support.keys import token

_SCRIPT = """async (options) => {
  const { Ringcast } = await import("/static/ringcast.js");
  const seen = (window.seen = { messages: [], resets: [], errors: [], states: [], snapshots: [] });
  const tell = (status) => seen.states.push({ ...status, at: performance.now() });
  const ringcast = (window.ringcast = new Ringcast(location.origin, { token: () => window.getToken(), ...options }));
  ringcast.on("message", (message) => seen.messages.push(message));
  ringcast.on("reset", (reset) => seen.resets.push(reset));
  ringcast.on("snapshot", (snapshot) => seen.snapshots.push(snapshot));
  ringcast.on("error", ({ code, message }) => seen.errors.push({ code, message }));
  ringcast.on("state", tell);
  tell(ringcast.status);
}"""


class Subscriber:
    """A page with `new Ringcast(...)` in it, and what it has told."""

    def __init__(self, visit: Visit) -> None:
        self.visit = visit
        self.page = visit.page
        self.tokens = 0  # how many the page has asked for

    async def seen(self) -> dict[str, list[dict[str, Any]]]:
        seen: dict[str, list[dict[str, Any]]] = await self.page.evaluate("window.seen")
        return seen

    async def values(self, channel: str) -> list[Any]:
        """The data of the messages of one channel, in the order of their arrival."""
        return [message["data"] for message in (await self.seen())["messages"] if message["channel"] == channel]

    async def transports(self) -> list[str]:
        """The transports that were tried, or opened, so far."""
        return list(dict.fromkeys(state["transport"] for state in (await self.seen())["states"] if state["transport"]))

    async def until(self, condition: str, arg: Any = None, within: float = 15) -> None:
        """Wait for an expression over `seen`, `status` and `arg`."""
        await self.page.wait_for_function(
            f"arg => {{ const seen = window.seen, status = window.ringcast.status; return {condition}; }}",
            arg=arg, timeout=1000 * within,
        )  # fmt: skip

    async def open(self, transport: str, within: float = 15) -> None:
        await self.until("status.state === 'open' && status.transport === arg", transport, within)

    async def got(self, count: int, within: float = 15) -> None:
        await self.until("seen.messages.length >= arg", count, within)

    async def call(self, expression: str) -> Any:
        """Evaluate an expression over `ringcast`."""
        return await self.page.evaluate(f"() => {{ const ringcast = window.ringcast; return {expression}; }}")


async def subscribe(
    visit: Visits, url: str, *, channels: list[str], tokens: Callable[[int], str] | None = None,
    allow: tuple[str, ...] = (), **options: Any,
) -> Subscriber:  # fmt: skip
    """Open a page at `url` and subscribe there; `tokens` makes the first, second ... token that it asks for."""
    here = await visit(f"{url}/livez")
    here.allow(ICON, *allow)  # the gateway's answers are no pages and have no icon
    subscriber = Subscriber(here)
    make = tokens or (lambda _: token("ann", ["topic:*"], ["topic:*"]))

    def get_token() -> str:
        subscriber.tokens += 1
        return make(subscriber.tokens)

    await here.page.expose_function("getToken", get_token)
    await here.page.evaluate(_SCRIPT, {"channels": channels, **options})
    return subscriber


async def steadily(publish: Callable[[int], Any], count: int, every: float) -> None:
    """Call `publish` with 0, 1, 2 ... at a steady pace, whatever else the test does meanwhile."""
    begin = time.monotonic()
    for n in range(count):
        await publish(n)
        await asyncio.sleep(max(0.0, begin + (n + 1) * every - time.monotonic()))
