"""`ringcast verify` says that all is well where it is, and what is wrong where something is."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.verify.result import Result
from gateway.verify.trial import Plan, Trial
from tests.support.command import ROOT, Running, environment, ringcast
from tests.support.gateway import Gateway, free_port
from tests.support.keys import API_KEY, token
from tests.support.redis import RedisServer
from tests.support.tampering import Spoils, Tampering


def client(gateway: Gateway) -> dict[str, str]:
    return {"RINGCAST_URL": gateway.url, "RINGCAST_API_KEY": API_KEY}


async def tried(url: str, **plan: Any) -> Result:
    return await Trial(Plan([url], API_KEY, **({"clients": 4, "rate": 20, "seconds": 1, "settle": 5} | plan))).run()


def test_all_is_well_where_nothing_is_wrong(gateway: Gateway) -> None:
    done = ringcast(
        "verify", "--clients", "8", "--rate", "20", "--for", "1s", "--during", "echo changing", "--json",
        **client(gateway),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "changing\n")
    told = json.loads(done.stdout)
    assert told["ok"]
    assert told["canaries"] == {"ws": 2, "sse": 2, "poll": 2, "eventsource": 2}
    assert told["acknowledged"] == told["published"] > 0
    assert told["delivered"] == 4 * told["acknowledged"], "four canaries follow each channel"
    wrong = ("lost", "unannounced", "duplicated", "reordered", "repeated", "resets", "gave_up", "absent")
    assert {name: told[name] for name in wrong} == dict.fromkeys(wrong, 0)
    assert (told["command"], told["broken"], told["failed_attempts"]) == (0, {}, {})


def test_a_person_sees_lines_and_a_verdict(gateway: Gateway) -> None:
    """Interrupted, it judges what there was; the command that it ran is ended."""
    command = "trap 'echo over; exit' TERM; echo begun; sleep 600 & wait"
    with Running("verify", "--clients", "4", "--during", command, **client(gateway)) as running:
        running.until("begun")
        assert running.end(signal.SIGINT) == 0
        assert running.said["err"].splitlines() == ["begun", "over"]
        assert running.said["out"].splitlines()[-1] == "ok"
        assert "lost          0, unannounced 0, resets told 0" in running.said["out"]


def test_a_terminal_shows_a_table(gateway: Gateway) -> None:
    near, far = pty.openpty()
    command = [sys.executable, "-m", "gateway.cli", "verify", "--clients", "4", "--for", "1s"]
    env = environment(client(gateway)) | {"TERM": "xterm"}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdin=far, stdout=far, stderr=far)
    os.close(far)
    shown = b""
    try:
        while piece := os.read(near, 1 << 16):
            shown += piece
    except OSError:  # how a terminal ends on Linux
        pass
    assert process.wait(30) == 0, shown
    text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", shown)
    assert re.search(rb"transport +canaries +connected +delivered ", text), text
    assert re.search(rb"eventsource +1 +1 ", text), text
    assert text.strip().endswith(b"ok")
    os.close(near)


async def test_what_is_spoiled_on_the_way_is_counted(gateway: Gateway) -> None:
    async def through(spoils: Spoils) -> Result:
        async with Tampering(gateway.port, spoils) as proxy:
            return await tried(proxy.url, clients=1, transports=["ws"], channel=f"topic:{spoils}")

    spoils: tuple[Spoils, ...] = ("nothing", "drops", "repeats", "swaps")
    results = await asyncio.gather(*map(through, spoils))
    counts = [(r.ok, r.lost, r.unannounced, r.duplicated, r.reordered) for r in results]
    assert counts == [
        (True, 0, 0, 0, 0), (False, 1, 1, 0, 0), (False, 0, 0, 1, 0),
        (False, 1, 1, 0, 1),  # one that comes too late is one that the client has to pass over
    ]  # fmt: skip
    assert [len(r.faults) for r in results] == [0, 1, 0, 1]


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


async def test_a_store_that_is_wiped_is_told_to_every_canary(redis: RedisServer) -> None:
    async with Gateway(broker=redis.url) as gateway:
        trial = Trial(Plan([gateway.url], API_KEY, clients=8, rate=20, seconds=3, settle=5))
        running = asyncio.create_task(trial.run())
        await gateway.until(lambda: trial.ledger.published >= 10)
        await asyncio.to_thread(redis.wipe)
        result = await running
    assert not result.ok
    assert result.resets == 8
    assert result.unannounced == 0
    assert result.lost == len([fault for fault in result.faults if fault.startswith("lost: ")])


def test_a_command_that_fails_is_no_success(gateway: Gateway) -> None:
    done = ringcast("verify", "--clients", "1", "--for", "500ms", "--during", "exit 3", **client(gateway))
    assert done.returncode == 1
    assert done.stdout.endswith("NOT OK: the command ended with 3\n")


def test_what_cannot_be_meant_gets_a_sentence() -> None:
    done = ringcast("verify", "--for", "soon", RINGCAST_API_KEY=API_KEY)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "ringcast: 'soon' is not a duration; write for example 250ms, 30s, 5m or 24h.\n"


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"seconds": 7200}, "a trial has at most 3600 s, it remembers every delivery; not 7200 s"),
        ({"settle": 0}, "what is missing has at most 3600 s to settle, not 0 s"),
        ({"transports": ["ws", "pigeon"]}, "there is no transport 'pigeon': use ws, sse, poll, eventsource"),
        ({"channel": "nonsense"}, "channel 'nonsense' must begin with a namespace such as 'user:' or 'topic:'"),
        ({"urls": ["ftp://here"]}, "the gateway's URL must look like https://host[:port][/path], not 'ftp://here'"),
        ({"api_key": ""}, "an API key is needed, for tickets and publishing: set RINGCAST_API_KEY"),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_meant_is_refused(plan: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(said)):
        Trial(Plan(**{"urls": ["http://127.0.0.1:8000"], "api_key": API_KEY} | plan))


def test_what_cannot_be_tried_gets_a_sentence(gateway: Gateway) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    done = ringcast("verify", "--url", nobody, RINGCAST_API_KEY=API_KEY)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"ringcast: {nobody}/v1/nodes: ")
    done = ringcast("verify", **client(gateway) | {"RINGCAST_API_KEY": token("ann")})
    assert (done.returncode, done.stdout) == (1, "")
    assert "refused (403 forbidden)" in done.stderr
    assert len(done.stderr.splitlines()) == 1
