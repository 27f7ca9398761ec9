"""The live page: what it shows of a folder, and a button that is really clicked."""

import asyncio
import json
import re
import socket
import subprocess
import sys
import time
import types

import browser
import numpy as np
import pytest
from bokeh.document import Document
from bokeh.events import ButtonClick
from bokeh.models import Button, ColumnDataSource, Div
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from micjax.__main__ import main
from micjax.active.campaign import STOP, Campaign, RandomPolicy
from micjax.active.learner.learner import Learner
from micjax.active.learner.space import SearchAxis, Space
from micjax.active.snapshot import Snapshots
from micjax.instruments import Axis, Function, Guard, Journal, JournalError
from micjax.report.access import address_of
from micjax.report.live import fill
from micjax.run import watch
from micjax.run.watch import Folder, serve

ALONG = np.linspace(-1.0, 1.0, 21)
AXES = {"y": Axis("m", 0.0, 2e-6), "x": Axis("m", 0.0, 1e-6)}


def device(axes=AXES):
    def curve(**at):
        return np.exp(-((ALONG - 1e6 * sum(at.values()) / len(at)) ** 2))

    return Guard(Function(curve, axes, coords={"bias": (ALONG, "V")}, channel="current", unit="A"))


def measured(folder, points, axes=AXES, learns=True):
    """A campaign of so many points in a folder."""
    space = Space([SearchAxis(n, a.lo, a.hi, a.unit) for n, a in axes.items()])
    policy = Learner(space, outcome="peak", initial=3) if learns else RandomPolicy(axes)
    with Journal(folder, {}) as journal:
        learnt = Snapshots(folder, policy) if learns else lambda: None
        loop = Campaign(
            device(axes), policy, "measure", peak, journal, outcome="peak", learnt=learnt
        )
        loop.run(points)
        if learns:
            learnt.write()
    return loop


def peak(record):
    return float(record.data["current"].max())


def drawn(folder):
    document = Document()
    stops = []
    fill(document, Folder(folder).look, lambda: stops.append(1))
    return document, stops


def drawn_as(document, name):
    """The columns of all sources of that name."""
    return [s.data for s in document.select({"type": ColumnDataSource}) if s.name == name]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, measured(folder, 5)


def test_maps_points_and_the_last_spectrum(run):
    folder, loop = run
    document, stops = drawn(folder)
    for name in ("median", "uncertainty", "acquisition"):
        (map_,) = drawn_as(document, name)
        assert map_["z"][0].shape == (48, 48)
    x, y = ([p[n] for p in loop.points] for n in "xy")
    for places in drawn_as(document, "points"):
        np.testing.assert_allclose(places["x"], np.multiply(x, 1e6))  # in um
        np.testing.assert_allclose(places["y"], np.multiply(y, 1e6))
    (course,) = drawn_as(document, "course")
    np.testing.assert_allclose(course["y"], [p["peak"] for p in loop.points])
    (spectrum,) = drawn_as(document, "last")
    record = loop.journal.record(loop.journal.steps[-1])
    np.testing.assert_allclose(spectrum["y"], record.data["current"])
    (said,) = document.select({"type": Div})
    assert "5 measurements" in said.text and "nothing is being measured" in said.text
    (button,) = document.select({"type": Button})
    assert button.disabled and not stops


def test_it_follows_what_is_written(tmp_path):
    """From places alone, without anything believed, to one more place."""
    folder = tmp_path
    with Journal(folder, {}) as journal:
        loop = Campaign(device(), RandomPolicy(AXES), "measure", peak, journal)
        loop.run(2)
        document, stops = drawn(folder)
        (update,) = document.session_callbacks
        (button,) = document.select({"type": Button})
        assert not button.disabled
        loop.run(3)
        update.callback()
        (places,) = drawn_as(document, "points")
        assert len(places["x"]) == 3
        button._trigger_event(ButtonClick(button))
        assert stops == [1] and button.disabled
    update.callback()
    assert button.disabled and button.label == "It is not running"


@pytest.mark.slow
def test_profiles_where_there_is_no_map(tmp_path):
    axes = {"bias": Axis("V", 0.0, 1e-6)}
    measured(tmp_path, 4, axes)
    document, _ = drawn(tmp_path)
    (band,) = drawn_as(document, "band")
    assert np.all(band["lower"] <= band["median"]) and np.all(band["median"] <= band["upper"])


def test_a_folder_without_a_journal(tmp_path):
    with pytest.raises(JournalError, match="no journal"):
        Folder(tmp_path).look()


# --- who may see it, over real HTTP and websockets ------------------------------------------------

TOKEN = "of-the-printed-address"


def asked(folder, question):
    """What `await question(port)` finds of the page of a folder, served on a free port."""

    async def serving():
        port = free_port()
        server = serve(folder, port, TOKEN, False)
        try:
            return await question(port)
        finally:
            server.stop()

    return asyncio.run(serving())


async def answer(port, path="/", **headers):
    request = HTTPRequest(f"http://127.0.0.1:{port}{path}", headers=filled(headers, port))
    return await AsyncHTTPClient().fetch(request, raise_error=False)


def filled(headers, port):
    return {name: value.format(port=port) for name, value in headers.items()}


