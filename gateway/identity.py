"""Who a request speaks for and which channels that lets it read and publish: pure decisions, no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import msgspec

from gateway.errors import Problem
from gateway.message import RESERVED, check_channel, clip

NODES = "ringcast:nodes"  # where nodes tell of themselves
MAX_PATTERNS = 1000  # of one kind in one token
MAX_INFO = 1 << 10  # bytes of what presence shows of a user
MAX_INFO_DEPTH = 32


def reserved(channel: str) -> bool:
    """Whether only the gateway itself publishes to `channel`."""
    return channel.partition(":")[0] in RESERVED


def check_pattern(pattern: object) -> str:
    """Return `pattern` when it is well formed; raise ValueError with a sentence that names the fault.

    A pattern is a channel (`topic:news`), the beginning of channels followed by `*` (`topic:*`, `room:berlin-*`), or
    `*` alone. The namespace is always whole: `us*` would match namespaces nobody thought of.
    """
    if not isinstance(pattern, str):
        raise ValueError(f"a pattern must be a string, not {clip(repr(pattern))}")
    watched = pattern.removeprefix("presence:")  # a channel's presence is named by the channel
    if watched != "*":
        try:
            check_channel(watched[:-1] + "x" if watched.endswith("*") else watched)
        except ValueError as error:
            raise ValueError(
                f"pattern {clip(pattern)} is neither a channel nor the beginning of one, as 'topic:' or 'topic:a', "
                "followed by one '*'"
            ) from error
    return pattern


def check_patterns(claim: str, patterns: object) -> tuple[str, ...]:
    """The patterns of a token's claim; none when it is absent. Raises ValueError with a sentence."""
    if patterns is None:
        return ()
    if not isinstance(patterns, (list, tuple)):
        raise ValueError(f"`{claim}` must be a list of patterns")
    if len(patterns) > MAX_PATTERNS:
        raise ValueError(f"`{claim}` has {len(patterns)} patterns, at most {MAX_PATTERNS} are taken: use a '*'")
    try:
        return tuple(check_pattern(pattern) for pattern in patterns)
    except ValueError as error:
        raise ValueError(f"`{claim}`: {error}") from error


def check_subject(subject: object) -> str:
    """Return `subject` when `user:<subject>` is a channel; raise ValueError with a sentence that names the fault."""
    if not isinstance(subject, str):
        raise ValueError("`sub` must be a string that names the user")
    try:
        check_channel(f"user:{subject}")
    except ValueError as error:
        raise ValueError(f"`sub` does not make a channel: {error}") from error
    if subject.startswith("job."):
        raise ValueError(f"`sub` {clip(subject)} begins with 'job.', which names the jobs of no user")
    return subject


class _Patterns:
    """Patterns sorted for matching: one set lookup and one `startswith`, however many there are."""

    __slots__ = ("_channels", "_prefixes")

    def __init__(self, patterns: Iterable[str]) -> None:
        patterns = tuple(patterns)
        self._channels = frozenset(p for p in patterns if not p.endswith("*"))
        self._prefixes = tuple(p[:-1] for p in patterns if p.endswith("*"))

    def match(self, channel: str) -> bool:
        # No normalisation: two spellings of a letter are two channels, here and in every store.
        return channel in self._channels or channel.startswith(self._prefixes)


_sorted = lru_cache(maxsize=4096)(_Patterns)  # most tokens have the same few lists


class Identity(msgspec.Struct, frozen=True, gc=False):
    """What credentials stand for, once accepted. Holds no secret.

    `read` and `publish` are patterns (see `check_pattern`). A subject reads its own channels without a pattern.
    `channels`, when set, is all that may be read, whatever `read` says: that of a stream ticket.
    """

    principal: str  # who, in logs and as the scope of idempotency ids: `user:<sub>`, `key:<hash>`, `anonymous`
    subject: str | None = None
    read: tuple[str, ...] = ()
    publish: tuple[str, ...] = ()
    expires: float | None = None  # seconds since 1970; from then on the credentials are no longer accepted
    server: bool = False  # a backend: publishes anywhere and uses the server verbs
    channels: tuple[str, ...] | None = None
    issued: float | None = None  # seconds since 1970: when the token was; None where it does not say
    info: bytes | None = None  # JSON that presence shows of the user
    operator: bool = False  # looks at the gateway's own table of nodes, which no pattern reaches

    def __repr__(self) -> str:
        return f"<Identity {self.principal}>"

    @property
    def own_channels(self) -> tuple[str, ...]:
        """The channels that are subscribed without asking: the subject's notifications and jobs."""
        if self.subject is None:
            return ()
        user = f"user:{self.subject}"
        own = (self.principal if self.principal == user else user, f"jobs:{self.subject}")  # one string for both
        return own if self.channels is None else tuple(channel for channel in own if channel in self.channels)

    def may_read(self, channel: str) -> bool:
        if channel.startswith("ringcast:"):
            # The gateway's own tables: no pattern reaches them, not even `*`.
            return self.operator and channel == NODES
        if self.channels is not None:
            found = channel in self.channels
        else:
            found = _sorted(self.read).match(channel) or channel in self.own_channels
        if not found and channel.startswith("presence:"):
            return self.may_read(channel.partition(":")[2])  # who may hear what is said may see who listens
        return found

    def may_publish(self, channel: str) -> bool:
        return not reserved(channel) and (self.server or _sorted(self.publish).match(channel))

    def check_read(self, channel: str) -> None:
        """Raise Problem("forbidden") unless `channel` may be read."""
        if not self.may_read(channel):
            raise Problem("forbidden", f"{self.principal} may not read {clip(channel)}", channel=channel)

    def check_publish(self, channel: str) -> None:
        """Raise Problem("reserved_channel"), whoever asks, or Problem("forbidden") unless it may be published to."""
        if reserved(channel):
            space = channel.partition(":")[0]
            raise Problem("reserved_channel", f"Only the gateway publishes to '{space}:' channels", channel=channel)
        if not self.may_publish(channel):
            raise Problem("forbidden", f"{self.principal} may not publish to {clip(channel)}", channel=channel)


def check_info(info: object) -> bytes | None:
    """What presence shows of a user, as JSON; None when it is absent. Raises ValueError with a sentence."""
    if info is None:
        return None
    try:
        raw = msgspec.json.encode(info)
    except (ValueError, RecursionError) as error:
        raise ValueError("`info` is not JSON that can be passed on") from error
    if len(raw) > MAX_INFO or raw.count(b"[") + raw.count(b"{") > MAX_INFO_DEPTH:
        raise ValueError(
            f"`info` has {len(raw)} bytes: at most {MAX_INFO} bytes and {MAX_INFO_DEPTH} objects and arrays are taken"
        )
    return raw


def user_identity(
    subject: object, read: object = None, publish: object = None, expires: float | None = None,
    issued: float | None = None, info: object = None,
) -> Identity:  # fmt: skip
    """The identity of a user from claims that nobody has looked at yet. Raises ValueError with a sentence."""
    name = check_subject(subject)
    return Identity(
        f"user:{name}", name, check_patterns("channels", read), check_patterns("publish", publish), expires,
        issued=issued, info=check_info(info),
    )  # fmt: skip


# Whoever reaches a gateway that has no keys at all: one machine's developer.
ANONYMOUS = Identity("anonymous", read=("*",), publish=("*",), server=True)
