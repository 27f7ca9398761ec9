"""The protocol, the guard, and the adapters that need no instrument."""

import dataclasses
import math
import signal
import threading
import time

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from micjax.instruments import (
    Aborted,
    Axis,
    BudgetError,
    ConformanceError,
    Frame,
    Function,
    Guard,
    LimitError,
    LinkError,
    Mode,
    MoveError,
    NotReady,
    Record,
    Replay,
    Simulated,
    check_instrument,
)
from micjax.io import Field, FieldAxis
from micjax.problems import resonance


def fields():
    """A sloping image, not square, its y going down, and a loop at each of its pixels."""
    y = FieldAxis("y", np.linspace(900.0, 100.0, 5), "nm")
    x = FieldAxis("x", np.linspace(0.0, 1200.0, 7), "nm")
    bias = FieldAxis("bias", np.array([0.0, 1.0, 0.0, -1.0]), "V")
    height = np.add.outer(10.0 * y.values, x.values)
    loops = height[..., None] + bias.values
    return [
        Field(height, (y, x), "m", "height"),
        Field(loops, (y, x, bias), "V", "loop"),
    ]


def one_dimensional():
    return Field(np.zeros(3), (FieldAxis("x", np.arange(3.0), "nm"),), "m", "profile")


def replay():
    return Replay(fields(), rate=1e-6, seconds=0.1)


def called():
    axes = {"x": Axis("m", 0.0, 1e-6), "bias": Axis("V", -1.0, 2.0)}
    return Function(lambda x, bias: 1e-9 * bias * math.exp(-x / 1e-6), axes, unit="A")


def simulated():
    axes = {"frequency": Axis("Hz", 300e3, 420e3)}
    return Simulated(
        resonance.problem(f0_kHz=350.0),
        axes,
        jax.random.key(0),
        reads=lambda at: jax.numpy.array([at["frequency"] / 1e3]),
        channel="response",
        unit="V",
    )


ADAPTERS = {
    "replay": replay,
    "simulated": simulated,
    "function": called,
    "guarded replay": lambda: Guard(replay()),
    "guarded twin": lambda: Guard(simulated(), seconds=10.0),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_conformance(name):
    found = check_instrument(ADAPTERS[name]())
    assert len(found.rows) == 9 and all(f == "" or "skipped" in f for _, f in found.rows)


# --- the kit finds what is wrong ------------------------------------------------------------------


class Wrong(Replay):
    def __init__(self):
        super().__init__(fields())


class Clamping(Wrong):
    def move(self, target):
        ends = {n: (a.lo, a.hi) for n, a in self.axes.items()}
        return super().move({n: float(np.clip(v, *ends[n])) for n, v in target.items()})


class Swapped(Wrong):
    def move(self, target):
        return super().move({{"x": "y", "y": "x"}[n]: v for n, v in target.items()})


class Transposed(Wrong):
    def acquire(self, mode, over=None):
        record = super().acquire(mode, over)
        if mode != "image":
            return record
        data = {n: v.T for n, v in record.data.items()}
        return dataclasses.replace(record, data=data, coords={})


class Deaf(Wrong):
    def acquire(self, mode, over=None):
        time.sleep(0.3)
        return super().acquire(mode, over)


class Reusing(Wrong):
    def __init__(self):
        super().__init__()
        self.buffer = np.zeros(())

    def acquire(self, mode, over=None):
        record = super().acquire(mode, over)
        if mode != "pixel":
            return record
        self.buffer[...] += 1.0
        return dataclasses.replace(record, data={"height": self.buffer})


class InNanometres(Wrong):
    def __init__(self):
        super().__init__()
        self.axes = {n: dataclasses.replace(a, unit="nm") for n, a in self.axes.items()}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Clamping, "was not refused"),
        (Swapped, "arrives where it was sent: "),
        (Transposed, r"is \(5, 3\) for a frame of \(3, 5\)"),
        (Reusing, "a second measurement changed the first record"),
        (InNanometres, "axes in"),
    ],
)
def test_the_kit_finds(kind, message):
    with pytest.raises(ConformanceError, match=message):
        check_instrument(kind())


def test_the_kit_finds_who_does_not_stop(monkeypatch):
    monkeypatch.setattr("micjax.instruments.conformance.STOPPED_WITHIN_S", 0.1)
    with pytest.raises(ConformanceError, match="went on for 0.1 s"):
        check_instrument(Deaf())


