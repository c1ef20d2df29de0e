"""What keeps other web sites out: only hosts that are ours, and no right that a page needs not."""

import ipaddress
import json
import socket
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["COMMON", "OF_EXPLORER", "Guard"]

OF_PAGE = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
)
OF_EXPLORER = (  # which holds its script, its style and its data
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
)
COMMON = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
HEADERS = {
    "content-security-policy": OF_PAGE + COMMON,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """Answers those alone who ask for one of this machine's names, and tells browsers to be strict.

    A web site elsewhere may let its own name lead to this machine (DNS rebinding), but not to be
    asked for by a number, or by a name of ours.

    Args:
      app: what answers.
      host: the name or address that the server was told to listen on.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app = app
        self._names = {"localhost", host.lower(), socket.gethostname().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        if self._is_ours(host):
            await self._app(scope, receive, _with_headers(send))
        else:
            await _refuse(_with_headers(send), host)

    def _is_ours(self, host: str) -> bool:
        name = host.lower()
        if not name.endswith("]"):
            name = name.rpartition(":")[0] or name
        name = name.removeprefix("[").removesuffix("]")
        return name in self._names or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = {name for name, _ in message["headers"]}
            more = {name.encode(): value.encode() for name, value in HEADERS.items()}
            added = [(name, value) for name, value in more.items() if name not in own]
            message = {**message, "headers": [*message["headers"], *added]}
        await send(message)

    return sending


async def _refuse(send: Send, host: str) -> None:
    error = f"host: is {host[:100]!r}; expected this machine's name or address."
    body = json.dumps({"error": error}).encode()
    headers: Any = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 421, "headers": headers})
    await send({"type": "http.response.body", "body": body})
