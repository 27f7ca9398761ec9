"""Who may see the live page and press its button: only who was told its address.

The page runs on the machine of the instrument, where other users may have accounts, and in a
browser that is open to other pages as well. So every request, for the page, its data and its
button alike,

- names as its host the address that is served: a name of somebody else's which is made to lead
  here (DNS rebinding) is refused, as is a request that another page has made;
- has the token of the printed address, in the address or in the cookie which that has left. Other
  pages cannot send it (SameSite), other users do not know it;
- is answered with the order to show the page in no frame, where a click could be drawn onto it.
"""

import hmac
from collections.abc import Callable
from typing import Any

from bokeh.document import Document
from bokeh.server.server import BaseServer
from bokeh.server.tornado import BokehTornado
from bokeh.server.util import bind_sockets
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.ioloop import IOLoop
from tornado.web import ErrorHandler, RequestHandler

HERE = "127.0.0.1"  # no other machine may stop the instrument
LARGEST = 1_000_000  # bytes of a request
HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Protected(BokehTornado):
    """A Bokeh application which answers to nobody without the token."""

    def __init__(self, fill: Callable[[Document], None], port: int, token: str):
        self._hosts = {f"{name}:{port}" for name in (HERE, "localhost")}
        if port == 80:
            self._hosts |= {HERE, "localhost"}
        self._cookie, self._token = f"micjax-{port}", token
        super().__init__(
            fill,
            extra_websocket_origins=sorted(self._hosts),
            include_headers=[],
            include_cookies=[],  # nothing of them is handed on to the page
        )

    def get_handler_delegate(
        self,
        request: HTTPServerRequest,
        target_class: type[RequestHandler],
        target_kwargs: dict[str, Any] | None = None,
        *places: Any,
        **named: Any,
    ):
        headers = dict(HEADERS)
        if self._refused(request):
            target_class, target_kwargs = ErrorHandler, {"status_code": 403}
        elif "token" in request.query_arguments:
            cookie = f"{self._cookie}={self._token}; Path=/; HttpOnly; SameSite=Strict"
            headers["Set-Cookie"] = cookie
        answer = _with_headers(target_class, headers)
        return super().get_handler_delegate(request, answer, target_kwargs, *places, **named)

    def _refused(self, request: HTTPServerRequest) -> bool:
        origin = request.headers.get("Origin")
        if request.host.lower() not in self._hosts:
            return True
        if origin is not None and origin.lower() not in {f"http://{h}" for h in self._hosts}:
            return True
        kept = request.cookies.get(self._cookie)
        in_cookie = b"" if kept is None else kept.value.encode()
        sent = request.query_arguments.get("token", [in_cookie])[-1]
        # takes as long wherever the two begin to differ
        return not hmac.compare_digest(sent, self._token.encode())


def _with_headers(handler: type[RequestHandler], headers: dict[str, str]) -> type[RequestHandler]:
    def set_default_headers(self) -> None:
        handler.set_default_headers(self)
        for name, value in headers.items():
            self.set_header(name, value)

    return type(handler.__name__, (handler,), {"set_default_headers": set_default_headers})


def protected_server(fill: Callable[[Document], None], port: int, token: str) -> BaseServer:
    """The server of a page, which has begun to listen.

    **Arguments:**

    - `fill`: draws the page into a document.
    - `port`: of this machine.
    - `token`: what a visitor has to know.

    **Raises:** `OSError` where the port is taken.
    """
    sockets, port = bind_sockets(HERE, port)
    try:
        application = Protected(fill, port, token)
        http = HTTPServer(application, max_body_size=LARGEST)
        http.add_sockets(sockets)
    except Exception:
        for socket in sockets:
            socket.close()
        raise
    server = BaseServer(IOLoop.current(), application, http)
    server.start()
    return server


def address_of(port: int, token: str) -> str:
    return f"http://{HERE}:{port}/?token={token}"
