"""Other gateways, measured the same way: each a small program of ours on what its registry has.

What a peer is made of is installed when it is first asked for; where that cannot be had it is left out, with a
sentence. All take the path and the parameters of our own `request` unless their class says otherwise.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Self
from urllib.parse import quote, urlencode

import jwt

from tests.benchmarks.harness import BUILD, HEARTBEAT, Load, Messages, Opening, Server, load_of, request, tree
from tests.benchmarks.sender import Sender, post
from tests.support.gateway import ROOT, free_port
from tests.support.keys import HMAC_KEY

HERE = Path(__file__).parent
MODULES = BUILD / "node_modules"
Loads = list[tuple[Server, Load]]


class Missing(Exception):
    """A peer cannot be had here; says why."""


class Peer:
    """A server that publishes what a line of JSON says of a channel and its data."""

    name = ""
    transports: tuple[str, ...] = ("websocket",)
    by_head = False
    many = True  # it is measured with thousands of subscribers, too

    def __init__(self) -> None:
        self.port = self.control = free_port()  # it is published to by the latter

    def command(self) -> list[str | Path]:
        """What starts it. Raises Missing."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Whether it serves, once it can be connected to."""
        return True

    @property
    def pids(self) -> list[int]:
        return tree(self._process.pid)

    def opening(self, transport: str, channel: str) -> bytes | Opening:
        return request(transport, None, [channel])

    def publish(self, messages: Messages) -> None:
        lines = [f'{{"channel":"{channel}","data":{data}}}' for channel, data in messages]
        self._sender.send([post("/v1/publish", "\n".join(lines).encode())])

    def __enter__(self) -> Self:
        self.folder = tempfile.TemporaryDirectory(prefix="bench-peer-")
        try:
            command = [str(word) for word in self.command()]
        except Missing:
            self.folder.cleanup()
            raise
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 20
        while not (all(map(_answers, {self.port, self.control})) and self.ready()):
            if self._process.poll() is not None or time.monotonic() > until:
                self.__exit__()
                raise Missing(f"{self.name} did not start: {' '.join(command)}")
            time.sleep(0.05)
        self._sender = Sender(self.control)
        return self

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "_sender"):
            self._sender.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.folder.cleanup()


class NodeWs(Peer):
    name = "Node ws"
    transports = ("websocket", "sse")

    def command(self) -> list[str | Path]:
        modules()
        return ["env", f"NODE_PATH={MODULES}", "node", HERE / "node.js", str(self.port)]


class SocketIO(Peer):
    """Socket.IO over WebSocket: a client says that it is there once it was greeted."""

    name = "Socket.IO"

    def command(self) -> list[str | Path]:
        modules()
        return ["env", f"NODE_PATH={MODULES}", "node", HERE / "socketio.js", str(self.port)]

    def opening(self, transport: str, channel: str) -> Opening:
        path = "/socket.io/?EIO=4&transport=websocket&channels="
        return request(transport, None, [channel]).replace(b"/v1/ws?channels=", path.encode()), text_frame(b"40")


class PythonSocketIO(SocketIO):
    name = "python-socketio"
    many = False

    def command(self) -> list[str | Path]:
        installed("python-socketio")
        return [sys.executable, HERE / "python_socketio.py", str(self.port)]


class Stock(Peer):
    name = "uvicorn and Starlette"
    transports = ("websocket", "sse")
    many = False

    def __init__(self, tokens: bool = False) -> None:
        super().__init__()
        self._key = [HMAC_KEY] if tokens else []

    def command(self) -> list[str | Path]:
        return [sys.executable, HERE / "stock.py", str(self.port), *self._key]


class Nchan(Peer):
    name = "nchan"
    transports = ("websocket", "sse")
    by_head = True

    def command(self) -> list[str | Path]:
        nginx = shutil.which("nginx", path="/usr/sbin:/usr/bin")
        if not Path("/usr/lib/nginx/modules/ngx_nchan_module.so").exists():
            debian("libnginx-mod-nchan")
        config = (HERE / "nchan.conf").read_text()
        path = Path(self.folder.name, "nginx.conf")
        path.write_text(config.replace("PORT", str(self.port)).replace("FOLDER", self.folder.name))
        return [nginx or "nginx", "-p", "/usr/share/nginx", "-c", path]

    def publish(self, messages: Messages) -> None:
        self._sender.send([post(f"/v1/publish?channel={quote(channel)}", data.encode()) for channel, data in messages])


