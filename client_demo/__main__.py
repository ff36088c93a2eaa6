"""`python -m client_demo`: a gateway, the demo's backend and its page; Ctrl-C ends them."""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import signal
import socket
import sys

import uvicorn

from client_demo.backend import Config, create_app

STOP_WITHIN = 5.0  # seconds that the gateway is given to end in good order


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m client_demo", description=__doc__)
    arguments.add_argument("--port", type=int, default=8080, help="of the page; the next free one if it is taken")
    arguments.add_argument("--gateway-port", type=int, default=8000, help="of the gateway; a free one if it is taken")
    chosen = arguments.parse_args()
    # uvicorn raises the signals it took again when it has ended; SIGTERM's own handler would leave the gateway behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return asyncio.run(run(chosen.port, chosen.gateway_port))
    except KeyboardInterrupt:
        return 0


async def run(port: int, gateway_port: int) -> int:
    """Serve until Ctrl-C, or until the gateway ends by itself; returns the exit code."""
    listener = listen(port)
    page = f"http://127.0.0.1:{listener.getsockname()[1]}"
    # Keys of this run alone: they are in no file, and what they signed is worth nothing afterwards.
    hmac_key, api_key = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    environment = os.environ | {
        "RINGCAST_JWT_HMAC_KEY": hmac_key, "RINGCAST_API_KEYS": api_key,
        "RINGCAST_ALLOWED_ORIGINS": f"{page},{page.replace('127.0.0.1', 'localhost')}",
        "RINGCAST_DRAIN_WAIT": "0s", "RINGCAST_DRAIN": "0s",
    }  # fmt: skip
    gateway = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway.cli", "serve", "--port", str(gateway_port if is_free(gateway_port) else 0),
        env=environment, stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for us to pass on, after the page's backend has ended
    )  # fmt: skip
    try:
        assert gateway.stdout is not None
        words = (await gateway.stdout.readline()).decode().split()
        if words[:2] != ["ringcast", "ready"]:
            print("The gateway did not start; what it wrote above says why.", file=sys.stderr)
            return 1
        url = words[2].rstrip("/")
        app = create_app(Config(gateway=url, public_gateway=url, hmac_key=hmac_key, api_key=api_key))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
        print(
            f"\n  Ringcast demo   {page}\n  gateway         {url}\n\n"
            f"For curl and ringcast in another terminal:\n\n  export RINGCAST_URL={url} RINGCAST_API_KEY={api_key}\n\n"
            "Ctrl-C ends both.\n",
            flush=True,
        )
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        died = asyncio.create_task(gateway.wait())
        await asyncio.wait({serving, died}, return_when=asyncio.FIRST_COMPLETED)
        if died.done():
            print(f"The gateway ended by itself (exit code {died.result()}).", file=sys.stderr)
        died.cancel()
        code = 1 if died.done() and not died.cancelled() else 0
        server.should_exit = True
        await serving
        return code
    finally:
        await stop(gateway)


def listen(port: int) -> socket.socket:
    """A listening socket on the first free port from `port` on."""
    for candidate in range(port, port + 100):
        listener = socket.socket()
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


async def stop(gateway: asyncio.subprocess.Process) -> None:
    if gateway.returncode is not None:
        return
    gateway.terminate()
    try:
        await asyncio.wait_for(gateway.wait(), STOP_WITHIN)
    except TimeoutError:
        gateway.kill()
        await gateway.wait()


if __name__ == "__main__":
    sys.exit(main())
