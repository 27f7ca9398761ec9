"""The live page: what it shows of a folder, and a button that is really clicked."""

import json
import socket
import subprocess
import sys
import time

import browser
import numpy as np
import pytest
from bokeh.document import Document
from bokeh.events import ButtonClick
from bokeh.models import Button, ColumnDataSource, Div

from micjax.active.campaign import STOP, Campaign, RandomPolicy
from micjax.active.learner import Learner
from micjax.active.snapshot import Snapshots
from micjax.active.space import Axis as LearnerAxis
from micjax.active.space import Space
from micjax.instruments import Axis, Function, Guard, Journal, JournalError
from micjax.report.live import fill
from micjax.run.watch import Folder

ALONG = np.linspace(-1.0, 1.0, 21)
AXES = {"y": Axis("m", 0.0, 2e-6), "x": Axis("m", 0.0, 1e-6)}


def device(axes=AXES):
    def curve(**at):
        return np.exp(-((ALONG - 1e6 * sum(at.values()) / len(at)) ** 2))

    return Guard(Function(curve, axes, coords={"bias": (ALONG, "V")}, channel="current", unit="A"))


def measured(folder, points, axes=AXES, learns=True):
    """A campaign of so many points in a folder."""
    space = Space([LearnerAxis(n, a.lo, a.hi, a.unit) for n, a in axes.items()])
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


def test_profiles_where_there_is_no_map(tmp_path):
    axes = {"bias": Axis("V", 0.0, 1e-6)}
    measured(tmp_path, 4, axes)
    document, _ = drawn(tmp_path)
    (band,) = drawn_as(document, "band")
    assert np.all(band["lower"] <= band["median"]) and np.all(band["median"] <= band["upper"])


def test_a_folder_without_a_journal(tmp_path):
    with pytest.raises(JournalError, match="no journal"):
        Folder(tmp_path).look()


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
    watch = None
    try:
        wait_for(lambda: (tmp_path / "run" / "state.npz").exists())
        watch = subprocess.Popen(
            [*micjax, "watch", "run", "--port", str(port), "--no-browser"], cwd=tmp_path
        )
        wait_for(lambda: listens(port))
        with browser.page(f"http://127.0.0.1:{port}/", tmp_path / "profile") as page:
            where = page.until(BUTTON)
            page.screenshot(tmp_path / "page.png")
            assert (tmp_path / "page.png").stat().st_size > 30_000
            page.click(*where)
            assert explore.wait(120) == 130  # interrupted, not failed
            page.until(BUTTON.replace("Stop the instrument", "It is not running"))
        assert not (tmp_path / "run" / STOP).exists()
    finally:
        for process in filter(None, (explore, watch)):
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


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(true, seconds=120.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)