class Pushpin(Peer):
    """Without an application behind it, it lets everyone follow the channel `test`."""

    name = "pushpin"
    transports = ("websocket",)  # of a thousand streams at once it refuses some
    by_head = True
    many = False

    def command(self) -> list[str | Path]:
        if shutil.which("pushpin") is None:
            debian("pushpin")
        self.control = free_port()
        folder = self.folder.name
        config = (HERE / "pushpin.conf").read_text().replace("FOLDER", folder)
        path = Path(folder, "pushpin.conf")
        path.write_text(config.replace("PORT", str(self.port)).replace("CONTROL", str(self.control)))
        Path(folder, "routes").write_text("* test\n")
        return ["pushpin", f"--config={path}"]

    def ready(self) -> bool:
        """What comes before its processes have found each other is not answered."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=0.5) as probe:
                probe.sendall(b"GET /stream HTTP/1.1\r\nHost: bench\r\n\r\n")
                return probe.recv(12) == b"HTTP/1.1 200"
        except TimeoutError:
            return False

    def opening(self, transport: str, channel: str) -> bytes:
        asked = request(transport, None, [], path="")
        return asked.replace(b"GET /ws?channels=" if transport == "websocket" else b"GET /sse?channels=",
                             b"GET /ws" if transport == "websocket" else b"GET /stream")  # fmt: skip

    def publish(self, messages: Messages) -> None:
        items = []
        for _, data in messages:
            formats = {"ws-message": {"content": data}, "http-stream": {"content": f"event: bench\ndata: {data}\n\n"}}
            items.append({"channel": "test", "formats": formats})
        self._sender.send([post("/publish/", json.dumps({"items": items}).encode())])


class Centrifugo(Peer):
    """With a history, as its recovery needs one, and a token that names the channel; it pings every ten minutes."""

    name = "Centrifugo"
    transports = ("websocket", "sse")
    by_head = True  # and greets whoever presents a token then

    def command(self) -> list[str | Path]:
        if shutil.which("centrifugo") is None:
            raise Missing("there is no centrifugo on the PATH")
        kept = {"history_size": 100, "history_ttl": "15m"}
        config = {
            "client": {"token": {"hmac_secret_key": HMAC_KEY}, "ping_interval": "600s"},
            "http_api": {"insecure": True}, "uni_sse": {"enabled": True}, "log": {"level": "error"},
            "channel": {"namespaces": [{"name": name, **kept} for name in ("topic", "user")]},
            "http_server": {"address": "127.0.0.1", "port": self.port},
        }  # fmt: skip
        path = Path(self.folder.name, "config.json")
        path.write_text(json.dumps(config))
        return ["centrifugo", f"--config={path}"]

    def opening(self, transport: str, channel: str) -> Opening:
        token = jwt.encode({"sub": channel, "channels": [channel], "exp": time.time() + 7200}, HMAC_KEY)
        connect = json.dumps({"token": token})
        if transport == "sse":
            path = f"GET /connection/uni_sse?cf_connect={quote(connect)}".encode()
            return request(transport, None, [], path="").replace(b"GET /sse?channels=", path), b""
        asked = request(transport, None, [], path="").replace(b"GET /ws?channels=", b"GET /connection/websocket")
        return asked, text_frame(f'{{"id":1,"connect":{connect}}}'.encode())

    def publish(self, messages: Messages) -> None:
        commands = ",".join(f'{{"publish":{{"channel":"{channel}","data":{data}}}}}' for channel, data in messages)
        (answer,) = self._sender.send([post("/api/batch", f'{{"commands":[{commands}]}}'.encode())])
        assert answer.count(b'"offset"') == len(messages), answer


class Mercure(Peer):
    """With a history, which it keeps in a file, and a token that names the topic."""

    name = "Mercure"
    transports = ("sse",)
    by_head = True

    def command(self) -> list[str | Path]:
        if shutil.which("mercure") is None:
            raise Missing("there is no mercure on the PATH")
        path = Path(self.folder.name, "Caddyfile")
        path.write_text(f"""
{{
    admin off
    auto_https off
    log {{
        level ERROR
    }}
}}
http://:{self.port} {{
    bind 127.0.0.1
    mercure {{
        publisher_jwt "{HMAC_KEY}" HS256
        subscriber_jwt "{HMAC_KEY}" HS256
        heartbeat {HEARTBEAT}s
        transport bolt {{
            path {self.folder.name}/mercure.db
            size 1000
        }}
    }}
}}
""")
        return ["mercure", "run", "--config", path, "--adapter", "caddyfile"]

    def _token(self, right: str, channel: str) -> str:
        return jwt.encode({"mercure": {right: [channel]}, "exp": time.time() + 7200}, HMAC_KEY)

    def opening(self, transport: str, channel: str) -> bytes:
        path = f"GET /.well-known/mercure?topic={quote(channel)}".encode()
        asked = request("sse", self._token("subscribe", channel), [], path="")
        return asked.replace(b"GET /sse?channels=", path)

    def publish(self, messages: Messages) -> None:
        form, key = "application/x-www-form-urlencoded", self._token("publish", "*")
        self._sender.send([
            post("/.well-known/mercure", urlencode({"topic": channel, "data": data}).encode(), form, key)
            for channel, data in messages
        ])  # fmt: skip


def text_frame(text: bytes) -> bytes:
    """A client's frame, of at most 64 KiB, masked with zeros."""
    size = bytes([0x80 | len(text)]) if len(text) < 126 else b"\xfe" + len(text).to_bytes(2)
    return b"\x81" + size + b"\0\0\0\0" + text


