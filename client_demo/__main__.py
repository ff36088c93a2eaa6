"""`python -m client_demo`: a gateway, the demo's backend, its page and its worker; Ctrl-C ends them.

With `--broker redis --nodes 3` it is a cluster: a real store, three nodes, and a round-robin proxy in front of them.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import signal
import socket
import sys
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from tempfile import TemporaryDirectory
from typing import Any

import uvicorn

from client_demo.backend import Config, create_app
from client_demo.processes import Node, NotStarted, store, worker
from client_demo.relay import relay


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m client_demo", description=(__doc__ or "").split("\n")[0])
    arguments.add_argument("--port", type=int, default=8080, help="of the page; the next free one if it is taken")
    arguments.add_argument("--gateway-port", type=int, default=8000, help="of the gateway; a free one if it is taken")
    arguments.add_argument("--broker", choices=["memory", "redis", "nats"], default="memory", help="what is started")
    arguments.add_argument("--nodes", type=int, default=1, help="how many; several need a broker that they share")
    chosen = arguments.parse_args()
    if not 1 <= chosen.nodes <= 9:
        arguments.error("--nodes is a number from 1 to 9")
    if chosen.nodes > 1 and chosen.broker == "memory":
        arguments.error("several nodes need a broker that they share: BROKER=redis or BROKER=nats")
    # uvicorn raises the signals it took again when it has ended; SIGTERM's own handler would leave the gateway behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return asyncio.run(run(chosen.port, chosen.gateway_port, chosen.broker, chosen.nodes))
    except NotStarted as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


async def run(port: int, gateway_port: int, broker: str, count: int) -> int:
    """Serve until Ctrl-C, or until what is needed ends by itself; returns the exit code. Raises NotStarted."""
    listener = listen(port)
    page = f"http://127.0.0.1:{listener.getsockname()[1]}"
    # Keys of this run alone: they are in no file, and what they signed is worth nothing afterwards.
    hmac_key, api_key = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    environment = {
        "RINGCAST_JWT_HMAC_KEY": hmac_key, "RINGCAST_API_KEYS": api_key,
        "RINGCAST_ALLOWED_ORIGINS": f"{page},{page.replace('127.0.0.1', 'localhost')}",
        "RINGCAST_DRAIN_WAIT": "0s", "RINGCAST_DRAIN": "0s",
    }  # fmt: skip
    gateway_port = gateway_port if is_free(gateway_port) else 0
    async with AsyncExitStack() as stack:
        ports = free_ports(gateway_port + 1 if gateway_port else 8001)
        url, server = await stack.enter_async_context(store(broker, next(ports)))
        environment["RINGCAST_BROKER"] = url
        if count == 1:
            nodes = [Node("gateway", gateway_port, environment)]
        else:
            environment["RINGCAST_LOG_LEVEL"] = "warning"  # how they draw their rings would be three times the same
            nodes = [_member(f"node-{n}", next(ports), environment) for n in range(1, count + 1)]
        for node in nodes:
            stack.push_async_callback(node.stop)
        await asyncio.gather(*(node.start() for node in nodes))
        gateway = nodes[0].url
        if count > 1:
            front = listen(gateway_port)
            gateway = f"http://127.0.0.1:{front.getsockname()[1]}"
            await stack.enter_async_context(relay(front, [node.port for node in nodes]))
        # Jobs wait in a Redis where there is one, else in files.
        folder = stack.enter_context(TemporaryDirectory(prefix="ringcast-jobs-", ignore_cleanup_errors=True))
        queue = f"{url}/1" if broker == "redis" else folder
        work = await stack.enter_async_context(worker({
            "RINGCAST_URL": gateway, "RINGCAST_API_KEY": api_key, "DEMO_QUEUE": queue
        }))  # fmt: skip
        config = Config(gateway=gateway, public_gateway=gateway, hmac_key=hmac_key, api_key=api_key, queue=queue)
        app = create_app(config, nodes if count > 1 else ())
        told = "" if count == 1 else f"  store           {url}\n" + "".join(
            f"  {node.name:<15} {node.url}  pid {node.pid}\n" for node in nodes
        )  # fmt: skip
        print(
            f"\n  Ringcast demo   {page}\n  gateway         {gateway}\n{told}\n"
            f"For curl and ringcast in another terminal:\n\n"
            f"  export RINGCAST_URL={gateway} RINGCAST_API_KEY={api_key}\n\n"
            "Ctrl-C ends all of it.\n",
            flush=True,
        )
        return await _serve(uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on")), listener, {
            "The worker": work.wait(),
            **({"The store": server.wait()} if server is not None else {}),
            **({"The gateway": nodes[0].ended()} if count == 1 else {node.name: node.keep() for node in nodes}),
        })  # fmt: skip


async def _serve(server: uvicorn.Server, listener: socket.socket, needed: dict[str, Coroutine[Any, Any, int]]) -> int:
    """Until Ctrl-C, or until one of those that are needed ends."""
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    watching = {asyncio.create_task(wait): name for name, wait in needed.items()}
    try:
        await asyncio.wait({serving, *watching}, return_when=asyncio.FIRST_COMPLETED)
        ended = [(name, task) for task, name in watching.items() if task.done()]
        for name, task in ended:
            print(f"{name} ended by itself ({task.exception() or f'exit code {task.result()}'}).", file=sys.stderr)
        return 1 if ended else 0
    finally:
        server.should_exit = True
        for task in watching:  # before the nodes are stopped: they are not to be started again
            task.cancel()
        await asyncio.gather(serving, *watching, return_exceptions=True)


def _member(name: str, port: int, environment: dict[str, str]) -> Node:
    """A node that others know by its own address."""
    return Node(name, port, environment, ("--node", name, "--advertise", f"http://127.0.0.1:{port}"))


def listen(port: int) -> socket.socket:
    """A listening socket on the first free port from `port` on; on any, from 0."""
    for candidate in range(port, port + 100) if port else (0,):
        # Of a socket that does not say TCP asyncio's own are slow: each answer's second part waits for 40 ms.
        listener = socket.socket(proto=socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", candidate))
        except OSError:
            listener.close()
            continue
        listener.listen()
        return listener
    raise SystemExit(f"No free port between {port} and {port + 99}; choose another with --port.")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_ports(first: int) -> Iterator[int]:
    """Not just any: a port that outgoing connections are given could be gone when a node comes back to it."""
    return (port for port in range(first, 65536) if is_free(port))


if __name__ == "__main__":
    sys.exit(main())
