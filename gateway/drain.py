"""How a node ends: every client is told when to go, no faster than the other nodes take it, and goes on elsewhere."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from gateway.errors import DRAINING
from gateway.node import LAST_WORDS, Node
from gateway.session import Session
from gateway.wheel import TICK

log = logging.getLogger("ringcast.drain")

GRACE = 2.0  # seconds from the moment that a client was told to go at until its connection is closed
HINT = "This node is shutting down: come back, and another one goes on from your cursor"


@dataclass(frozen=True, slots=True)
class Pace:
    """Clients leave evenly over the whole window, which is the gentlest pace that ends in time."""

    clients: int
    window: float  # seconds from the first to the last
    budget: float  # clients a second that the other nodes take from this one; 0 where there is no other

    @property
    def rate(self) -> float:
        """Clients a second; in a window shorter than that, all of them."""
        return self.clients / max(1.0, self.window)

    @property
    def hasty(self) -> bool:
        """Whether they leave faster than the others take them, because the window is too short."""
        return self.rate > self.budget

    def after(self, index: int) -> float:
        """The seconds that the client of this index stays."""
        return self.window * index / self.clients


async def drain(node: Node, hurry: asyncio.Event, refuse: Callable[[], None]) -> None:
    """Leave the ring, go on serving until others have learnt of it, and send every client away over `drain` seconds.

    `refuse` lets nobody connect any more: a balancer that has not learnt of it by then leads those who leave to another
    node at once, where else it would have them back here until the process has ended. Returns when all have gone. Once
    `hurry` is set they are sent away at once.
    """
    loop, settings = asyncio.get_running_loop(), node.settings
    node.depart()
    over = 0.0 if node.cluster.alone else settings.drain
    grace = min(GRACE, over)

    def pace() -> Pace:
        return Pace(len(_clients(node)), over - grace, node.cluster.view.budget())

    node.metrics.drain_pace, node.metrics.drain_budget = lambda: pace().rate, lambda: pace().budget
    if not node.cluster.alone:  # else there is nobody who learns of it, nor to hand anything over to
        with suppress(TimeoutError):
            async with asyncio.timeout(settings.drain_wait):
                await hurry.wait()
    node.admission.closed = True
    refuse()
    evenly = pace()
    _tell(node, evenly)
    for index, session in enumerate(_clients(node)):
        _send_away(node, session, evenly.after(index), grace)
    end = loop.time() + over  # until then somebody may still say who it is, and be told
    deadline = end + LAST_WORDS
    while loop.time() < deadline and (_clients(node) or (node.admission.connections.total() and loop.time() < end)):
        if hurry.is_set():
            hurry.clear()
            grace, end, deadline = 0.0, loop.time(), min(deadline, loop.time() + LAST_WORDS)
            for session in _clients(node):
                _end(node, session)
        for session in _clients(node):
            if session.leave_at is None and session.closing is None:  # it was still being let in
                _send_away(node, session, 0.0, grace)
        await asyncio.sleep(TICK / 5)
    for session in _clients(node):
        session.carrier.abort()  # it takes nothing, not even its goodbye


def _clients(node: Node) -> list[Session]:
    return [session for session in node.hub.sessions if session not in node.own]


def _send_away(node: Node, session: Session, after: float, grace: float) -> None:
    if session.welcome is None:  # a poll waits until then at most
        session.leave_at = asyncio.get_running_loop().time() + after
        session.carrier.wake()
    else:
        node.goodbye(session, DRAINING, HINT, after=after, grace=grace)


def _end(node: Node, session: Session) -> None:
    if session.welcome is None:
        _send_away(node, session, 0.0, 0.0)
    elif session.closing is None:
        node.end(session, DRAINING)


def _tell(node: Node, pace: Pace) -> None:
    """Say how fast clients go, to whoever reads the log."""
    if node.cluster.alone or not pace.clients:
        return
    figures = f"{pace.clients} clients are sent away within {pace.window:g} s, {pace.rate:.0f} a second"
    if not pace.budget:
        log.warning("%s, and no other node is active that would take them", figures)
    elif pace.hasty:
        log.warning(
            "%s, while the other nodes take %.0f a second from this one: drain is too short for so many, or their"
            " accept_rate too low", figures, pace.budget,
        )  # fmt: skip
    else:
        log.info("%s of the %.0f that the other nodes take from this one", figures, pace.budget)
