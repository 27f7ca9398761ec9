"""DTMicroscope against a twin with its signatures and its faults, here and behind Pyro."""

import contextlib
import math
import sys
import threading
import types

import numpy as np
import pytest

from micjax.instruments import (
    DTMicroscope,
    Frame,
    Guard,
    InstrumentError,
    LimitError,
    LinkError,
    NotReady,
    Replay,
    check_instrument,
)

NX, NY = 6, 4  # x before y, and not square
X, Y = np.linspace(-3e-6, 2e-6, NX), np.linspace(1e-6, 2.5e-6, NY)
HEIGHT = np.add.outer(100.0 * np.arange(NX), np.arange(NY)) * 1e-9  # [ix, iy]
PHASE = 7.0 - HEIGHT / 1e-9
BIAS = np.array([0.0, 1.0, 0.0, -1.0, 0.0])
LOOPS = HEIGHT[..., None] / 1e-9 + BIAS  # [ix, iy, bias]


class Twin:
    """What `AFM_Microscope` promises, and what it does; no line of it is of DTMicroscope.

    **Arguments:**

    - `kinds`: "image", "image map" (SPECTRAL_IMAGE) and "cloud" (POINT_CLOUD), as in the file.
    """

    def __init__(self, kinds=("image", "image", "image map")):
        images = iter([("Height", "m", HEIGHT), ("Phase", "deg", PHASE), ("Height", "m", -HEIGHT)])
        others = {"image map": ("Loop", "pm", LOOPS), "cloud": ("Response", "a.u.", None)}
        self.data = [(kind, *(next(images) if kind == "image" else others[kind])) for kind in kinds]
        self.scan_ar = [array for kind, _, _, array in self.data if kind == "image"]
        self.scan_ar = np.array(self.scan_ar) if self.scan_ar else []
        self.x_coords, self.y_coords, self.moves = X, Y, []
        self.x_min, self.x_max = float(X.min()), float(X.max())
        self.y_min, self.y_max = float(Y.min()), float(Y.max())
        self.x, self.y = X[NX // 2], Y[NY // 2]  # numbers of numpy
        self.scan_rate, self.sample_rate = 0.5, 2000

    def _of(self, kind):
        return [i for i, item in enumerate(self.data) if item[0] == kind]

    def get_dataset_info(self):
        return [
            ("channels", [f"Channel_{i:03d}" for i in range(len(self.data))]),
            ("signals", [item[1] for item in self.data]),
            ("units", [item[2] for item in self.data]),
            ("scans", self._of("image")),
            ("spectra", self._of("image map")),
            ("point_clouds", self._of("cloud")),
        ]

    def get_scan(
        self, channels=None, modification=None, scan_rate=None, trace="forward", direction=None
    ):
        if channels is None:
            return self.scan_ar  # whatever else was asked for
        if not isinstance(channels, list):
            raise TypeError("channels must be either None or a list of channel names")
        keys = {f"Channel_{i:03d}": i for i in self._of("image")}
        keys = {self.data[i][1]: i for i in reversed(keys.values())} | keys
        found = [keys[name] for name in channels if name in keys]  # others are dropped
        scan = self.scan_ar[found]  # a place among all data, taken for one in the stack
        return scan if modification is None else self._modified(scan, modification)

    def _modified(self, scan, modification):
        first = modification[0]  # and no other
        if first["effect"] not in ("real_tip", "tip_doubling", "real_PID"):
            raise ValueError(f"The effect {first['effect']} is not supported.")
        first["kwargs"]["scan_rate"] = float(first["kwargs"].get("scan_rate", self.scan_rate))
        return scan + first["kwargs"]["r_tip"]

    def scan_individual_line(
        self, direction="horizontal", trace="forward", coord=0, channels=None, modification=None
    ):
        scan = self.get_scan(channels)
        if direction == "horizontal":
            return scan[:, np.argmin(np.abs(self.y_coords - coord)), :]
        return scan[:, :, np.argmin(np.abs(self.x_coords - coord))]

    def go_to(self, x, y):
        self.moves.append((x, y))
        self.x = max(self.x_coords.min(), min(x, self.x_coords.max()))
        self.y = max(self.y_coords.min(), min(y, self.y_coords.max()))
        return True

    def get_spectrum(self, location=None, channel=None):
        place = np.array((self.x, self.y) if location is None else location)
        if self._of("cloud"):  # one channel at half the frequency of the other
            return BIAS, np.stack([place[0] * BIAS, place[1] * BIAS])
        x, y = np.meshgrid(self.x_coords, self.y_coords)
        points = np.stack([x.ravel(), y.ravel()], axis=1)
        number = np.argmin(np.sum((points - place) ** 2, axis=1))
        return BIAS, LOOPS[number // NY, number % NY]


def plain(value):
    """What arrives at the other end of Pyro."""
    if isinstance(value, dict):
        return {plain(n): plain(v) for n, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(v) for v in value)
    if type(value) not in (int, float, str, bool, type(None)):
        raise ValueError("malformed node or string")
    return value


def sent(array):
    return array.tolist(), array.shape, str(array.dtype)


class Server:
    """What it exposes: no coordinates, no place of a spectrum."""

    def initialize_microscope(self, microscope="dummy", data_path="dset_spm1.h5"):
        if data_path == "absent.h5":
            raise FileNotFoundError(data_path)
        self.twin = Twin()

    def setup_microscope(self, data_source="Compound_Dataset_1", dset_subset=None):
        self.ready = True

    def get_dataset_info(self):
        return self.twin.get_dataset_info()

    def get_scan(self, channels=None, modification=None, scan_rate=None):
        return sent(self.twin.get_scan(channels, modification, scan_rate))

    def get_spectrum(self):
        swept, values = self.twin.get_spectrum()
        return sent(swept), sent(values)

    def go_to(self, x, y):
        self.twin.go_to(x, y)


for name in ("x", "y", "x_min", "x_max", "y_min", "y_max"):
    setattr(Server, name, property(lambda self, name=name: getattr(self.twin, name)))


class PyroError(Exception):
    pass


class Proxy:
    """A connection of Pyro: for one thread, with a server of its own, and plain values."""

    def __init__(self, address):
        self._server, self._owner = Server(), threading.get_ident()
        self._nobody = "nobody" in address

    def _pyroClaimOwnership(self):
        self._owner = threading.get_ident()

    def _pyroRelease(self):
        self._server = None

    def __getattr__(self, name):
        if self._owner != threading.get_ident():
            raise PyroError("the calling thread is not the owner of this proxy")
        if self._nobody or self._server is None:
            raise PyroError("cannot connect" if self._nobody else "connection closed")
        found = getattr(self._server, name)
        if not callable(found):
            return plain(found)
        return lambda *args, **kwargs: plain(found(*plain(args), **plain(kwargs)))


@pytest.fixture
def pyro(monkeypatch):
    modules = {name: types.ModuleType(name) for name in ("Pyro5", "Pyro5.api", "Pyro5.errors")}
    modules["Pyro5.api"].Proxy, modules["Pyro5.errors"].PyroError = Proxy, PyroError
    modules["Pyro5"].api, modules["Pyro5"].errors = modules["Pyro5.api"], modules["Pyro5.errors"]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


@contextlib.contextmanager
def really():
    """A server behind the Pyro that is installed."""
    api = pytest.importorskip("Pyro5.api", reason="pip install Pyro5")
    with api.Daemon(host="127.0.0.1", port=0) as daemon:
        address = str(daemon.register(api.expose(Server), "microscope.server"))
        thread = threading.Thread(target=daemon.requestLoop)
        thread.start()
        yield address
        daemon.shutdown()
        thread.join()


@pytest.fixture(params=["here", "pyro", "real pyro"])
def make(request):
    """Makes an instrument, wherever the twin is."""
    with contextlib.ExitStack() as stack:
        if request.param == "real pyro":
            address = stack.enter_context(really())
        elif request.param == "pyro":
            request.getfixturevalue("pyro")
            address = "PYRO:microscope.server@localhost:9092"

        def made(**options):
            if request.param == "here":
                return DTMicroscope(Twin(), **options)
            inst = DTMicroscope(address, data_path="dset.h5", **options)
            return stack.enter_context(inst)

        yield made


SIZE = (0.9999 * 5e-6 * NX / (NX - 1), 0.9999 * 1.5e-6 * NY / (NY - 1))
WHOLE = Frame((X.mean(), Y.mean()), SIZE, (NY, NX))


def test_conformance(make):
    inst = make()
    assert check_instrument(inst) and check_instrument(Guard(inst))


def test_images_are_rows_of_y(make):
    inst = make()
    record = inst.acquire("image", WHOLE)
    np.testing.assert_array_equal(record.data["Height"], HEIGHT.T)
    np.testing.assert_array_equal(record.data["Phase"], PHASE.T)
    assert record.units == {"Height": "m", "Phase": "deg"}
    np.testing.assert_allclose(record.coords["x"][0], X, atol=1e-9)


def test_lines_run_along_what_they_are_said_to(make):
    along_x = np.stack([X, np.full(NX, Y[2])], axis=1)
    line = make().acquire("line", along_x).data["Height"]
    np.testing.assert_array_equal(line, HEIGHT[:, 2])
    theirs = Twin().scan_individual_line("horizontal", coord=Y[2], channels=["Height"])
    assert theirs.shape != line[None].shape  # a line of constant x


def test_every_spectrum_is_that_of_its_pixel(make):
    inst = make(swept=("bias", "V"))
    for ix in range(NX):
        for iy in range(NY):
            place = {"x": float(X[ix]), "y": float(Y[iy]) + (1e-8 if iy < NY - 1 else 0.0)}
            arrived = inst.move(place)
            record = inst.acquire("spectrum")
            np.testing.assert_array_equal(record.data["Loop"], LOOPS[ix, iy])
            assert record.at == pytest.approx({"x": X[ix], "y": Y[iy]}, rel=1e-12)
            assert inst.read() == arrived  # it is back from its detour
            assert float(inst.acquire("pixel").data["Height"]) == HEIGHT[ix, iy]
    assert record.coords["bias"][1] == "V" and record.units == {"Loop": "pm"}
    np.testing.assert_array_equal(record.coords["bias"][0], BIAS)


def test_a_cloud_is_asked_where_the_tip_is():
    twin = Twin(("image", "cloud"))
    inst = DTMicroscope(twin)
    inst.move({"x": -2e-6, "y": 2e-6})
    record = inst.acquire("spectrum")
    np.testing.assert_array_equal(record.data["Response"], np.outer([-2e-6, 2e-6], BIAS))
    assert record.dims == {"Response": ("axis0", "swept")}


def test_channels_are_what_they_are_called():
    twin = Twin(("image map", "image", "image", "image"))
    record = DTMicroscope(twin).acquire("image", WHOLE)
    np.testing.assert_array_equal(record.data["Height"], HEIGHT.T)
    np.testing.assert_array_equal(record.data["Height #2"], -HEIGHT.T)
    only = DTMicroscope(twin, channels=["Phase"]).acquire("image", WHOLE)
    assert list(only.data) == ["Phase"]
    np.testing.assert_array_equal(only.data["Phase"], PHASE.T)
    np.testing.assert_array_equal(twin.get_scan(["Phase"])[0], -HEIGHT)  # what it would give
    with pytest.raises(NotReady, match="no channel 'Heigth' .*; there are Height, Phase"):
        DTMicroscope(twin, channels=["Heigth"])
    with pytest.raises(NotReady, match="other data stand before the images"):
        DTMicroscope(twin, artefact=("real_tip", {"r_tip": 0.1}))


def test_artefacts(make):
    settings = {"r_tip": np.float64(0.25), "center": (0.5, np.array([0.5]))}
    inst = make(channels=["Height"], artefact=("real_tip", settings))
    np.testing.assert_array_equal(inst.acquire("image", WHOLE).data["Height"], HEIGHT.T + 0.25)
    assert set(settings) == {"r_tip", "center"}
    with pytest.raises(InstrumentError, match="get_scan: ValueError.*blur is not supported"):
        make(artefact=("blur", {}))


def test_what_is_out_of_range_goes_nowhere():
    twin = Twin()
    inst = DTMicroscope(twin)
    with pytest.raises(LimitError, match="x = 3e-06 m is outside -3e-06 to 2e-06 m"):
        inst.move({"x": 3e-6})
    assert twin.moves == []


def test_the_ends_can_be_reached(make):
    inst = make()
    for target in ({"x": X[0], "y": Y[0]}, {"x": X[-1], "y": Y[-1]}):
        assert inst.move(target) == pytest.approx(target, rel=1e-12)


def test_dropped_coordinates_and_no_images_are_told():
    twin = Twin()
    twin.x_min, twin.x_max = 0.0, 1.0
    with pytest.raises(NotReady, match="dropped the coordinates"):
        DTMicroscope(twin)
    with pytest.raises(NotReady, match="the twin has no image"):
        DTMicroscope(Twin(("image map",)))


def test_links_that_fail(pyro):
    with pytest.raises(LinkError, match="cannot connect"):
        DTMicroscope("PYRO:nobody@localhost:1", data_path="dset.h5")
    with pytest.raises(ValueError, match="data_path, the file that it opens, is wanted"):
        DTMicroscope("PYRO:microscope.server@localhost:9092")
    with pytest.raises(InstrumentError, match="initialize_microscope: FileNotFound.*absent.h5"):
        DTMicroscope("PYRO:microscope.server@localhost:9092", data_path="absent.h5")
    inst = DTMicroscope("PYRO:microscope.server@localhost:9092", data_path="dset.h5")
    inst.close()
    with pytest.raises(LinkError, match="x: connection closed; the state of the twin is unknown"):
        inst.read()
    inst.stop()


def test_without_pyro_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "Pyro5", None)
    with pytest.raises(ImportError, match="wants Pyro5: pip install Pyro5"):
        DTMicroscope("PYRO:microscope.server@localhost:9092", data_path="dset.h5")


@pytest.mark.parametrize("count", [2000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_proposal_leaves_the_limits_and_none_is_clamped(count):
    """Proposals, in and out of range: all that the twin was sent is within limits."""
    twin, rng = Twin(), np.random.default_rng(0)
    guard = Guard(DTMicroscope(twin), {"x": (-1e-6, 1e-6)})
    wanted = []
    for _ in range(count):
        point = {n: float(rng.uniform(-4e-6, 4e-6)) for n in ("x", "y")}
        if rng.uniform() < 0.02:
            point["y"] = float(rng.choice([math.nan, math.inf, -math.inf]))
        try:
            guard.move(point)
            wanted.append((point["x"], point["y"]))
        except LimitError:
            assert not (abs(point["x"]) <= 1e-6 and 1e-6 <= point["y"] <= 2.5e-6)
    assert twin.moves == wanted and len(wanted) > count / 40
    assert isinstance(guard.instrument, Replay)
