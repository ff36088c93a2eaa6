"""What can go wrong when publishing: one tree, with the facts as attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from publisher.message import Receipt


class PublishError(Exception):
    """A message was not published, or it is not known whether it was. The text says what to do."""


class InvalidMessage(PublishError, ValueError):
    """The arguments cannot make a message; nothing was sent."""


class Refused(PublishError):
    """The gateway refused the message (RFC 9457), and will again unless something changes.

    `code` is stable and meant for programs, `status` is HTTP's, `detail` is a sentence for a person.
    """

    def __init__(self, code: str, status: int, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.status = status
        self.detail = detail

    def __reduce__(self) -> tuple[type[Refused], tuple[str, int, str]]:
        return type(self), (self.code, self.status, self.detail)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(code={self.code!r}, status={self.status}, detail={self.detail!r})"


class Unavailable(PublishError):
    """No acknowledgement came before the deadline, however often it was tried.

    The message may or may not be stored. Publishing it again with the same `id` is safe while the gateway remembers
    it (5 minutes unless set otherwise): a message that was stored is then answered as a duplicate.
    """

    def __init__(self, detail: str, *, id: str, attempts: int, status: int | None, retry_after: float | None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.id = id
        self.attempts = attempts
        self.status = status  # of the last answer; None where none came
        self.retry_after = retry_after  # seconds, where the last answer asked for them

    def __reduce__(self) -> tuple[object, ...]:
        return _unavailable, (self.detail, self.id, self.attempts, self.status, self.retry_after)


def _unavailable(detail: str, id: str, attempts: int, status: int | None, retry_after: float | None) -> Unavailable:
    return Unavailable(detail, id=id, attempts=attempts, status=status, retry_after=retry_after)


class TargetsFailed(PublishError):
    """Some targets of one publish failed, or all of them did.

    `receipts` are those of the targets that are stored, `errors` tells by channel why each of the others is not.
    """

    def __init__(self, receipts: list[Receipt], errors: dict[str, PublishError]) -> None:
        channel, error = next(iter(errors.items()))
        super().__init__(f"{len(errors)} of {len(receipts) + len(errors)} targets failed; {channel}: {error}")
        self.receipts = receipts
        self.errors = errors

    def __reduce__(self) -> tuple[type[TargetsFailed], tuple[list[Receipt], dict[str, PublishError]]]:
        return type(self), (self.receipts, self.errors)