def test_the_kit_finds_what_is_no_instrument():
    with pytest.raises(ConformanceError, match="has no axes, modes, read, move, acquire, stop"):
        check_instrument(object())


# --- guard ----------------------------------------------------------------------------------------


class Watched(Replay):
    """Remembers where it was sent."""

    def __init__(self):
        super().__init__(fields(), seconds=1.0)
        self.sent = []

    def move(self, target):
        self.sent.append(dict(target))
        return super().move(target)


LIMITS = {"x": (0.2e-6, 1.0e-6)}
ANY = st.floats(-3e-6, 3e-6) | st.floats(allow_nan=True, allow_infinity=True)


@settings(
    max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(st.sampled_from(["x", "y", "z"]), ANY, min_size=1))
def test_no_proposal_leaves_the_limits_and_none_is_clamped(proposal):
    inner = Watched()
    guard = Guard(inner, LIMITS)
    inside = all(
        n in guard.axes and guard.axes[n].lo <= v <= guard.axes[n].hi for n, v in proposal.items()
    )
    if inside:
        arrived = guard.move(proposal)
        assert {n: arrived[n] for n in proposal} == proposal
        assert inner.sent == [proposal]
    else:
        with pytest.raises(LimitError):
            guard.move(proposal)
        assert inner.sent == []


