"""`python -m client_demo` as its user meets it: one command, one address, Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.browser.conftest import Visits
from tests.support.gateway import free_port

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Demo:
    def __init__(self, process: asyncio.subprocess.Process, page: str, gateway: str) -> None:
        self.process = process
        self.page = page
        self.gateway = gateway


@asynccontextmanager
async def running(port: int, gateway_port: int) -> AsyncIterator[Demo]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "client_demo", "--port", str(port), "--gateway-port", str(gateway_port),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            text = await process.stdout.readuntil(b"Ctrl-C")
        page, gateway = dict.fromkeys(re.findall(r"http://127\.0\.0\.1:\d+", text.decode()))
        yield Demo(process, page, gateway)
    finally:
        if process.returncode is None:
            process.terminate()  # killed, it would leave its gateway behind
        async with asyncio.timeout(30):
            await process.wait()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def is_up(url: str) -> bool:
    async with httpx.AsyncClient(trust_env=False) as http:
        try:
            return (await http.get(f"{url}/livez")).is_success
        except httpx.TransportError:
            return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_starts_shows_and_ends(visit: Visits, number: signal.Signals) -> None:
    port, gateway_port = free_port(), free_port()
    async with running(port, gateway_port) as demo:
        assert (demo.page, demo.gateway) == (f"http://127.0.0.1:{port}", f"http://127.0.0.1:{gateway_port}")
        here = await visit(demo.page.replace("127.0.0.1", "localhost"))
        await here.status("open", "websocket")
        await here.page.click("#burst")
        await here.shows(5)
        await here.page.close()
        demo.process.send_signal(number)
        assert await asyncio.wait_for(demo.process.wait(), 10) == 0
        assert not await is_up(demo.gateway)


async def test_taken_ports_are_no_obstacle_and_the_command_that_it_shows_works(visit: Visits) -> None:
    port, gateway_port = free_port(), free_port()
    async with running(port, gateway_port) as first, running(port, gateway_port) as second:
        assert {first.page, first.gateway}.isdisjoint({second.page, second.gateway})
        here = await visit(second.page)
        await here.status("open", "websocket")
        await here.page.click("summary")
        shell = await asyncio.create_subprocess_shell(
            await here.page.inner_text("#curl"), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        out, _ = await shell.communicate()
        assert shell.returncode == 0, out
        await here.shows(1)
        await here.page.close()


async def test_when_the_gateway_ends_so_does_the_demo() -> None:
    async with running(free_port(), free_port()) as demo:
        [gateway] = children(demo.process.pid)
        os.kill(gateway, signal.SIGKILL)
        assert await asyncio.wait_for(demo.process.wait(), 10) == 1