VISITORS = {  # what a request says of itself -> whether it is let in
    "nothing": ({}, False),
    "the cookie": ({"Cookie": "micjax-{port}=" + TOKEN}, True),
    "another cookie": ({"Cookie": "micjax-{port}=guessed"}, False),
    "no cookie": ({"Cookie": "micjax-{port}="}, False),
    "localhost": ({"Cookie": "micjax-{port}=" + TOKEN, "Host": "localhost:{port}"}, True),
    # DNS rebinding: a page of evil.example whose name has come to mean 127.0.0.1
    "rebinding": (
        {
            "Cookie": "micjax-{port}=" + TOKEN,
            "Host": "evil.example:{port}",
            "Origin": "http://evil.example:{port}",
        },
        False,
    ),
    "another page": (
        {"Cookie": "micjax-{port}=" + TOKEN, "Origin": "http://evil.example"},
        False,
    ),
    "another port": (
        {"Cookie": "micjax-{port}=" + TOKEN, "Origin": "http://127.0.0.1:1"},
        False,
    ),
    "no origin": ({"Cookie": "micjax-{port}=" + TOKEN, "Origin": "null"}, False),
}


@pytest.mark.parametrize("headers, let_in", VISITORS.values(), ids=VISITORS)
def test_who_is_let_in(run, headers, let_in):
    """The page, its data and its files; and the websocket, over which the button is pressed."""
    folder, _ = run

    async def question(port):
        pages = [await answer(port, path, **headers) for path in PAGES]
        try:
            address = HTTPRequest(f"ws://127.0.0.1:{port}/ws", headers=filled(headers, port))
            socket = await websocket_connect(address, subprotocols=["bokeh", "token"])
            socket.close()
            return pages, 101
        except HTTPClientError as error:
            return pages, error.code

    pages, handshake = asked(folder, question)
    assert {p.code for p in pages} == ({200} if let_in else {403})
    assert handshake == (101 if let_in else 403)
    assert ("bokeh" in pages[0].body.decode().lower()) == let_in
    for page in pages:
        assert page.headers["X-Frame-Options"] == "DENY"
        assert page.headers["Content-Security-Policy"] == "frame-ancestors 'none'"
        assert "Set-Cookie" not in page.headers


PAGES = ("/", "/autoload.js?bokeh-autoload-element=x", "/metadata", "/static/js/bokeh.min.js")


def test_the_printed_address_leaves_a_cookie(run):
    """With it the browser loads the parts of the page, and opens the websocket."""
    folder, _ = run

    async def question(port):
        path = address_of(port, TOKEN).removeprefix(f"http://127.0.0.1:{port}")
        wrong = await answer(port, path + "x")
        page = await answer(port, path)
        cookie = page.headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
        token = re.search(r'"token":"([^"]+)"', page.body.decode())[1]
        headers = {"Cookie": cookie.partition(";")[0], "Origin": f"http://127.0.0.1:{port}"}
        socket = await websocket_connect(
            HTTPRequest(f"ws://127.0.0.1:{port}/ws", headers=headers),
            subprotocols=["bokeh", token],
        )
        first = json.loads(await socket.read_message())
        socket.close()
        return wrong.code, page.code, first["msgtype"]

    assert asked(folder, question) == (403, 200, "ACK")


def test_the_browser_is_not_handed_the_address(tmp_path, monkeypatch):
    """The arguments of its process could be read by every user of the machine."""
    opened = []
    monkeypatch.setattr(watch.webbrowser, "open", opened.append)
    monkeypatch.setattr(watch.tempfile, "tempdir", str(tmp_path))
    watch._show(types.SimpleNamespace(call_later=lambda *_: None), address_of(5006, TOKEN))
    (file,) = tmp_path.iterdir()
    assert opened == [file.as_uri()] and TOKEN in file.read_text()
    assert file.stat().st_mode & 0o077 == 0


def test_a_port_that_is_none(run, capsys):
    folder, _ = run
    assert main(["watch", str(folder), "--port", "70000", "--no-browser"]) == 2
    assert "--port 70000: 1 to 65535 are allowed" in capsys.readouterr().err


SLOW = """
import time

def hill(u, v):
    time.sleep(0.2)
    return -((u - 0.7) ** 2) - (v - 0.2) ** 2
"""


@pytest.mark.skipif(browser.chromium() is None, reason="there is no Chromium")
def test_a_real_click_stops_the_instrument(tmp_path):
    """`micjax explore` in one process, `micjax watch` in another, and a browser in a third."""
    (tmp_path / "slow.py").write_text(SLOW)
    plan = {
        "measure": "slow:hill",
        "axes": {"u": {"lower": 0.0, "upper": 1.0}, "v": {"lower": 0.0, "upper": 1.0}},
        "budget": 900,
        "initial": 900,
        "outcome": "height",
    }
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    micjax = [sys.executable, "-m", "micjax"]
    explore = subprocess.Popen([*micjax, "explore", "plan.yaml", "--out", "run"], cwd=tmp_path)
    port = free_port()
    page_of = None
    try:
        wait_for(lambda: (tmp_path / "run" / "state.npz").exists())
        page_of = subprocess.Popen(
            [*micjax, "watch", "run", "--port", str(port), "--no-browser"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
        )
        address = page_of.stdout.readline().split()[0]
        with browser.page(address, tmp_path / "profile") as page:
            where = page.until(BUTTON)
            page.screenshot(tmp_path / "page.png")
            assert (tmp_path / "page.png").stat().st_size > 30_000
            page.click(*where)
            assert explore.wait(120) == 130  # interrupted, not failed
            page.until(BUTTON.replace("Stop the instrument", "It is not running"))
        assert not (tmp_path / "run" / STOP).exists()
    finally:
        for process in filter(None, (explore, page_of)):
            process.kill()
            process.wait()


# where the middle of the button is; the parts of the page lie in shadow roots
BUTTON = """(() => {
  const roots = [document];
  for (const root of roots)
    for (const part of root.querySelectorAll('*')) {
      if (part.tagName == 'BUTTON' && part.textContent.includes('Stop the instrument')) {
        const r = part.getBoundingClientRect();
        return [r.x + r.width / 2, r.y + r.height / 2];
      }
      if (part.shadowRoot) roots.push(part.shadowRoot);
    }
  return null;
})()"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(true, seconds=120.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)