@pytest.mark.parametrize("make", [lambda: Replay(fields()), simulated, called])
@pytest.mark.parametrize("count", [2000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_proposals(make, count):
    inner, sent = make(), []
    move = inner.move
    inner.move = lambda target: (sent.append(dict(target)), move(target))[1]
    first, *_ = inner.axes
    lo, hi = inner.axes[first].lo, inner.axes[first].hi
    guard = Guard(inner, {first: (lo, lo + 0.8 * (hi - lo))})
    rng, arrived = np.random.default_rng(0), 0
    for _ in range(count):
        proposal = {
            n: float(a.lo + rng.uniform(-0.5, 1.5) * (a.hi - a.lo)) for n, a in inner.axes.items()
        }
        if rng.random() < 0.05:
            proposal[first] = float(rng.choice([np.nan, np.inf, -np.inf]))
        sent.clear()
        if all(guard.axes[n].lo <= v <= guard.axes[n].hi for n, v in proposal.items()):
            assert guard.move(proposal) == proposal and sent == [proposal]
            arrived += 1
        else:
            with pytest.raises(LimitError):
                guard.move(proposal)
            assert sent == []
    assert 0.1 * count < arrived < 0.9 * count


def test_limits_only_narrow():
    with pytest.raises(LimitError, match="do not lie within"):
        Guard(replay(), {"x": (0.0, 2e-6)})
    with pytest.raises(LimitError, match="no axis 'X'; there are x, y"):
        Guard(replay(), {"X": (0.0, 1e-6)})


def test_frames_are_checked_at_all_corners_and_pixels():
    guard = Guard(
        replay(), LIMITS, forbidden=lambda p: math.hypot(p["x"] - 5e-7, p["y"] - 5e-7) < 1e-7
    )
    turned = Frame((0.6e-6, 0.5e-6), (0.75e-6, 0.3e-6), (4, 8), angle=0.0)
    with pytest.raises(LimitError, match="forbidden region"):
        guard.acquire("image", turned)
    wide = dataclasses.replace(turned, size=(1.2e-6, 0.3e-6))
    with pytest.raises(LimitError, match="x = .* is outside"):
        guard.acquire("image", wide)
    beside = Frame((0.8e-6, 0.2e-6), (0.2e-6, 0.1e-6), (2, 3))
    assert guard.acquire("image", beside).data["height"].shape == (2, 3)


def test_forbidden_regions_are_not_crossed_in_ramps():
    inner = Watched()
    inner.axes = {n: dataclasses.replace(a, max_step=1e-7) for n, a in inner.axes.items()}
    guard = Guard(inner, forbidden=lambda p: 0.85e-6 < p["x"] < 0.95e-6)
    before = guard.read()
    with pytest.raises(LimitError, match="forbidden"):
        guard.move({"x": 1.1e-6})
    assert inner.sent == [] and guard.read() == before
    guard.move({"x": 0.3e-6})
    steps = np.abs(np.diff([before["x"], *(s["x"] for s in inner.sent)]))
    assert len(steps) == 3 and np.all(steps <= 1e-7 * (1 + 1e-9))


def test_a_large_step_does_not_jump_over_a_forbidden_region():
    inner = Watched()
    guard = Guard(inner, forbidden=lambda p: 0.85e-6 < p["x"] < 0.95e-6)
    with pytest.raises(LimitError, match="forbidden"):
        guard.move({"x": 1.1e-6})
    across = np.array([[0.7e-6, 5e-7], [1.1e-6, 5e-7]])
    with pytest.raises(LimitError, match="forbidden"):
        guard.acquire("line", across)
    assert inner.sent == [] and guard.acquire("line", across[:1])


def test_who_stands_in_a_forbidden_region_may_leave_it():
    inner = Watched()
    guard = Guard(inner, forbidden=lambda p: p["x"] > 0.5e-6)  # it begins at 0.6
    with pytest.raises(LimitError, match="forbidden"):
        guard.move({"x": 0.55e-6})
    assert guard.move({"x": 0.2e-6})["x"] == 0.2e-6


def test_an_interrupt_of_a_move_stops_it():
    class Interrupted(Slow):
        def move(self, target):
            raise KeyboardInterrupt

    slow = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        Guard(slow).move({"x": 1e-6})
    assert slow.ended.is_set()


@pytest.mark.parametrize("bad", [-1.0, 0.0, math.nan])
@pytest.mark.parametrize("name", ["seconds", "dose", "patience"])
def test_budgets_are_positive(name, bad):
    with pytest.raises(ValueError, match=f"{name} = .*must be positive"):
        Guard(replay(), **{name: bad})


def test_arrival_is_checked_by_the_readback():
    class Stuck(Watched):
        def move(self, target):
            return self.read()

    stuck = Stuck()
    stuck.axes = {n: dataclasses.replace(a, tol=1e-9) for n, a in stuck.axes.items()}
    with pytest.raises(MoveError, match="x is at 6e-07 m, asked for 1e-06"):
        Guard(stuck).move({"x": 1e-6})


def test_where_it_stands_has_to_be_known():
    class Lost(Watched):
        def read(self):
            return {"x": math.nan, "y": 0.0}

    with pytest.raises(NotReady, match="x reads nan"):
        Guard(Lost()).move({"x": 1e-6})


def test_budgets():
    guard = Guard(Watched(), seconds=2.5)
    guard.acquire("pixel")
    guard.acquire("pixel")
    assert guard.left[0] == pytest.approx(0.5)
    with pytest.raises(BudgetError, match=r"pixel takes 1 s; 0\.5 s are left"):
        guard.acquire("pixel")


class Slow(Watched):
    """A measurement that lasts until it is stopped, or for ten seconds."""

    def __init__(self):
        super().__init__()
        self.ended = threading.Event()

    def acquire(self, mode, over=None):
        self.ended.wait(10.0)
        return super().acquire(mode, over)

    def stop(self):
        self.ended.set()


def test_stop_from_another_thread_aborts_and_latches():
    guard = Guard(Slow())
    threading.Timer(0.1, guard.stop).start()
    begun = time.perf_counter()
    with pytest.raises(Aborted):
        guard.acquire("pixel")
    assert time.perf_counter() - begun < 5.0
    with pytest.raises(Aborted, match="resume"):
        guard.move({"x": 1e-6})
    guard.resume()
    assert guard.move({"x": 1e-6})["x"] == 1e-6


def test_an_interrupt_stops_what_is_being_measured():
    slow = Slow()
    guard = Guard(slow)
    main = threading.main_thread().ident
    threading.Timer(0.1, signal.pthread_kill, [main, signal.SIGINT]).start()
    begun = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        guard.acquire("pixel")
    assert slow.ended.is_set() and time.perf_counter() - begun < 5.0
    with pytest.raises(Aborted):
        guard.acquire("pixel")


def test_its_signals_are_those_of_before():
    before = signal.getsignal(signal.SIGINT)
    inner = Watched()
    stopped = []
    inner.stop = lambda: stopped.append(True)
    with pytest.raises(KeyboardInterrupt), Guard(inner).signals():
        signal.raise_signal(signal.SIGINT)
    assert stopped == [True] and signal.getsignal(signal.SIGINT) is before


def test_a_measurement_that_hangs_is_stopped(monkeypatch):
    monkeypatch.setattr("micjax.instruments.guard.GRACE_S", 0.1)
    slow = Slow()
    with pytest.raises(LinkError, match="pixel has not ended after"):
        Guard(slow, patience=0.1).acquire("pixel")
    assert slow.ended.is_set()


def test_errors_of_the_instrument_come_through():
    class Broken(Watched):
        def acquire(self, mode, over=None):
            raise NotReady("the vacuum is gone")

    with pytest.raises(NotReady, match="vacuum"):
        Guard(Broken()).acquire("pixel")


# --- replay and twin ------------------------------------------------------------------------------


def test_replay_answers_with_the_nearest_pixel():
    inst = replay()
    inst.move({"x": 0.39e-6, "y": 0.31e-6})
    record = inst.acquire("pixel")
    assert record.at == pytest.approx({"x": 0.4e-6, "y": 0.3e-6})
    assert float(record.data["height"]) == pytest.approx(10 * 300.0 + 400.0)
    loop = inst.acquire("spectrum")
    np.testing.assert_array_equal(loop.coords["bias"][0], [0.0, 1.0, 0.0, -1.0])
    assert loop.units == {"loop": "V"} and loop.dims == {"loop": ("bias",)}


def test_replay_of_a_real_file(shared):
    inst = Replay.of(shared / "data" / "afm" / "PZT_thick0009.h5", ["HeightRetrace"])
    assert check_instrument(inst)
    x, y = inst.axes["x"], inst.axes["y"]
    frame = Frame(((x.lo + x.hi) / 2, (y.lo + y.hi) / 2), (x.hi - x.lo, y.hi - y.lo), (16, 32))
    assert inst.acquire("image", frame).data["HeightRetrace"].shape == (16, 32)


def test_the_twin_repeats_its_noise_and_hides_its_truth():
    first, second = simulated(), simulated()
    one, two = (inst.acquire("measure").data["response"] for inst in (first, second))
    np.testing.assert_array_equal(one, two)
    again = first.acquire("measure").data["response"]
    assert np.all(again != one) and again.shape == (2,)
    second.count = 1  # as after a restart
    np.testing.assert_array_equal(second.acquire("measure").data["response"], again)
    assert first.truth["forward.f0_kHz"] == pytest.approx(350.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Axis("m", 1.0, 0.0), "has no points"),
        (lambda: Axis("m", -math.inf, 0.0), "is not bounded"),
        (lambda: Frame((0.0, 0.0), (1.0, 1.0), (0, 3)), "is empty"),
        (lambda: Replay([one_dimensional()]), "profile: 1 axes; images or maps are wanted"),
        (lambda: Axis("m", 0.0, 1.0, rate=0.0), "rate = 0.0: must be positive"),
        (lambda: Frame((0.0, 0.0), (1.0, 0.0), (3, 3)), "is empty"),
        (lambda: Frame((0.0, math.nan), (1.0, 1.0), (3, 3)), "finite numbers"),
        (lambda: Replay([]), "nothing to replay"),
        (
            lambda: Record({"a": np.zeros(3)}, {"a": ("x", "y")}, {"a": "m"}, {}, {}, 0.0, 0.0),
            "1 axes are called",
        ),
        (
            lambda: Record(
                {"a": np.array([None, 1.0])}, {"a": ("x",)}, {"a": "m"}, {}, {}, 0.0, 0.0
            ),
            "a: object is no kind of number",
        ),
        (
            lambda: Record(
                {"a": np.zeros(3)},
                {"a": ("x",)},
                {"a": "m"},
                {"x": (np.zeros(2), "m")},
                {},
                0.0,
                0.0,
            ),
            "3 values along x",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_modes():
    inst = replay()
    with pytest.raises(LimitError, match="no mode 'imge' .*nearest: image"):
        inst.acquire("imge")
    with pytest.raises(LimitError, match="goes over a Frame, not NoneType"):
        inst.acquire("image")
    with pytest.raises(LimitError, match="takes no Frame"):
        inst.acquire("pixel", Frame((0.0, 0.0), (1.0, 1.0), (1, 1)))
    for path, found in (
        (np.zeros(3), r"an array \(3,\)"),
        (np.zeros((0, 2)), r"an array \(0, 2\)"),
        (Frame((0.0, 0.0), (1.0, 1.0), (1, 1)), "Frame"),
        (None, "NoneType"),
    ):
        with pytest.raises(LimitError, match=f"points \\[n, 2\\], not {found}"):
            inst.acquire("line", path)
    with pytest.raises(LimitError, match="x = nan is not finite"):
        inst.acquire("line", np.array([[np.nan, 0.0]]))


def test_costs():
    mode = Mode("frame", {}, seconds=lambda f: f.dwell * f.shape[0] * f.shape[1], dose=2.0)
    frame = Frame((0.0, 0.0), (1.0, 1.0), (4, 8), dwell=0.5)
    assert mode.cost(frame) == (16.0, 2.0)
