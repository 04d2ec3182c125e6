"""What protects the server: only its own page may call it, only what it uses, nothing too large.

A page of another site in the same browser can send requests to 127.0.0.1, too. Browsers say where a
request comes from (`Origin`) and for which host (`Host`); both must be ours.
"""

import re
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any
from urllib.parse import urlsplit

MAX_REQUEST = 64 * 2**20  # bytes
UPLOAD = "/gradio_api/upload"  # path of requests that upload files
# Routes of Gradio that the page does not use. Some change the program, fetch addresses for the
# caller, or answer without the password.
UNUSED = re.compile(
    r"/(openapi\.json|docs|redoc)\b|(/gradio_api)?/(vibe-|undo-vibe|proxy=|file[=/]https?:|dev/|"
    r"monitoring|run-history|runs\b|custom_component|deep_link)",
    re.IGNORECASE,
)
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class TooLarge(Exception):
    """A request has more bytes than allowed."""


class Protection:
    """ASGI middleware that refuses requests of other sites, of unused routes, and too large ones.

    Args:
        hosts: names by which the server may be called; None for any, where a password is asked for.
        limit: bytes of a request.
        uploads: bytes of a request that uploads files; None: as others. They go to the disk as
            they come.
    """

    def __init__(
        self,
        app: App,
        hosts: Collection[str] | None,
        limit: int = MAX_REQUEST,
        uploads: int | None = None,
    ):
        self.app, self.hosts, self.limit = app, hosts, limit
        self.uploads = limit if uploads is None else uploads

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        limit = self.uploads if scope.get("path") == UPLOAD else self.limit
        if reason := self.reason_to_refuse(headers, limit, scope.get("path", "")):
            await refuse(scope, send, *reason)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body") or message.get("bytes") or b"")
            if read > limit:
                raise TooLarge
            return message

        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, counted, noted)
        except TooLarge:
            if not started:
                await refuse(scope, send, 413, "the request is too large")

    def reason_to_refuse(
        self, headers: dict[bytes, str], limit: int, path: str
    ) -> tuple[int, str] | None:
        """Return status and reason, or None if the request may pass."""
        host = headers.get(b"host", "")
        if self.hosts is not None and name_of(host) not in self.hosts:
            return 403, f"this server is not called {name_of(host)[:100]!r}"
        origin = headers.get(b"origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return 403, "requests of other sites are refused"
        # A link on another site may lead to the page; nothing else there may call or embed it.
        is_foreign = headers.get(b"sec-fetch-site") == "cross-site"
        if is_foreign and headers.get(b"sec-fetch-mode") != "navigate":
            return 403, "requests of other sites are refused"
        length = headers.get(b"content-length", "0")
        if not length.isdecimal() or int(length) > limit:
            return 413, "the request is too large"
        if UNUSED.match(path):
            return 404, "this page has no such part"
        return None


def name_of(host: str) -> str:
    """Return the name in a `Host` header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


async def refuse(scope: Message, send: Send, status: int, reason: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{reason}\n".encode()})
