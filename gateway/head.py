"""The head of a request: read off an ASGI scope, or off the bytes of a connection that is taken before there is one."""

from __future__ import annotations

import re
from collections.abc import Iterable, MutableMapping
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import cookie_parser

# What is read here is the plain case (RFC 9112): origin-form, HTTP/1.1, one field a line. All else is another parser's.
_REQUEST = re.compile(rb"([A-Z]+) (/[!-~]*) HTTP/1\.1\r\n((?:[!#-'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*\r\n)*)\r\n")
_FIELD = re.compile(r"([^:]+):[ \t]*([^\r]*[^\r \t])?[ \t]*\r\n")


class Head:
    """Method, path and query, and the fields by lower-case name; one that came more than once is joined by ', '."""

    __slots__ = ("_query", "fields", "method", "path", "peer", "query_string", "scheme")

    def __init__(
        self, method: str, path: str, query_string: str, fields: Iterable[tuple[str, str]], peer: str, scheme: str
    ) -> None:
        self.method = method
        self.path = path
        self.query_string = query_string
        self.peer = peer  # the address of whoever is at the other end of the connection
        self.scheme = scheme  # http, https, ws or wss
        self.fields: dict[str, str] = {}
        for name, value in fields:
            name = name.lower()
            known = self.fields.get(name)
            self.fields[name] = value if known is None else f"{known}, {value}"
        self._query: dict[str, str] | None = None

    @classmethod
    def of(cls, scope: MutableMapping[str, Any]) -> Head:
        """That of a request or handshake under ASGI."""
        client, query = scope.get("client"), scope["query_string"].decode("latin-1")
        peer = client[0] if client else ""
        fields = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])
        return cls(scope.get("method", "GET"), scope["path"], query, fields, peer, scope["scheme"])

    @classmethod
    def parse(cls, data: bytes, peer: str, scheme: str) -> tuple[Head, int] | None:
        """The head that `data` begins with, and its length; None for one that is not of the plain kind."""
        match = _REQUEST.match(data)
        if match is None:
            return None
        path, _, query = match[2].decode("ascii").partition("?")
        fields = _FIELD.findall(match[3].decode("latin-1"))
        return cls(match[1].decode("ascii"), path, query, fields, peer, scheme), match.end()

    @property
    def websocket(self) -> bool:
        return self.scheme in ("ws", "wss")

    @property
    def query(self) -> dict[str, str]:
        """The parameters of the URL; of one that is given twice the last."""
        if self._query is None:
            query = self.query_string
            if "%" in query or "+" in query:
                self._query = dict(parse_qsl(query, keep_blank_values=True))
            else:
                pairs = [pair.partition("=") for pair in query.split("&") if pair]
                self._query = {name: value for name, _, value in pairs}
        return self._query

    @property
    def cookies(self) -> dict[str, str]:
        return cookie_parser(self.fields.get("cookie", ""))

    def listed(self, name: str) -> list[str]:
        """The members of a comma separated field (RFC 9110, 5.6.1)."""
        field = self.fields.get(name)
        return [] if field is None else [member for part in field.split(",") if (member := part.strip())]
