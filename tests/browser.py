"""A headless Chromium, driven through its DevTools protocol by the websocket client of tornado."""

import base64
import contextlib
import json
import pathlib
import shutil
import subprocess
import time
import urllib.request

from tornado.ioloop import IOLoop
from tornado.websocket import websocket_connect

WIDE, HIGH = 1300, 1000
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def chromium() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of it."""

    def __init__(self, address: str):
        self._loop = IOLoop()
        self._socket = self._loop.run_sync(
            lambda: websocket_connect(address, max_message_size=2**26), timeout=30
        )
        self._count = 0

    def ask(self, method: str, **params):
        self._count += 1
        number = self._count
        self._socket.write_message(json.dumps({"id": number, "method": method, "params": params}))
        while True:  # events come in between
            answer = json.loads(self._loop.run_sync(self._socket.read_message, timeout=60))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def value(self, expression: str):
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, expression: str, seconds: float = 60.0):
        end = time.monotonic() + seconds
        while not (found := self.value(expression)):
            assert time.monotonic() < end, f"not within {seconds:g} s: {expression}"
            time.sleep(0.1)
        return found

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path: pathlib.Path) -> None:
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        self._socket.close()
        self._loop.close()


@contextlib.contextmanager
def page(url: str, folder: pathlib.Path):
    """The browser with that page open."""
    flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0")
    process = subprocess.Popen(
        [chromium(), *flags, f"--user-data-dir={folder}", f"--window-size={WIDE},{HIGH}", url],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        browser = Browser(_address(folder / "DevToolsActivePort"))
        yield browser
        browser.close()
    finally:
        process.kill()
        process.wait()


def _address(file: pathlib.Path) -> str:
    end = time.monotonic() + 60.0
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError, StopIteration):
            port = int(file.read_text().split()[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=5) as answer:
                pages = json.load(answer)
            return next(p["webSocketDebuggerUrl"] for p in pages if p["type"] == "page")
        time.sleep(0.1)
    raise AssertionError("the browser did not start")
