"""Which ids were published lately: a repeat within the window returns the first offset."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import NamedTuple

from gateway.errors import Problem
from gateway.message import Draft

ID_BYTES = 300  # charged for an entry beside its three strings


class Known(NamedTuple):
    digest: bytes
    offset: int
    expires: int  # microseconds


def charge(draft: Draft) -> int:
    """Bytes that an id is counted with."""
    return ID_BYTES + len(draft.principal) + len(draft.channel) + len(draft.id)


class Ids:
    """The idempotency table, scoped by principal and channel. An entry stays for the whole window or is refused."""

    def __init__(self, window: int, limit: int) -> None:
        self.window = window  # microseconds
        self.limit = limit  # bytes
        self.bytes = 0
        self._known: OrderedDict[tuple[str, str, str], Known] = OrderedDict()

    def find(self, draft: Draft, now: int) -> int | None:
        """The offset that this id was stored at, if it was. Raises Problem `id_reused` and `ids_full`."""
        if not draft.idempotent:
            return None
        known = self._known.get((draft.principal, draft.channel, draft.id))
        if known is not None and known.expires > now:
            if known.digest != draft.digest():
                raise Problem(
                    "id_reused",
                    f"id {draft.id!r} was used for {draft.channel} with another body: a new message needs a new id",
                    offset=known.offset,
                )
            return known.offset
        self._expire(now)
        if self.bytes + charge(draft) > self.limit:
            detail = "the idempotency table is full: publish slower, or raise idempotency_bytes"
            raise Problem("ids_full", detail, retry_after=5)
        return None

    def remember(self, draft: Draft, offset: int, now: int) -> None:
        if draft.idempotent:
            scope = draft.principal, draft.channel, draft.id
            if self._known.pop(scope, None) is None:  # else it had expired behind one that a clock set back kept longer
                self.bytes += charge(draft)
            self._known[scope] = Known(draft.digest(), offset, now + self.window)

    def _expire(self, now: int) -> None:
        while self._known:
            (principal, channel, id), known = next(iter(self._known.items()))
            if known.expires > now:
                return
            del self._known[principal, channel, id]
            self.bytes -= ID_BYTES + len(principal) + len(channel) + len(id)

    def __len__(self) -> int:
        return len(self._known)


class Allowance:
    """What the ids of one node take of a store that many nodes share, which forgets them by itself after the window.

    Each node bounds its own: nothing else of the store can be counted without a second place that every publish of
    the deployment has to pass.
    """

    def __init__(self, window: float, limit: int) -> None:
        self.window = window  # seconds
        self.limit = limit  # bytes
        self.bytes = 0
        self._lately: deque[list[int]] = deque()  # a second, and the bytes of its ids

    def take(self, draft: Draft, now: float) -> bool:
        """Count the id of a publish that is about to be sent; False when there is no room for one more.

        `now` is monotonic, in seconds.
        """
        self._expire(now)
        if not draft.idempotent:
            return True
        size = charge(draft)
        if self.bytes + size > self.limit:
            return False
        if not self._lately or self._lately[-1][0] != int(now):
            self._lately.append([int(now), 0])
        self._lately[-1][1] += size
        self.bytes += size
        return True

    def give_back(self, draft: Draft, now: float) -> None:
        """What was taken at `now` was not stored: it was refused, or a repeat."""
        for second in reversed(self._lately):
            if second[0] == int(now) and draft.idempotent:
                second[1] -= charge(draft)
                self.bytes -= charge(draft)
                return

    def _expire(self, now: float) -> None:
        while self._lately and self._lately[0][0] + 1 + self.window < now:
            self.bytes -= self._lately.popleft()[1]
