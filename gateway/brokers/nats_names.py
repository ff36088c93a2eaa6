"""What streams and subjects are called. What a NATS subject cannot hold is encoded here and nowhere else.

Each partition has two streams, because what is kept of a log and of a table for how long differs: `rc-l12` and
`rc-k12`. A message of `room:1` lies at `rc.l12.room:1._`, or at `rc.k12.room:1.<key>`; a stream's take-over records
lie at `rc.l12.@`. All of it is republished below `rc.live`, where nodes also nudge each other.
"""

from __future__ import annotations

import hashlib
from urllib.parse import quote

from gateway.message import partition_of
from gateway.settings import Settings

UNKEYED = "_"
LONGEST = 300  # characters of a token; a server's protocol line has 4,096 for subject and answer address


def token(text: str) -> str:
    """`text` as one token of a subject: other texts have other tokens, and none is `_`, `@` or `!`."""
    if text == UNKEYED:
        return "%5F"
    encoded = quote(text, safe=":").replace(".", "%2E") or "%"
    if len(encoded) > LONGEST:
        encoded = f"{encoded[:LONGEST - 70]}%%{hashlib.sha256(text.encode()).hexdigest()}"
    return encoded


class Names:
    """Streams have numbers: a partition's log is numbered as the partition is, its table that many above."""

    def __init__(self, prefix: str, settings: Settings) -> None:
        self.prefix = prefix
        self.settings = settings
        self.partitions = settings.partitions
        self.numbers = range(2 * settings.partitions)

    def number(self, channel: str) -> int:
        partition = partition_of(channel, self.partitions)
        return partition + self.partitions if self.settings.policy(channel).keyed else partition

    def keyed(self, number: int) -> bool:
        return number >= self.partitions

    def _short(self, number: int) -> str:
        return f"k{number - self.partitions}" if self.keyed(number) else f"l{number}"

    def stream(self, number: int) -> str:
        return f"{self.prefix}-{self._short(number)}"

    def subject(self, number: int) -> str:
        return f"{self.prefix}.{self._short(number)}"

    def live(self, number: int) -> str:
        return f"{self.prefix}.live.{self._short(number)}"

    def record(self, number: int) -> str:
        return f"{self.subject(number)}.@"

    def nothing(self, number: int) -> str:
        """Where no message of the stream lies."""
        return f"{self.subject(number)}.!.!"

    def messages(self, number: int) -> str:
        """All of a stream's messages, which its records are not."""
        return f"{self.subject(number)}.*.*"

    def channel(self, number: int, channel: str) -> str:
        """All messages of one channel."""
        return f"{self.subject(number)}.{token(channel)}.*"

    def message(self, number: int, channel: str, key: str | None) -> str:
        return f"{self.subject(number)}.{token(channel)}.{UNKEYED if key is None else token(key)}"

    @property
    def live_records(self) -> str:
        return f"{self.prefix}.live.*.@"

    def number_of_live(self, subject: str) -> int:
        short = subject[len(self.prefix) + 6 :].partition(".")[0]
        return int(short[1:]) + (self.partitions if short[0] == "k" else 0)
