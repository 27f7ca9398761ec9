"""Temscript against the server of temscript itself, and against one with every fault."""

import contextlib
import http.server
import json
import math
import threading
import time

import numpy as np
import pytest

from micjax.instruments import (
    Aborted,
    Axis,
    Guard,
    LimitError,
    LinkError,
    MoveError,
    NotReady,
    Temscript,
    check_instrument,
)

OPTICS = {
    "beam_shift_x": Axis("m", -1e-6, 1e-6, tol=1e-12),
    "beam_shift_y": Axis("m", -2e-6, 2e-6, tol=1e-12),
    "probe_defocus": Axis("m", -5e-6, 5e-6, tol=1e-12),
}
STAGE = {"x": 1e-9, "y": 1e-9, "alpha": 1e-6}


@contextlib.contextmanager
def serving(server):
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def microscope():
    """A microscope of temscript with a picture that is not square, and a stage that remembers."""
    pytest.importorskip("temscript", reason="the server is temscript's own")
    from temscript import NullMicroscope

    class Microscope(NullMicroscope):
        def __init__(self):
            super().__init__()
            self.exposure_s, self.sent, self.statuses, self.reach = 0.0, [], [], 1.0
            self.busy = threading.Event()
            self.picture = np.arange(15, dtype=">i2").reshape(3, 5)

        def acquire(self, *names):
            self.busy.set()
            time.sleep(self.exposure_s)
            return dict.fromkeys({"CCD"} & set(names), self.picture)

        def _set_stage_position(self, pos=None, method="GO", speed=None):
            self.sent.append(dict(pos))
            ends = {n: self.reach * hi for n, (_, hi) in self.get_stage_limits().items()}
            pos = {n: float(np.clip(v, -ends[n], ends[n])) for n, v in pos.items()}
            super()._set_stage_position(pos, method, speed)

        def get_stage_status(self):
            self.busy.set()
            return self.statuses.pop(0) if self.statuses else super().get_stage_status()

    return Microscope()


@pytest.fixture
def url(microscope):
    from temscript.server import MicroscopeHandler, MicroscopeServer

    class Quiet(MicroscopeHandler):
        def log_message(self, *_):
            pass

    server = MicroscopeServer(("127.0.0.1", 0), lambda: microscope)
    server.RequestHandlerClass = Quiet
    with serving(server) as url:
        yield url


@contextlib.contextmanager
def stopped_when_busy(microscope, inst):
    microscope.busy.clear()
    thread = threading.Thread(target=lambda: microscope.busy.wait(30.0) and inst.stop())
    thread.start()
    yield
    thread.join()


def connected(url, **options):
    options = {"stage": STAGE, "optics": OPTICS, "detectors": {"CCD": 0.01}} | options
    return Temscript(url, **options)


def test_conformance(url, microscope):
    assert check_instrument(connected(url))
    microscope.set_beam_blanked(False)
    assert check_instrument(Guard(connected(url)))


def test_all_axes_of_the_stage_have_its_limits(url):
    axes = Temscript(url).axes
    assert {n: (a.unit, a.lo, a.hi) for n, a in axes.items()} == {
        "x": ("m", -1e-3, 1e-3),
        "y": ("m", -1e-3, 1e-3),
        "z": ("m", -3e-4, 3e-4),
        "alpha": ("rad", -math.pi / 6, math.pi / 6),
        "beta": ("rad", -math.pi / 6, math.pi / 6),
    }


def test_one_of_a_pair_leaves_the_other(url, microscope):
    microscope.set_beam_shift((1e-7, 2e-7))
    inst = connected(url)
    inst.move({"beam_shift_y": -5e-7, "alpha": 0.1, "x": 2e-4})
    assert microscope.get_beam_shift() == (1e-7, -5e-7)
    assert microscope.sent == [{"a": 0.1, "x": 2e-4}]  # in one way, and nothing else
    alone = connected(url, stage={}, optics={"beam_shift_y": OPTICS["beam_shift_y"]})
    assert alone.move({"beam_shift_y": 3e-7}) == {"beam_shift_y": 3e-7}
    assert microscope.get_beam_shift() == (1e-7, 3e-7)


