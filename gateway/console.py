"""The operators' page, and the part of the interface that its cookie reaches: everything below /console/.

The cookie is sent nowhere else, to no other site's page and to no script (HttpOnly, SameSite=Strict, its path), and it
counts for requests of the page itself alone. So what runs on the same host cannot use it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from gateway.credentials import OPERATOR_COOKIE, address_of, scheme_of
from gateway.errors import Problem
from gateway.head import Head
from gateway.http import identify, json_response
from gateway.node import Node
from gateway.operators import LASTS, Operators

PAGE = Path(__file__).parent / "static" / "console" / "index.html"
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache",
}  # fmt: skip
REACHED = {
    "/v1/nodes", "/v1/route", "/v1/connections", "/v1/publish", "/v1/history", "/v1/snapshot", "/v1/sse",
}  # fmt: skip

log = logging.getLogger("ringcast.console")


def routes(node: Node, operators: Operators, interface: Iterable[BaseRoute]) -> list[BaseRoute]:
    """The console's; `interface` is where the routes that it uses are found."""

    async def to_page(_: Request) -> Response:
        return RedirectResponse("console/")

    async def page(_: Request) -> Response:
        return FileResponse(PAGE, headers=PAGE_HEADERS)

    async def session(request: Request) -> Response:
        """Whose page it is; None asks for a key, without a refusal that the browser would log."""
        try:
            identity = await identify(request, node.auth)
        except Problem as problem:
            if problem.kind.status not in (401, 403):
                raise
            return json_response({"operator": None})
        return json_response({"operator": identity.principal if identity.operator else None})

    async def login(request: Request) -> Response:
        """The key comes as `Authorization: Bearer`, which no page of another site can send without being asked."""
        identity = await identify(request, node.auth)
        if not identity.server:
            raise Problem("forbidden", "The console is for API keys: a token does not open it")
        if identity.operator:  # there are no keys, or the cookie is here already
            return Response(status_code=204)
        head = Head.of(request.scope)
        response = Response(status_code=204, headers={"Cache-Control": "no-store"})
        response.set_cookie(
            OPERATOR_COOKIE, await operators.begin(identity.principal), max_age=int(LASTS), path=_path(request),
            secure=scheme_of(head, node.auth.limits) == "https", httponly=True, samesite="strict",
        )  # fmt: skip
        log.info("%s opened the console from %s", identity.principal, address_of(head, node.auth.limits))
        return response

    async def logout(request: Request) -> Response:
        await identify(request, node.auth)
        await operators.end(request.cookies.get(OPERATOR_COOKIE, ""))
        response = Response(status_code=204, headers={"Cache-Control": "no-store"})
        response.delete_cookie(OPERATOR_COOKIE, path=_path(request), httponly=True, samesite="strict")
        return response

    return [
        Route("/console", to_page, methods=["GET"], include_in_schema=False),
        Mount("/console", routes=[
            Route("/", page, methods=["GET"]),
            Route("/session", session, methods=["GET"]),
            Route("/login", login, methods=["POST"]),
            Route("/logout", logout, methods=["POST"]),
            *(route for route in interface if isinstance(route, Route) and route.path in REACHED),
        ]),
    ]  # fmt: skip


def _path(request: Request) -> str:
    """Where the page is, also where a proxy serves the gateway below a path of its own."""
    return f"{request.scope.get('root_path', '').removesuffix('/console')}/console/"