PEERS: list[type[Peer]] = [NodeWs, Nchan, Centrifugo, Mercure, Pushpin, SocketIO, Stock, PythonSocketIO]


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


def of(transport: str, *, many: bool = False) -> list[Server]:
    """Those that serve a transport, or of these those that are measured with thousands of subscribers, too."""
    return [kind() for kind in PEERS if transport in kind.transports and (kind.many or not many)]


NAMES = [kind.name for kind in PEERS]


def opened(stack: AsyncExitStack, servers: Iterable[Server], transport: str, channels: Sequence[str]) -> Loads:
    """Start servers and connect a subscriber to each channel of each; those that cannot be had are left out."""
    found: Loads = []
    for server in servers:
        try:
            stack.enter_context(server)
        except Missing as missing:
            left_out(str(missing))
            continue
        load = stack.enter_context(load_of(server, transport, channels))
        load.open()
        found.append((server, load))
    return found


@cache
def left_out(sentence: str) -> None:
    print(f"left out: {sentence}", flush=True)


@cache
def modules() -> None:
    """Install what the programs on Node are made of. Raises Missing."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise Missing("Node.js and npm are not installed")
    wanted, there = (HERE / "package.json").read_text(), BUILD / "package.json"
    if MODULES.exists() and there.exists() and there.read_text() == wanted:
        return
    BUILD.mkdir(exist_ok=True)
    there.write_text(wanted)
    _run(["npm", "install", "--no-audit", "--no-fund", "--silent", "--prefix", str(BUILD)], "ws and socket.io")


@cache
def installed(package: str) -> None:
    """Install the packages of the group `bench` where `package` is not there. Raises Missing."""
    try:
        version(package)
    except PackageNotFoundError:
        _run([sys.executable, "-m", "pip", "install", "--quiet", "--group", f"{ROOT}/pyproject.toml:bench"], package)


@cache
def debian(package: str) -> None:
    """Install a Debian package. Raises Missing."""
    _run([str(ROOT / ".ci/debian"), package], package)


def _run(command: list[str], wanted: str) -> None:
    try:
        subprocess.run(command, check=True, timeout=300, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except (subprocess.SubprocessError, OSError) as error:
        raise Missing(f"{wanted} cannot be installed here ({error})") from None