@pytest.mark.parametrize("dtype", [">i2", "<u2", "f4", "u1"])
def test_an_image_is_rows_and_columns(url, microscope, dtype):
    microscope.picture = (7 * np.arange(15)).astype(dtype).reshape(3, 5)
    inst = connected(url)
    inst.move({"x": 3e-4})
    record = inst.acquire("CCD")
    np.testing.assert_array_equal(record.data["CCD"], 7 * np.arange(15).reshape(3, 5))
    assert record.dims == {"CCD": ("row", "column")} and record.coords["column"][1] == "px"
    assert record.at["x"] == 3e-4
    assert record.meta["camera_param/CCD"]["exposure(s)"] == 1.0


def test_a_stage_that_clamps_in_silence(url, microscope):
    microscope.reach = 0.5
    with pytest.raises(MoveError, match="x is at 0.0005 m, asked for 0.0008"):
        connected(url).move({"x": 8e-4})
    with pytest.raises(LimitError, match="x = 0.002 m is outside -0.001 to 0.001 m"):
        connected(url).move({"x": 2e-3})


def test_it_waits_until_the_stage_rests(url, microscope):
    microscope.statuses = ["MOVING", "GOING", "READY"]
    assert connected(url).move({"x": 1e-4})["x"] == 1e-4 and not microscope.statuses
    microscope.statuses = ["MOVING"] * 1000
    inst = connected(url)
    inst._timeout_s = 0.2
    with pytest.raises(MoveError, match=r"still MOVING after 0\.2 s"):
        inst.move({"x": 0.0})
    inst = connected(url)
    busy = stopped_when_busy(microscope, inst)
    with busy, pytest.raises(Aborted, match="cannot be halted"):
        inst.move({"x": 0.0})


def test_stop_blanks_the_beam_until_it_is_unblanked(url, microscope):
    microscope.exposure_s = 0.5
    inst = connected(url)
    with stopped_when_busy(microscope, inst), pytest.raises(Aborted):
        inst.acquire("CCD")
    inst.stop()
    assert microscope.get_beam_blanked()
    with pytest.raises(NotReady, match=r"the beam is blanked; unblank\(\) it"):
        inst.acquire("CCD")
    inst.unblank()
    assert inst.acquire("CCD").data["CCD"].shape == (3, 5)


def test_a_stop_that_got_no_answer_is_obeyed_after_the_exposure(url, microscope, monkeypatch):
    monkeypatch.setattr("micjax.instruments.adapters.temscript.STOP_S", 0.05)
    microscope.exposure_s = 0.5
    inst = connected(url)
    with stopped_when_busy(microscope, inst), pytest.raises(Aborted):
        inst.acquire("CCD")
    inst.read()  # waits its turn behind the stop
    assert microscope.get_beam_blanked()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": {"X": 1.0}}, "no axis 'X'; there are x, y, z, alpha, beta"),
        ({"optics": {"defocsu": OPTICS["probe_defocus"]}}, "nearest: .*defocus"),
        ({"detectors": {"HAADF": 1.0}}, "no detector 'HAADF'; there are CCD"),
    ],
)
def test_what_it_has_not(url, options, message):
    with pytest.raises(NotReady, match=message):
        connected(url, **options)


def test_bad_input(url):
    for bad in ("https://127.0.0.1", "127.0.0.1:8080", "http://127.0.0.1/v1/stage"):
        with pytest.raises(ValueError, match="an address such as"):
            Temscript(bad)
    with pytest.raises(ValueError, match="axis defocus has no tol"):
        Temscript(url, optics={"defocus": Axis("", -1.0, 1.0)})


