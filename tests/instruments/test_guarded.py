"""What a guard bounds beside moves: measurements, budgets, one thing at a time, dead stages."""

import dataclasses
import importlib.util
import math
import pathlib
import threading
import time

import numpy as np
import pytest
from test_instruments import Slow, Watched, fields

from micjax.active.campaign import Campaign, RandomPolicy
from micjax.active.learner.learner import Learner
from micjax.active.learner.space import SearchAxis, Space
from micjax.instruments import (
    Aborted,
    Axis,
    BudgetError,
    Frame,
    Guard,
    Journal,
    LimitError,
    LinkError,
    Mode,
    MoveError,
    Nanonis,
    NotReady,
    Record,
    Recorded,
    Replay,
)
from micjax.instruments.testing import nanonis_server

REACH = {"x": (-1e-6, 1e-6), "y": (-1e-6, 1e-6), "bias": (-5.0, 5.0)}


class Stage:
    """x, y and a bias; what is measured is where it stands. Deriving classes spoil it."""

    def __init__(self, at=(0.2, 0.0, 0.0), **axis):
        self.axes = {n: Axis("V" if n == "bias" else "m", -5.0, 5.0, **axis) for n in REACH}
        self.modes = {
            "point": Mode("point", {"z": "m"}),
            "spectrum": Mode("point", {"z": "m"}, sweeps={"bias": (-1.0, 3.0)}),
            "line": Mode("path", {"z": "m"}),
            "image": Mode("frame", {"z": "m"}),
        }
        self.at, self.measured, self.stops = dict(zip(REACH, at, strict=True)), 0, 0

    def read(self):
        return dict(self.at)

    def move(self, target):
        self.at |= target
        return self.read()

    def acquire(self, mode, over=None):
        self.measured += 1
        now = time.time()
        return Record(
            {"z": np.array(self.at["x"])}, {"z": ()}, {"z": "m"}, {}, self.read(), now, now
        )

    def stop(self):
        self.stops += 1


# --- measurements are guarded ---------------------------------------------------------------------


def wall(position):
    return 1.0 < position["x"] < 1.1


