"""The load balancers of deploy/ as real processes, in front of nodes that a test started."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from tests.support.gateway import ROOT, free_port

READY_WITHIN = 10.0
_NODE = re.compile(r"^( *server (?:gateway-1 )?)gateway-1:8000(.*\n)(?: *server .*gateway-[23]:8000.*\n)+", re.M)


class Balancer:
    """nginx or HAProxy with the file that deploy/ has for it: the addresses in it are all that is changed.

    `edit` makes it another one. What it logs is in `log`.
    """

    def __init__(self, name: str, nodes: Sequence[int], edit: Callable[[str], str] = lambda text: text) -> None:
        binary = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
        if binary is None:
            raise RuntimeError(f"{name} is missing: install Debian's package {name}")
        self.name = name
        self.binary = binary
        self.port, self.tls_port = free_port(), free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"ringcast-{name}-"))
        self.config = self.folder / f"{name}.conf"
        text = (ROOT / "deploy" / {"nginx": "nginx.conf", "haproxy": "haproxy.cfg"}[name]).read_text()
        text = edit(_addressed(text, nodes))
        for there, port in (("8080", self.port), ("8443", self.tls_port)):
            text = re.sub(rf"(listen|bind) :?{there}", rf"\1 127.0.0.1:{port}", text)
        if name == "nginx":
            text = text.replace("http {", f"http {{\n{self._paths()}", 1)
        self.config.write_text(text)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def _paths(self) -> str:
        """What nginx keeps while it works belongs to this run alone."""
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        return "".join(f"    {kind}_temp_path {self.folder / kind};\n" for kind in kinds)

    def start(self) -> Self:
        if self.name == "nginx":
            main = f"daemon off; pid {self.folder / 'pid'};"
            command = ["-p", str(self.folder), "-c", str(self.config), "-g", main, "-e", "stderr"]
        else:
            command = ["-db", "-f", str(self.config)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.binary, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder
            )
        deadline = time.monotonic() + READY_WITHIN
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{self.name} did not start:\n{self.log}") from None
                time.sleep(0.02)

    def close(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.close()


def _addressed(text: str, nodes: Sequence[int]) -> str:
    """The same groups of servers, with as many as there are nodes."""

    def servers(match: re.Match[str]) -> str:
        return "".join(
            f"{match[1].replace('gateway-1', f'gateway-{n}')}127.0.0.1:{port}{match[2]}"
            for n, port in enumerate(nodes, 1)
        )

    text, groups = _NODE.subn(servers, text)
    assert groups >= 2, "the file has other groups of servers than this knows"
    return text