@pytest.mark.parametrize("count", [2000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_proposal_leaves_the_limits_and_none_is_clamped(url, microscope, count):
    """Proposals, in and out of range: all that the stage was sent is within limits."""
    rng = np.random.default_rng(0)
    guard = Guard(connected(url, optics={}, detectors={}), {"x": (-4e-4, 4e-4)})
    wanted = []
    for _ in range(count):
        point = {n: float(rng.uniform(-3e-3, 3e-3)) for n in ("x", "y")}
        if rng.uniform() < 0.02:
            point["y"] = float(rng.choice([math.nan, math.inf, -math.inf]))
        try:
            guard.move(point)
            wanted.append(point)
        except LimitError:
            assert not (abs(point["x"]) <= 4e-4 and abs(point["y"]) <= 1e-3)
    assert microscope.sent == wanted and len(wanted) > count / 40
    assert np.all(np.abs([list(p.values()) for p in wanted]) <= [4e-4, 1e-3])


# --- a link that fails ----------------------------------------------------------------------------

ANSWERS = {
    "stage_limits": {"x": [-1e-3, 1e-3]},
    "stage_position": {"x": 0.0},
    "stage_status": "READY",
    "cameras": {"CCD": {}},
    "camera_param/CCD": {},
    "beam_blanked": False,
}


class Faulty(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(ANSWERS.get(self.path[4:])).encode()
        fault = self.server.faults.get(self.path[4:].split("?")[0])
        if isinstance(fault, int):
            return self.send_error(fault, "the column is on fire")
        if fault == "drop":
            return None
        if fault == "hang":
            return self.server.closing.wait()
        size = len(body)
        if fault == "half":
            body = body[: size // 2]
        elif fault == "short":
            body = body[: size // 2]
            size = len(body)
        elif fault is not None:
            body = json.dumps(fault).encode()
            size = len(body)
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self):
        self.server.put.append(self.path)
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def faulty():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
    server.daemon_threads = True
    server.faults, server.put, server.closing = {}, [], threading.Event()
    with serving(server) as url:
        yield server, Temscript(url, stage={"x": 1e-9}, detectors={"CCD": 0.0})
        server.closing.set()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (500, "HTTP 500 the column is on fire"),
        (404, "HTTP 404"),
        ("half", "IncompleteRead"),
        ("short", "Unterminated string|Expecting"),
        ("hang", "timed out"),
        ("drop", "closed connection|reset"),
        ({"y": 0.0}, r"answered \{'y': 0.0\}"),
        ({"x": None}, r"answered \{'x': None\}"),
        ([], r"answered \[\]"),
    ],
)
def test_a_link_that_fails_is_told_and_not_remembered(faulty, fault, message, monkeypatch):
    server, inst = faulty
    server.faults = {"stage_position": fault}
    if fault == "hang":
        monkeypatch.setattr(inst, "_timeout_s", 0.2)
    with pytest.raises(LinkError, match=f"GET stage_position: .*({message}).*is unknown"):
        inst.read()
    if not isinstance(fault, dict | list):
        with pytest.raises(LinkError, match=f"PUT stage_position: .*({message}).*is unknown"):
            inst.move({"x": 1e-4})
    server.faults = {}
    monkeypatch.undo()
    assert inst.read() == {"x": 0.0}


@pytest.mark.parametrize(
    "image",
    [
        {},
        {"CCD": None},
        {"CCD": {"endianness": "LITTLE", "type": "INT16", "data": "AA", "width": 1, "height": 1}},
        {"CCD": {"endianness": "LITTLE", "type": "INT16", "data": "AAA=", "width": 2, "height": 1}},
        {"CCD": {"endianness": "BIG", "type": "INT16", "data": "AA!A=", "width": 1, "height": 1}},
        {"CCD": {"endianness": "BIG", "type": "NONE", "data": "AAA=", "width": 1, "height": 1}},
    ],
)
def test_half_an_image_is_none(faulty, image):
    server, inst = faulty
    server.faults = {"acquire": image}
    with pytest.raises(LinkError, match="GET acquire of CCD: no image came back"):
        inst.acquire("CCD")


def test_a_stop_never_raises(faulty):
    server, inst = faulty
    for fault in (500, "drop", "half"):
        server.faults = {"beam_blanked": fault}
        inst.stop()
    assert server.put == ["/v1/beam_blanked"] * 3


def test_nobody_is_there(faulty):
    server, _ = faulty
    url = f"http://127.0.0.1:{server.server_port}"
    inst = Temscript(url, stage={"x": 1e-9})
    server.shutdown()
    server.server_close()
    with pytest.raises(LinkError, match="refused.*is unknown"):
        inst.read()
    inst.stop()


def test_a_time_out_is_for_all_of_an_answer():
    """Each part comes in time, and the whole does not."""

    class Trickling(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps({n: [-1.0, 1.0] for n in "xyzab"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):
                for byte in body:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(0.1)

        def log_message(self, *_):
            pass

    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Trickling)) as url:
        begun = time.monotonic()
        with pytest.raises(LinkError, match="timed out"):
            Temscript(url, stage={"x": 1e-9}, timeout_s=0.4)
        assert time.monotonic() - begun < 3.0