REFUSED = {
    "a bias that stands beyond its limits": ("point", None, {"at": (0.0, 0.0, 3.0)}),
    "a point that stands in the region": ("point", None, {"at": (1.05, 0.0, 0.0)}),
    "a sweep beyond the limits": ("spectrum", None, {}),
    "a path that begins behind the region": ("line", np.array([[2.0, 0.0], [2.5, 0.0]]), {}),
    "a frame behind the region": ("image", Frame((2.0, 0.0), (0.5, 0.5), (3, 3)), {}),
    "a region between pixels": ("image", Frame((1.05, 0.0), (1.0, 0.5), (2, 2)), {}),
    "a frame over its border": ("image", Frame((-3.5, 0.0), (2.0, 1.0), (2, 2)), {}),
    "a frame while the bias is wrong": (
        "image",
        Frame((0.2, 0.0), (0.1, 0.1), (2, 2)),
        {"at": (0.2, 0.0, -3.0)},
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_measured(what):
    mode, over, options = REFUSED[what]
    stage = Stage(**options)
    limits = {"x": (-4.0, 4.0), "bias": (-2.0, 2.0)}
    with pytest.raises(LimitError):
        Guard(stage, limits, forbidden=wall).acquire(mode, over)
    assert stage.measured == 0


def test_what_is_measured_all_the_same():
    stage = Stage()
    guard = Guard(stage, {"x": (-4.0, 4.0), "bias": (-2.0, 3.0)}, forbidden=wall)
    guard.acquire("point")
    guard.acquire("spectrum")
    guard.acquire("line", np.array([[0.5, 0.0], [0.9, 1.0]]))
    guard.acquire("image", Frame((0.0, 0.0), (1.4, 1.4), (2, 2), angle=0.3))
    filling = Frame((0.0, 0.1), (0.3, 0.7), (2, 2))  # 0.1 - 0.35 is rounded
    Guard(stage, {"x": (-0.15, 0.15 + 0.1), "y": (-0.25, 0.45)}).acquire("image", filling)
    assert stage.measured == 5


def test_axes_go_one_after_the_other_around_a_region():
    """An instrument that is sent along a diagonal goes first along one axis, then the other."""

    class Axiswise(Stage):
        way = ()

        def move(self, target):
            for name in target:
                self.way += (super().move({name: target[name]}),)
            return self.read()

    stage = Axiswise(at=(0.0, 0.0, 2.0))
    guard = Guard(stage, forbidden=lambda p: p["x"] > 0.5 and p["bias"] > 1.0)
    guard.move({"x": 1.0, "bias": 0.0})  # straight, it would be allowed
    assert not any(p["x"] > 0.5 and p["bias"] > 1.0 for p in stage.way) and len(stage.way) == 2


def test_a_ramp_that_never_ends_is_refused_at_once():
    stage = Stage(max_step=1e-9)
    with pytest.raises(LimitError, match="would take .* steps"):
        Guard(stage).move({"x": 5.0})


def test_no_proposal_leaves_the_limits_under_another_judge():
    path = pathlib.Path(__file__).parents[2] / "benchmarks/guard_campaign.py"
    spec = importlib.util.spec_from_file_location("guard_campaign", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    found = benchmark.campaign(400, seed=3)
    assert found["moved"] == found["measured"] == found["refused_too_late"] == 0
    assert found["carried_out"] > 200
    bare = benchmark.campaign(100, seed=3, guarded=False)
    assert bare["moved"] > 10 and bare["measured"] > 10  # the judge is not blind


def test_the_bias_that_a_spectrum_sweeps_is_asked_of_the_controller():
    with nanonis_server() as (controller, ports):
        with Nanonis("127.0.0.1", ports, **REACH, spectrum={"Current": "A"}) as device:
            guard = Guard(device, {"bias": (-1.0, 1.0)})
            guard.acquire("spectrum")
            controller.sweep = (-0.5, 1.5)  # somebody turns a knob
            with pytest.raises(LimitError, match="spectrum sweeps bias: bias = 1.5 V is outside"):
                guard.acquire("spectrum")
            controller.sweep = (-6.0, 0.0)
            with pytest.raises(LimitError, match="bias = -6 V"):
                device.acquire("spectrum")
            controller._BiasSpectr_MLSModeGet = lambda: ("MLS",)
            with pytest.raises(NotReady, match="segments"):
                guard.acquire("spectrum")
        assert controller.asked.count("BiasSpectr.Start") == 1


# --- budgets --------------------------------------------------------------------------------------


class Lasting(Stage):
    def __init__(self, measures_s=0.0, moves_s=0.0, **axis):
        super().__init__(**axis)
        self.measures_s, self.moves_s = measures_s, moves_s

    def move(self, target):
        time.sleep(self.moves_s)
        return super().move(target)

    def acquire(self, mode, over=None):
        time.sleep(self.measures_s)
        return super().acquire(mode, over)


def test_a_budget_counts_what_was_taken():
    guard = Guard(Lasting(measures_s=0.05), seconds=0.08)  # its mode says 0 s
    with pytest.raises(BudgetError, match="point takes 0 s; 0 s are left"):
        for _ in range(3):
            guard.acquire("point")
    assert guard.spent[0] >= 0.08 and guard.left[0] == 0.0


def test_a_budget_counts_moves_and_settling():
    told = Guard(Stage(rate=0.1, settle=2.0), seconds=100.0)
    told.move({"x": 1.2})
    assert told.spent[0] == pytest.approx(12.0, abs=0.5)
    taken = Guard(Lasting(moves_s=0.05), seconds=0.04)
    taken.move({"x": 1.0})
    with pytest.raises(BudgetError):
        taken.acquire("point")
    assert taken.move({"x": 0.0})["x"] == 0.0  # back to where it is safe, whatever it takes


@pytest.mark.parametrize("bad", [math.nan, -1.0, math.inf])
@pytest.mark.parametrize("name", ["seconds", "dose"])
def test_a_cost_that_is_no_number_is_refused(name, bad):
    with pytest.raises(ValueError, match=f"{name} = .*finite number from 0 on"):
        Mode("point", {"z": "m"}, **{name: bad})
    stage = Stage()
    stage.modes["point"] = Mode("point", {"z": "m"}, **{name: lambda over: bad})
    with pytest.raises(BudgetError, match="no budget can be kept"):
        Guard(stage, seconds=10.0, dose=10.0).acquire("point")
    assert stage.measured == 0


def test_what_was_refused_costs_nothing():
    stage = Stage()
    stage.modes["point"] = Mode("point", {"z": "m"}, seconds=5.0, dose=3.0)

    def refuses(mode, over=None):
        raise NotReady("the beam is off")

    stage.acquire = refuses
    guard = Guard(stage, seconds=10.0, dose=4.0)
    for _ in range(3):
        with pytest.raises(NotReady):
            guard.acquire("point")
    assert guard.spent[0] < 1.0 and guard.left[1] == 4.0


# --- one thing at a time, and stopped -------------------------------------------------------------


class Deaf(Stage):
    """Goes on after a stop, until it is let go."""

    def __init__(self):
        super().__init__()
        self.let_go, self.at_once, self.most = threading.Event(), 0, 0

    def acquire(self, mode, over=None):
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        self.let_go.wait(20.0)
        self.at_once -= 1
        return super().acquire(mode, over)


def test_nothing_begins_while_what_was_given_up_goes_on(monkeypatch):
    monkeypatch.setattr("micjax.instruments.guard.GRACE_S", 0.05)
    deaf = Deaf()
    guard = Guard(deaf)
    with pytest.raises(LinkError, match="has not ended"):
        guard.acquire("point")
    with pytest.raises(NotReady, match="point was stopped and still goes on"):
        guard.resume()
    for verb in (lambda: guard.acquire("point"), lambda: guard.move({"x": 0.0})):
        with pytest.raises(Aborted):
            verb()
    deaf.let_go.set()
    until = time.monotonic() + 10.0
    while guard._turn.locked() and time.monotonic() < until:
        time.sleep(0.01)
    guard.resume()
    assert guard.move({"x": 0.0})["x"] == 0.0 and deaf.most == 1


def test_a_stop_just_before_a_verb_begins_holds():
    """An adapter forgets a stop when its next verb begins, and so it is said again."""

    class Forgetful(Stage):
        def __init__(self):
            super().__init__()
            self.halt, self.guard = threading.Event(), None

        def _goes_on(self):
            self.guard.stop()  # somebody else, just now
            self.halt.clear()
            if self.halt.wait(20.0):
                raise MoveError("halted half way")

        def move(self, target):
            self._goes_on()
            return super().move(target)

        def acquire(self, mode, over=None):
            self._goes_on()
            return super().acquire(mode, over)

        def stop(self):
            self.halt.set()

    for verb in ("move", "acquire"):
        stage = Forgetful()
        stage.guard = guard = Guard(stage, patience=math.inf)
        begun = time.monotonic()
        with pytest.raises(Aborted, match="stopped"):
            guard.move({"x": 1.0}) if verb == "move" else guard.acquire("point")
        assert time.monotonic() - begun < 10.0
        guard.resume()


def test_what_was_measured_when_it_was_stopped_is_kept(tmp_path):
    class Begun(Slow):
        begun = threading.Event()

        def acquire(self, mode, over=None):
            self.begun.set()
            return super().acquire(mode, over)

    slow = Begun()
    with Journal(tmp_path, {}) as journal:
        inst, policy = Guard(slow), RandomPolicy(slow.axes)
        loop = Campaign(inst, policy, "pixel", lambda r: float(r.data["height"]), journal)
        threading.Thread(target=lambda: slow.begun.wait(60.0) and inst.stop()).start()
        with pytest.raises(Aborted) as found:
            loop.run(2)
        assert found.value.record is not None and journal.in_doubt == []
        slow.ended.set()
        inst.resume()
        loop.run(2)  # and is not measured again
        assert len(journal.steps) == len(loop.points) == 2


def test_an_interrupted_move_is_no_place_that_cannot_be_reached(tmp_path):
    class Halting(Stage):
        def move(self, target):
            self.at |= {n: 0.5 * (v + self.at[n]) for n, v in target.items()}
            self.guard.stop()  # half way
            return self.read()

    stage = Halting()
    stage.guard = guard = Guard(stage)
    with Journal(tmp_path, {}) as journal, pytest.raises(Aborted):
        Campaign(guard, RandomPolicy(guard.axes), "point", float, journal).run(3)
    assert [line["kind"] for line in journal.lines] == ["suggested"]


# --- wires ----------------------------------------------------------------------------------------


def test_float32_is_never_rounded_beyond_a_limit():
    sent = []
    with nanonis_server() as (controller, ports):
        controller._Bias_Set = lambda v: sent.append(v) or setattr(controller, "bias", v) or ()
        with Nanonis("127.0.0.1", ports, **REACH) as device:
            guard = Guard(device, {"bias": (-0.7, 0.3)})
            for value in (0.3, -0.7, 0.1):
                guard.move({"bias": value})
            with pytest.raises(LimitError, match="float32"):
                Guard(device, {"bias": (0.3, 0.3)}).move({"bias": 0.3})
    assert float(np.float32(0.3)) > 0.3  # nearest, and beyond
    assert all(-0.7 <= v <= 0.3 for v in sent) and len(sent) == 3
    np.testing.assert_allclose(sent, [0.3, -0.7, 0.1], rtol=1e-6)


def test_a_time_out_is_for_all_of_an_answer():
    with nanonis_server() as (controller, ports):
        with Nanonis("127.0.0.1", ports, **REACH, timeout_s=0.3) as device:
            controller.faults.fragment, controller.faults.pause_s = 1, 0.1  # 52 bytes
            begun = time.monotonic()
            with pytest.raises(LinkError, match="timed out"):
                device.read()
            assert time.monotonic() - begun < 2.0


def test_half_a_spectrum_is_none():
    with nanonis_server() as (controller, ports):
        with Nanonis("127.0.0.1", ports, **REACH, spectrum={"Current": "A"}) as device:
            start = controller._BiasSpectr_Start
            controller._BiasSpectr_Start = lambda *a: (device.stop(), start(*a))[1]
            with pytest.raises(Aborted):
                device.acquire("spectrum")


# --- dead stages ----------------------------------------------------------------------------------


class Dead(Stage):
    def move(self, target):
        return self.read()


def test_a_dead_stage_without_a_tolerance_is_found():
    with pytest.raises(MoveError, match="0.01 m are tolerated, .* it has no tol"):
        Guard(Dead()).move({"x": 0.5})
    axis = Axis("m", 0.0, 1.0)
    assert axis.tolerance == 1e-3 and Axis("m", 0.0, 1.0, tol=0.2).tolerance == 0.2
    for scale in (1e-12, 1e12):
        assert Axis("m", 0.0, scale).tolerance == pytest.approx(1e-3 * scale)


def test_a_dead_stage_is_not_learnt(tmp_path):
    dead = Dead()
    with Journal(tmp_path, {}) as journal:
        loop = Campaign(Guard(dead), RandomPolicy(dead.axes), "point", float, journal)
        with pytest.raises(MoveError, match="asked for"):
            loop.run(5)
        assert loop.points == [] and [line["kind"] for line in journal.lines] == ["suggested"]


def test_an_axis_that_stands_wrong_is_no_fault_of_the_points(tmp_path):
    stage = Stage(at=(0.0, 0.0, 4.0))
    guard = Guard(stage, {"bias": (-1.0, 1.0)})
    axes = {n: guard.axes[n] for n in ("x", "y")}
    with Journal(tmp_path, {}) as journal:
        with pytest.raises(NotReady, match="bias is at 4 V, outside -1 to 1 V"):
            Campaign(guard, RandomPolicy(axes), "point", float, journal).run(3)
        assert [line["kind"] for line in journal.lines] == ["suggested"]


class Rough(Stage):
    """Arrives within a tolerance, beyond its ends too."""

    def move(self, target):
        rng = np.random.default_rng(len(self.way))
        self.way.append(target)
        return super().move({n: v + 0.2 * rng.uniform(-1, 1) for n, v in target.items()})

    way: list


def test_a_campaign_learns_at_the_readback(tmp_path):
    def campaign(journal):
        stage = Rough(tol=0.25)
        stage.way = []
        stage.modes["point"] = Mode("point", {"z": "m"})
        guard = Guard(stage)
        space = Space([SearchAxis("x", -4.99, 5.0, "m"), SearchAxis("y", -5.0, 5.0, "m")])
        policy = Learner(space, outcome="z", initial=6, model=lambda *_: None)
        return Campaign(guard, policy, "point", lambda r: float(r.data["z"]), journal, outcome="z")

    with Journal(tmp_path, {}) as journal:
        loop = campaign(journal)
        loop.run(4)
        for point, step in zip(loop.points, journal.steps, strict=True):
            for n in ("x", "y"):
                assert point[n] == np.clip(step.intent["at"][n], -5.0, 5.0)
        assert loop.points[0]["z"] == loop.policy.data[0][0, 0]
    with Journal(tmp_path, {}, resume=True) as journal:
        assert campaign(journal).points == loop.points


def test_budgets_hold_over_what_was_before(tmp_path):
    guard = Guard(Stage(), seconds=10.0, spent=(9.0, 0.0))
    assert guard.left[0] == 1.0
    guard.instrument.modes["point"] = dataclasses.replace(guard.modes["point"], seconds=2.0)
    with pytest.raises(BudgetError):
        guard.acquire("point")
    with Journal(tmp_path, {}) as journal:
        Recorded(Guard(Watched(), seconds=5.0), journal).acquire("pixel")
        assert journal.lines[-1]["spent"][0] >= 1.0


def test_replays_are_what_they_were():
    guard = Guard(Replay(fields()))
    assert guard.move({"x": 3e-7, "y": 5e-7}) == {"x": 3e-7, "y": 5e-7}


def test_a_budget_is_not_made_larger_by_what_was_spent():
    for spent in ((-5.0, 0.0), (0.0, -math.inf), (math.nan, 0.0)):
        with pytest.raises(ValueError, match="spent = .*: must be finite numbers from 0 on"):
            Guard(Stage(), seconds=1.0, spent=spent)


def test_the_corners_of_a_frame_are_those_of_its_pixels():
    """All pixels of a frame of 1e18 would have been made to look at four of them."""
    frame = Frame((1e-6, 2e-6), (3e-6, 5e-6), (4, 3), 0.3)
    np.testing.assert_array_equal(frame.corners(), frame.points()[::3, ::2])
    assert np.isfinite(Frame((0.0, 0.0), (1.0, 1.0), (10**9, 10**9)).corners()).all()
