"""What benchmarks of whole servers share: the subscribers, the floor, a server's CPU time and memory."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, Self
from urllib.parse import quote

from tests.benchmarks.sender import Sender, post
from tests.support.gateway import Gateway, free_port
from tests.support.keys import API_KEY

HERE = Path(__file__).parent
BUILD = HERE / "build"
SIZE = 128  # bytes of padding in each message
CHANNEL = "topic:bench"
HEARTBEAT = 15  # seconds between pings, of every server
Messages = Sequence[tuple[str, str]]  # channels, and the data for each as JSON
# A request, and what the client sends once it has been answered.
Opening = tuple[bytes, bytes]


def built(name: str) -> Path:
    """The C program of that name, compiled when its source is newer. Needs `cc`."""
    source, binary = HERE / f"{name}.c", BUILD / name
    if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
        BUILD.mkdir(exist_ok=True)
        fresh = binary.with_suffix(f".{time.monotonic_ns()}")  # two test runs may build at once
        subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-o", fresh, source], check=True)
        fresh.rename(binary)
    return binary


def tree(pid: int) -> list[int]:
    """A process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [pid]
    for each in found:
        found += parents.get(each, [])
    return found


def cpu_of(*pids: int) -> float:
    """Seconds of CPU, user and system, that all threads of some processes have used."""
    tasks = (task for pid in pids for task in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def resident(*pids: int) -> int:
    """Bytes of memory that some processes have."""
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS:"))


def micros() -> int:
    return time.monotonic_ns() // 1000


class Numbers:
    """The data of messages: n counts up on each channel, as the subscribers check; t is now."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}

    def data(self, channel: str) -> str:
        n = self._next.get(channel, 0)
        self._next[channel] = n + 1
        return f'{{"n":{n},"t":{micros()},"pad":"{"x" * SIZE}"}}'

    def messages(self, channels: Iterable[str]) -> list[tuple[str, str]]:
        return [(channel, self.data(channel)) for channel in channels]


def request(
    transport: str, token: str | None, channels: Iterable[str], cursor: str | None = None, path: str = "/v1"
) -> bytes:
    """What a subscriber sends to begin with."""
    path = f"{path}/{'ws' if transport == 'websocket' else 'sse'}?channels={quote(','.join(channels))}"
    lines = [f"GET {path}{'&cursor=' + cursor if cursor else ''} HTTP/1.1", "Host: bench"]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    if transport == "websocket":
        lines += ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
                  "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]  # fmt: skip
    else:
        lines.append("Accept: text/event-stream")
    return "\r\n".join([*lines, "", ""]).encode()


class Load:
    """Subscribers of one server, in a process of their own."""

    def __init__(
        self, port: int, requests: Iterable[bytes | Opening], *, of: str = "server", by_head: bool = False
    ) -> None:
        """With `by_head` one is open when it has the head of an answer, not only when something follows it."""
        self.of = of
        self._file = tempfile.NamedTemporaryFile()  # noqa: SIM115 - it lives as long as this
        for one in requests:
            for part in one if isinstance(one, tuple) else (one, b""):
                self._file.write(len(part).to_bytes(4, "little") + part)
        self._file.flush()
        self.process = subprocess.Popen(
            [built("load"), "127.0.0.1", str(port), self._file.name, *(["head"] if by_head else [])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip

    def tell(self, command: str) -> None:
        """Have it begin; until its answer is read it does not sleep."""
        assert self.process.stdin is not None
        print(command, file=self.process.stdin, flush=True)

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def ask(self, command: str) -> dict[str, Any]:
        self.tell(command)
        return self.answer()

    def open(self, window: int = 100) -> dict[str, Any]:
        answer = self.ask(f"open {window}")
        assert answer["complete"], f"{self.of} did not let all in: {answer}"
        assert not answer["ended"], f"{self.of} cut some off: {answer}"
        return answer

    def expect(self, count: int) -> dict[str, Any]:
        """Wait until every subscriber has had so many; fails where one was lost, came twice, or too early."""
        return self.check(self.ask(f"expect {count}"))

    def total(self, count: int) -> dict[str, Any]:
        """Wait until all subscribers together have had so many."""
        self.tell(f"total {count}")
        return self.totalled(count)

    def totalled(self, count: int) -> dict[str, Any]:
        """The same, once it was told to."""
        answer = self.check(self.answer())
        assert answer["messages"] == count, f"more arrived of {self.of}'s than {count}: {answer}"
        return answer

    def check(self, answer: dict[str, Any]) -> dict[str, Any]:
        assert answer["complete"], f"not all of {self.of}'s arrived: {answer}"
        faults = (answer["lost"], answer["repeated"], answer["ended"])
        assert faults == (0, 0, 0), f"{self.of} lost, repeated or cut: {answer}"
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        end(self.process)
        self._file.close()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


class Server(Protocol):
    """What is measured: ours, the floor, or a peer. A context manager; it serves inside."""

    name: str
    by_head: bool  # it says nothing to a subscriber before there is a message

    @property
    def port(self) -> int: ...

    @property
    def pids(self) -> list[int]:
        """Its processes."""

    def opening(self, transport: str, channel: str) -> bytes | Opening:
        """What a subscriber of a channel sends."""

    def publish(self, messages: Messages) -> None:
        """Publish messages, as many together as it can; returns when it has taken them."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


def load_of(server: Server, transport: str, channels: Iterable[str]) -> Load:
    """Subscribers of a server, each of one channel."""
    asked = [server.opening(transport, channel) for channel in channels]
    return Load(server.port, asked, of=server.name, by_head=server.by_head)


class Floor:
    """The C server that does the system calls alone."""

    name = "floor, a send() a message"
    by_head = False

    def __init__(self, transport: str, joined: bool = False) -> None:
        self.port = free_port()
        self.joined = joined  # one send() for all messages that are published together
        self.process = subprocess.Popen(
            [built("floor"), str(self.port), "ws" if transport == "websocket" else "sse"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        self.pids = [self.process.pid]

    def ask(self, command: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(command, file=self.process.stdin, flush=True)
        assert self.process.stdout.readline() == "done\n"

    def opening(self, transport: str, channel: str) -> bytes:
        return request(transport, None, [channel])

    def publish(self, messages: Messages) -> None:
        """To all subscribers; where the channels differ, to the next subscriber each."""
        count = len(messages)
        if count > 1 and messages[0][0] != messages[1][0]:
            self.ask(f"one {count} {SIZE}")
        else:
            self.ask(f"fan {count} {SIZE} {1 if self.joined else count}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        end(self.process)


class Ringcast:
    """A gateway whose limits by address do not bite."""

    name = "ringcast"
    by_head = False

    def __init__(self, **settings: Any) -> None:
        given: dict[str, Any] = {
            "connections_per_address": 100_000,
            "requests_per_second": 1_000_000,
            "accept_rate": 1_000_000,
            "heartbeat": f"{HEARTBEAT}s",
            "check_interval": "30s",  # as it is unless it is set
        }
        self.gateway = Gateway(**given | settings)
        if not settings.get("native", True):
            self.name = "ringcast through ASGI"

    @property
    def port(self) -> int:
        return self.gateway.port

    @property
    def pids(self) -> list[int]:
        return [self.gateway.process.pid]

    def opening(self, transport: str, channel: str) -> bytes:
        return request(transport, API_KEY, [channel])

    def publish(self, messages: Messages) -> None:
        assert self._post(messages).count(b'"offset"') == len(messages), "a message was refused"

    def offsets(self, messages: Messages) -> list[int]:
        """Publish, and return the offset of each message."""
        receipts = [json.loads(line)["results"] for line in self._post(messages).splitlines()]
        return [int(receipt["offset"]) for (receipt,) in receipts]

    def _post(self, messages: Messages) -> bytes:
        lines = [f'{{"channel":"{channel}","event":"bench","data":{data}}}' for channel, data in messages]
        kind = "application/json" if len(lines) == 1 else "application/x-ndjson"
        (answer,) = self._sender.send([post("/v1/publish", "\n".join(lines).encode(), kind, API_KEY)])
        return answer

    def __enter__(self) -> Self:
        self.gateway.start()
        self._sender = Sender(self.port)
        return self

    def __exit__(self, *_: object) -> None:
        self._sender.close()
        self.gateway.close()


def two(transport: str, **settings: Any) -> list[Server]:
    """Ours and the floor."""
    return [Ringcast(**settings), Floor(transport)]
