"""Tango against a device in a process of its own."""

import builtins
import contextlib
import math
import pathlib
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from micjax.instruments import (
    Aborted,
    Axis,
    Guard,
    InstrumentError,
    LimitError,
    LinkError,
    Mode,
    MoveError,
    NotReady,
    Tango,
    check_instrument,
)

DEVICE = pathlib.Path(__file__).parent / "tango_device.py"
DEG = math.pi / 180.0
AXES = {
    "x": ("x", Axis("m", -1e-3, 8e-4, tol=1e-9), 1e-3),
    "tilt": ("Tilt", Axis("rad", -1.2, 1.6, tol=1e-6), DEG),
}
MODES = {
    "spectrum": ("spectrum", Mode("point", {"response": "V"})),
    "image": ("image", Mode("point", {"counts": ""})),
    "current": ("Current", Mode("point", {"current": "A"})),
    "exposed": (("Expose", "spectrum"), Mode("point", {"response": "V"}, seconds=1.0)),
}


@contextlib.contextmanager
def serving():
    """The name of a device, and the process it lives in."""
    pytest.importorskip("tango", reason="pip install 'micjax[tango]'")
    process = subprocess.Popen(
        [sys.executable, DEVICE],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield next(line.strip() for line in process.stderr if line.startswith("tango://")), process
    finally:
        process.communicate(timeout=30.0)


@pytest.fixture(scope="module")
def running():
    with serving() as (name, _):
        yield name


@pytest.fixture
def device(running):
    """A proxy of our own, of a device that is as at its beginning."""
    import tango

    proxy = tango.DeviceProxy(running)
    proxy.Init()
    proxy.set_attribute_config(_limits(proxy, "1.0"))
    return proxy


def _limits(proxy, hi):
    config = proxy.get_attribute_config("x")
    config.max_value = hi
    return config


def connected(name, axes=None, modes=None, **options):
    axes, modes = AXES if axes is None else axes, MODES if modes is None else modes
    return Tango(name, axes, modes, **{"timeout_s": 10.0} | options)


def faults(device, travel=0.0, offset=0.0, exposure=0.0, broken=0.0):
    device.faults = [travel, offset, exposure, broken]


def test_conformance(running, device):
    faults(device, travel=0.02, exposure=0.2)
    assert check_instrument(connected(running)) and check_instrument(Guard(connected(running)))


def test_it_waits_until_it_has_arrived_and_counts_in_SI(running, device):
    faults(device, travel=0.3)
    inst = connected(running)
    found = inst.move({"x": 5e-4, "tilt": -0.5})
    assert found == pytest.approx({"x": 5e-4, "tilt": -0.5}, rel=1e-12)
    assert list(device.seen) == [0.5] and device.tilt == pytest.approx(-0.5 / DEG)


def test_what_is_measured(running, device):
    inst = connected(running)
    inst.move({"x": 2.5e-4})
    spectrum = inst.acquire("spectrum")
    np.testing.assert_array_equal(spectrum.data["response"], 0.25 + np.arange(4.0))
    assert spectrum.units == {"response": "V"} and spectrum.at["x"] == pytest.approx(2.5e-4)
    image = inst.acquire("image")
    np.testing.assert_array_equal(image.data["counts"], np.arange(6.0).reshape(2, 3))
    assert image.dims == {"counts": ("axis0", "axis1")}
    assert float(inst.acquire("current").data["current"]) == 0.5
    faults(device, exposure=0.2)
    begun = time.monotonic()
    inst.acquire("exposed")
    assert time.monotonic() - begun > 0.15


def test_a_motor_that_does_not_arrive(running, device):
    faults(device, offset=-0.25)
    with pytest.raises(MoveError, match="x is at 0.00025 m, asked for 0.0005; 1e-09 m"):
        connected(running).move({"x": 5e-4})
    faults(device, travel=60.0)
    with pytest.raises(MoveError, match=r"is still MOVING after 0\.2 s"):
        connected(running, timeout_s=0.2).move({"x": 0.0})
    assert str(device.state()) == "ON"  # it was stopped
    faults(device, broken=1.0)
    with pytest.raises(MoveError, match="is in FAULT"):
        connected(running).move({"x": 5e-4})


def test_stop_ends_a_move_and_an_exposure(running, device):
    def is_at_rest(wanted):
        until = time.monotonic() + 30.0
        while (str(device.state()) == "ON") != wanted and time.monotonic() < until:
            time.sleep(0.01)
        return (str(device.state()) == "ON") == wanted

    faults(device, travel=60.0, exposure=60.0)
    inst = connected(running, timeout_s=40.0)
    for verb in (lambda: inst.move({"x": 8e-4}), lambda: inst.acquire("exposed")):
        thread = threading.Thread(target=lambda: is_at_rest(False) and inst.stop())
        thread.start()
        with pytest.raises(Aborted, match="was stopped"):
            verb()
        thread.join()
        assert is_at_rest(True)
    assert 0.0 < device.x < 0.8


def test_limits_of_the_device_are_the_widest(running, device):
    wide = {"x": ("x", Axis("m", -1e-3, 1.1e-3, tol=1e-9), 1e-3)}
    with pytest.raises(LimitError, match="x = 0.0011 m is outside -0.001 to 0.001 m, the limits"):
        connected(running, wide)
    backwards = {"x": ("x", Axis("m", -8e-4, 1e-3, tol=1e-9), -1e-3)}
    assert connected(running, backwards).move({"x": 9e-4})["x"] == pytest.approx(9e-4)
    assert list(device.seen) == pytest.approx([-0.9])


def test_what_the_device_refuses_later(running, device):
    inst = connected(running)
    device.set_attribute_config(_limits(device, "0.5"))  # by somebody else, at night
    with pytest.raises(LimitError, match="x 0.8: Set value for attribute x is above"):
        inst.move({"x": 8e-4})
    with pytest.raises(MoveError, match="is above .*; tilt had been sent before"):
        inst.move({"tilt": 0.1, "x": 8e-4})
    assert len(device.seen) == 0
    with pytest.raises(InstrumentError, match="the holder would touch"):
        inst.move({"tilt": 86.0 * DEG})
    with pytest.raises(NotReady, match="Tilt has no valid value"):
        inst.move({"tilt": 81.0 * DEG})


@pytest.mark.parametrize(
    ("axes", "modes", "options", "error", "message"),
    [
        ({"x": ("xx", AXES["x"][1], 1e-3)}, {}, {}, NotReady, "no attribute 'xx' .nearest: x"),
        ({"x": ("image", AXES["x"][1], 1e-3)}, {}, {}, NotReady, "image can only be read"),
        ({"x": ("x", AXES["x"][1], 0.0)}, {}, {}, ValueError, "cannot be 0.0 m"),
        ({"x": ("x", Axis("m", 0.0, 1e-3), 1e-3)}, {}, {}, ValueError, "axis x has no tol"),
        ({}, {"s": ("spectrm", Mode("point", {"s": "V"}))}, {}, NotReady, "or attribute 'spectrm'"),
        ({}, {"s": (("Expse", "x"), Mode("point", {"s": "mm"}))}, {}, NotReady, "nearest: Expose"),
        ({}, {"s": (("Expose", "y"), Mode("point", {"s": "mm"}))}, {}, NotReady, "no attribute"),
        ({}, {"s": ("spectrum", Mode("point", {"s": "A"}))}, {}, NotReady, "in V, not in A"),
        ({}, {"s": ("image", Mode("frame", {"s": ""}))}, {}, ValueError, "one channel at a point"),
        ({}, {}, {"stop": "Halt"}, NotReady, "no command 'Halt'"),
    ],
)
def test_what_it_has_not(running, device, axes, modes, options, error, message):
    with pytest.raises(error, match=message):
        connected(running, axes, modes, **options)


def test_a_device_without_stop_and_one_that_gives_no_numbers(running, device):
    modes = {"key": ("Key", Mode("point", {"key": ""}))}
    inst = connected(running, {}, modes, stop=None)
    inst.stop()
    with pytest.raises(InstrumentError, match="Key gave 'a key of.*numbers are wanted"):
        inst.acquire("key")


def test_nobody_is_there():
    with serving() as (name, process):
        inst = connected(name)
        process.kill()
        process.wait(30.0)
        with pytest.raises(LinkError, match="state of the device is unknown"):
            inst.read()
        with pytest.raises(LinkError):
            inst.move({"x": 0.0})
        inst.stop()
        with pytest.raises(LinkError):
            connected(name)


def test_without_pytango_it_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def absent(name, *rest):
        if name == "tango":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=r"pip install 'micjax\[tango\]'"):
        Tango("a/b/c", {}, {})


@pytest.mark.parametrize("count", [2000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_proposal_leaves_the_limits_and_none_is_clamped(running, device, count):
    """Proposals, in and out of range: all that the device was sent is within limits."""
    rng = np.random.default_rng(0)
    guard = Guard(connected(running), {"x": (-4e-4, 4e-4)})
    wanted = []
    for _ in range(count):
        point = {
            "x": float(rng.uniform(-6e-3, 6e-3)),
            "tilt": float(rng.uniform(-2.0, 1.3)),  # beyond 80 degrees it reads nothing
        }
        if rng.uniform() < 0.02:
            point["tilt"] = float(rng.choice([math.nan, math.inf, -math.inf]))
        try:
            guard.move(point)
            wanted.append(point["x"] / 1e-3)
        except LimitError:
            assert not (abs(point["x"]) <= 4e-4 and abs(point["tilt"] - 0.2) <= 1.4)
    assert list(device.seen) == wanted and len(wanted) > count / 40
    assert np.all(np.abs(wanted) <= 0.4)
