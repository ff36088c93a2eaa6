"""`python -m client_demo` as its user meets it: one command, one address, Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.browser.conftest import RESOURCE_FAILED, WEBSOCKET_FAILED, Visits
from tests.support.gateway import free_port

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Demo:
    def __init__(
        self, process: asyncio.subprocess.Process, page: str, gateway: str, nodes: list[str], pids: list[int]
    ) -> None:  # fmt: skip
        self.process = process
        self.page = page
        self.gateway = gateway
        self.nodes = nodes
        self.pids = pids


@asynccontextmanager
async def running(port: int, gateway_port: int, *options: str) -> AsyncIterator[Demo]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "client_demo", "--port", str(port), "--gateway-port", str(gateway_port), *options,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            text = await process.stdout.readuntil(b"Ctrl-C")
        page, gateway, *nodes = dict.fromkeys(re.findall(r"http://127\.0\.0\.1:\d+", text.decode()))
        yield Demo(process, page, gateway, nodes, [int(pid) for pid in re.findall(r"pid (\d+)", text.decode())])
    finally:
        if process.returncode is None:
            process.terminate()  # killed, it would leave its gateway behind
        async with asyncio.timeout(30):
            await process.wait()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def offspring(pid: int) -> list[int]:
    """Its children, and theirs."""
    return [each for child in children(pid) for each in (child, *offspring(child))]


def gone(pids: list[int], within: float = 10.0) -> bool:
    """Wait until none of them is there any more; tells whether none is."""
    until = time.monotonic() + within
    while there := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return not there


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


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
        await here.page.click("#report")
        await here.page.wait_for_selector("#jobs .job[data-state=progress]")
        processes = offspring(demo.process.pid)
        await here.page.close()
        demo.process.send_signal(number)
        assert await asyncio.wait_for(demo.process.wait(), 10) == 0
        assert not await is_up(demo.gateway)
        assert await asyncio.to_thread(gone, processes)


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


@pytest.mark.parametrize("which", ["gateway.cli", "celery"])
async def test_when_the_gateway_or_the_worker_ends_so_does_the_demo(which: str) -> None:
    async with running(free_port(), free_port()) as demo:
        processes = offspring(demo.process.pid)
        [one] = [pid for pid in children(demo.process.pid) if which in command(pid)]
        os.kill(one, signal.SIGKILL)
        assert await asyncio.wait_for(demo.process.wait(), 10) == 1
        assert await asyncio.to_thread(gone, processes)


async def test_what_a_killed_worker_leaves_does_not_hold_the_demo_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a process of its pool that has just been forked would, which holds the worker's output and lives on."""
    left = "import subprocess, sys\nif 'celery' in sys.orig_argv: subprocess.Popen(['sleep', '60'])\n"
    (tmp_path / "sitecustomize.py").write_text(left)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    async with running(free_port(), free_port()) as demo:
        [worker] = [pid for pid in children(demo.process.pid) if "celery" in command(pid)]
        [sleep] = [pid for pid in children(worker) if command(pid).startswith("sleep")]
        os.kill(worker, signal.SIGKILL)
        assert await asyncio.wait_for(demo.process.wait(), 10) == 1
        assert await asyncio.to_thread(gone, [sleep])


@pytest.mark.parametrize("broker", ["redis", "nats"])
async def test_a_cluster_loses_nothing_when_the_pages_node_is_killed(visit: Visits, broker: str) -> None:
    async with running(free_port(), free_port(), "--broker", broker, "--nodes", "3") as demo:
        assert len(demo.nodes) == len(demo.pids) == 3
        here = await visit(demo.page)
        here.allow(WEBSOCKET_FAILED, RESOURCE_FAILED, r"Failed to load resource: net::ERR_\w+ \S+/demo/nodes")
        await here.status("open", "websocket")
        on = "#nodes li.here b"
        first = await here.page.inner_text(on)
        await here.page.click("#burst")
        await here.shows(5)
        await here.page.click("#images")  # its tasks wait in the store where that is a Redis, else in files
        await here.page.click("#nodes li.here button")
        await here.page.wait_for_selector(f"#node-{first}.down")
        await here.page.wait_for_selector(on)
        second = await here.page.inner_text(on)
        assert second != first
        await here.shows(10)
        await here.page.wait_for_selector(f"#node-{first}:not(.down)", timeout=15_000)  # it was started again

        await here.context.set_offline(True)  # so that it comes back no sooner than all is published
        os.kill(demo.pids[int(second.removeprefix("node-")) - 1], signal.SIGKILL)
        await here.status("waiting")
        async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
            (await http.post(f"{demo.page}/demo/burst", json={})).raise_for_status()
        await here.context.set_offline(False)
        await here.page.wait_for_selector("#catch-up[data-recovered='5']")
        await here.shows(15)
        assert await here.page.inner_text(on) != second
        assert await here.page.locator("#messages li.reset").count() == 0
        await here.page.wait_for_selector("#jobs > .job[data-state=succeeded]")
        await here.page.close()
        demo.process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(demo.process.wait(), 15) == 0
        assert [await is_up(url) for url in (demo.gateway, *demo.nodes)] == [False] * 4


async def test_several_nodes_need_a_store() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "client_demo", "--nodes", "3", stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    assert process.returncode == 2
    assert b"BROKER=redis or BROKER=nats" in said


async def test_one_node_of_a_demo_shows_no_nodes(visit: Visits) -> None:
    async with running(free_port(), free_port()) as demo:
        here = await visit(demo.page)
        await here.status("open")
        assert not await here.page.is_visible("#cluster")
        await here.page.close()
