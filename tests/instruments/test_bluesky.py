"""Bluesky both ways, under a real RunEngine and with the devices of ophyd-async."""

import asyncio
import math
import threading
import time

import numpy as np
import pytest

from micjax.active.learner.learner import Learner
from micjax.active.learner.space import SearchAxis, Space
from micjax.instruments import (
    Aborted,
    Axis,
    Frame,
    Guard,
    LimitError,
    LinkError,
    Mode,
    MoveError,
    NotReady,
    OphydAsync,
    Record,
    Replay,
    as_bluesky,
    check_instrument,
)
from micjax.io import Field, FieldAxis

WHY = "bluesky is not installed (pip install 'micjax[bluesky]')"
bluesky = pytest.importorskip("bluesky", reason=WHY)
adaptive = pytest.importorskip("bluesky_adaptive", reason=WHY)
core = pytest.importorskip("ophyd_async.core", reason=WHY)

import bluesky.plan_stubs as bps  # noqa: E402
import bluesky.plans as plans  # noqa: E402
from bluesky.preprocessors import run_wrapper  # noqa: E402
from bluesky.protocols import (  # noqa: E402
    Checkable,
    HasHints,
    Movable,
    Readable,
    Status,
    Stoppable,
    Triggerable,
)
from bluesky.simulators import check_limits  # noqa: E402
from bluesky.utils import FailedStatus, all_safe_rewind  # noqa: E402
from bluesky_adaptive import protocols  # noqa: E402
from event_model import DocumentNames, schema_validators  # noqa: E402
from ophyd_async.sim import SimMotor  # noqa: E402

X, Y = np.linspace(0.0, 1.2e-6, 7), np.linspace(0.9e-6, 0.1e-6, 5)
HEIGHT = np.add.outer(10.0 * Y, X)
BIAS = np.array([0.0, 1.0, 0.0, -1.0])


def height(x, y):
    return HEIGHT[np.abs(Y - y).argmin(), np.abs(X - x).argmin()]


class Watched(Replay):
    """A slope, not square, its y going down, with a loop at each pixel; it knows where it was sent
    and whether two verbs ever met."""

    def __init__(self):
        y, x = FieldAxis("y", 1e9 * Y, "nm"), FieldAxis("x", 1e9 * X, "nm")
        loops = HEIGHT[..., None] * np.ones(len(BIAS))
        super().__init__(
            [
                Field(HEIGHT, (y, x), "m", "height"),
                Field(loops, (y, x, FieldAxis("bias", BIAS, "V")), "V", "loop"),
            ]
        )
        self.sent, self.stops, self.busy, self.met = [], 0, False, False
        self.pause, self.halted = 0.0, threading.Event()

    def move(self, target):
        return self._alone(lambda: self.sent.append(dict(target)) or Replay.move(self, target))

    def acquire(self, mode, over=None):
        return self._alone(lambda: Replay.acquire(self, mode, over))

    def read(self):
        self.met |= self.busy
        return super().read()

    def stop(self):
        self.stops += 1
        self.halted.set()

    def _alone(self, verb):
        self.met |= self.busy
        if self.pause and self.halted.wait(self.pause):
            self.halted.clear()
            raise Aborted("stopped")
        found = verb()
        self.busy = True
        time.sleep(0.001)
        self.busy = False
        return found


class Engine:
    """A RunEngine, and its documents by name."""

    def __init__(self):
        self.documents = []
        self.run = bluesky.RunEngine({})
        self.run.subscribe(lambda name, document: self.documents.append((name, document)))

    def __call__(self, plan):
        return self.run(plan)

    def of(self, kind):
        return [document for name, document in self.documents if name == kind]


@pytest.fixture
def engine():
    return Engine()


# --- an instrument under a RunEngine --------------------------------------------------------------


def test_a_grid_scan_is_the_array(engine):
    inner = Watched()
    devices = as_bluesky(Guard(inner, {"x": (0.2e-6, 1.0e-6)}))
    x, y, pixel = devices.axes["x"], devices.axes["y"], devices.detectors["pixel"]
    engine(plans.grid_scan([pixel], y, Y[3], Y[1], 3, x, X[1], X[5], 5, snake_axes=True))

    for name, document in engine.documents:
        schema_validators[DocumentNames[name]].validate(document)
    events = [event["data"] for event in engine.of("event")]
    assert len(events) == 15
    places = np.array([(e["x"], e["y"]) for e in events])
    wanted = [(X[i], Y[j]) for j in (3, 2, 1) for i in range(1, 6)]
    np.testing.assert_allclose(places[[0, 4, 5, 14]], [wanted[i] for i in (0, 4, 9, 14)])
    np.testing.assert_allclose(sorted(places.tolist()), sorted(wanted))
    np.testing.assert_allclose([e["pixel_height"] for e in events], [height(*p) for p in places])

    (descriptor,) = engine.of("descriptor")
    keys = descriptor["data_keys"]
    assert keys["x"]["units"] == "m" and keys["pixel_height"]["units"] == "m"
    assert keys["x"]["limits"]["control"] == {"low": 0.2e-6, "high": 1.0e-6}
    assert keys["pixel_height"]["dtype"] == "number" and keys["pixel_height"]["shape"] == []
    assert descriptor["hints"]["pixel"]["fields"] == ["pixel_height"]
    assert engine.of("stop")[0]["exit_status"] == "success"
    assert not inner.met and inner.stops == 0


def test_a_second_plan_follows_a_first(engine):
    devices = as_bluesky(Guard(Watched()))
    x, pixel = devices.axes["x"], devices.detectors["pixel"]
    for _ in range(2):  # what a RunEngine does when it ends must not latch the guard
        engine(plans.scan([pixel], x, X[0], X[3], 2))
    assert [d["exit_status"] for d in engine.of("stop")] == ["success", "success"]


def test_curves_and_frames_come_with_their_coordinates(engine):
    devices = as_bluesky(Guard(Watched()), "afm")
    frame = Frame((0.6e-6, 0.6e-6), (0.6e-6, 0.4e-6), (2, 3))
    image = devices.detector("image", frame, "overview")
    engine(plans.count([devices.detectors["spectrum"], image]))
    (descriptor,), (event,) = engine.of("descriptor"), engine.of("event")
    schema_validators[DocumentNames.descriptor].validate(descriptor)
    keys, data = descriptor["data_keys"], event["data"]
    np.testing.assert_array_equal(data["afm_spectrum_bias"], BIAS)
    loop, bias = keys["afm_spectrum_loop"], keys["afm_spectrum_bias"]
    assert loop["dims"] == ["bias"] and bias["units"] == "V"
    assert loop["shape"] == [4] == list(data["afm_spectrum_loop"].shape)
    assert keys["afm_overview_height"]["dims"] == ["y", "x"]
    x, y = data["afm_overview_x"], data["afm_overview_y"]
    np.testing.assert_allclose(x, frame.points()[0, :, 0])
    np.testing.assert_allclose(data["afm_overview_height"], np.add.outer(10.0 * y, x))
    of_image = descriptor["configuration"]["afm_overview"]
    assert of_image["data"]["afm_overview_center"] == pytest.approx([0.6e-6, 0.6e-6])
    assert of_image["data_keys"]["afm_overview_angle"]["units"] == "rad"


def test_protocols_are_those_of_bluesky():
    devices = as_bluesky(Watched(), "afm")
    x, pixel = devices.axes["x"], devices.detectors["pixel"]
    assert x.name == "afm_x" and x.parent is None and x.position == pytest.approx(X[3])
    for protocol in (Movable, Readable, Checkable, Stoppable, HasHints):
        assert isinstance(x, protocol)
    assert isinstance(pixel, Readable) and isinstance(pixel, Triggerable)
    status = x.set(0.0)
    assert isinstance(status, Status)
    assert status.exception(5.0) is None and status.done and status.success
    assert repr(status) == "afm_x to 0: done"


def test_out_of_range_fails_the_plan_and_moves_nothing(engine):
    inner = Watched()
    devices = as_bluesky(Guard(inner, {"x": (0.2e-6, 1.0e-6)}))
    x, pixel = devices.axes["x"], devices.detectors["pixel"]
    with pytest.raises(LimitError):
        engine(plans.scan([pixel], x, 1.1e-6, 0.5e-6, 3))
    (stop,) = engine.of("stop")
    assert stop["exit_status"] == "fail"
    assert "x = 1.1e-06 m is outside 2e-07 to 1e-06 m" in stop["reason"]
    assert inner.sent == [] and not engine.of("event")


def test_limits_are_checked_before_the_plan(engine):
    inner = Watched()
    devices = as_bluesky(Guard(inner))
    x, y, pixel = devices.axes["x"], devices.axes["y"], devices.detectors["pixel"]
    check_limits(plans.scan([pixel], x, X[0], X[-1], 3))
    for beyond in (2e-6, math.nan):
        with pytest.raises(LimitError):
            check_limits(plans.scan([pixel], y, Y[0], beyond, 3))
    with pytest.raises(LimitError, match="image goes over a Frame"):
        devices.detector("image")
    with pytest.raises(LimitError, match="x = .* is outside"):
        devices.detector("image", Frame((1.2e-6, 0.5e-6), (0.6e-6, 0.4e-6), (2, 3)))
    assert inner.sent == []


def test_why_a_move_failed_stands_in_the_document(engine):
    inner = Watched()
    inner.axes = {n: Axis("m", a.lo, a.hi, tol=1e-9) for n, a in inner.axes.items()}
    inner.move = lambda target: inner.read()  # it does not move
    devices = as_bluesky(Guard(inner))
    with pytest.raises(FailedStatus) as found:
        engine(plans.scan([devices.detectors["pixel"]], devices.axes["x"], X[1], X[5], 3))
    assert isinstance(found.value.__cause__, MoveError)
    (stop,) = engine.of("stop")
    assert stop["exit_status"] == "fail" and "x is at 6e-07 m, asked for 2e-07" in stop["reason"]


def test_what_waits_for_its_turn_does_not_begin_after_a_stop():
    inner = Watched()
    inner.pause = 20.0
    devices = as_bluesky(inner)
    first, second = devices.axes["x"].set(X[1]), devices.axes["y"].set(Y[1])
    time.sleep(0.05)
    assert not first.done and not second.done and "under way" in repr(first)
    devices.axes["x"].stop()
    assert isinstance(first.exception(5.0), Aborted)
    assert isinstance(second.exception(5.0), Aborted) and not second.success
    assert inner.sent == [] and inner.stops == 1


def test_an_abort_of_the_plan_stops_the_instrument(engine):
    inner = Watched()
    devices = as_bluesky(Guard(inner))
    x, pixel = devices.axes["x"], devices.detectors["pixel"]

    def plan():
        yield from bps.trigger_and_read([x, pixel])
        yield from bps.mv(x, X[1])
        inner.pause = 20.0
        threading.Timer(0.3, engine.run.abort).start()
        yield from bps.trigger(pixel, wait=True)

    begun = time.perf_counter()
    with pytest.raises(bluesky.utils.RunEngineInterrupted):
        engine(run_wrapper(plan()))
    assert len(engine.of("event")) == 1 and engine.of("stop")[0]["exit_status"] == "abort"
    assert inner.stops >= 1 and time.perf_counter() - begun < 10.0
    with pytest.raises(NotReady, match="measured nothing yet"):
        pixel.read()


def test_a_pause_does_not_repeat_what_changes_the_sample():
    inner = Watched()
    inner.modes["poling"] = Mode("point", {"loop": "V"}, repeatable=False)
    detectors = as_bluesky(inner).detectors
    assert all_safe_rewind([detectors["pixel"], detectors["spectrum"]])
    assert not all_safe_rewind([detectors["pixel"], detectors["poling"]])


class Poler(Watched):
    """Changes the sample each time, and takes a while."""

    def __init__(self):
        super().__init__()
        self.modes = {"pole": Mode("point", {"d": "V"}, repeatable=False)}
        self.begun, self.done = 0, 0

    def acquire(self, mode, over=None):
        self.begun += 1
        time.sleep(0.2)
        self.done += 1
        now, d = time.time(), np.array(float(self.done))
        return Record({"d": d}, {"d": ()}, {"d": "V"}, {}, self.read(), now, now)


@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.parametrize("wrap", [lambda inst: inst, Guard])
def test_an_immediate_pause_loses_no_measurement_and_takes_none_twice(engine, wrap, moves):
    poler = Poler()
    inst = wrap(poler)
    devices = as_bluesky(inst)
    pole, x = devices.detectors["pole"], devices.axes["x"]

    def pause():
        until = time.monotonic() + 30.0
        while poler.begun < 2 and time.monotonic() < until:
            time.sleep(0.005)
        engine.run.request_pause()

    threading.Thread(target=pause, daemon=True).start()
    plan = plans.scan([pole], x, X[1], X[3], 3) if moves else plans.count([pole], 3)
    with pytest.raises(bluesky.utils.RunEngineInterrupted):
        engine(plan)
    while poler.done < 2:
        time.sleep(0.01)
    if wrap is Guard:
        while inst._turn.locked():
            time.sleep(0.01)
        inst.resume()  # somebody has looked at it
    engine.run.resume()
    assert poler.begun == 3 and (poler.stops > 0) == moves
    assert [event["data"]["pole_d"] for event in engine.of("event")] == [1.0, 2.0, 3.0]
    assert engine.of("stop")[0]["exit_status"] == "success"


# --- a learner in bluesky-adaptive ----------------------------------------------------------------


def learner(**options):
    axes = (SearchAxis("x", X[0], X[-1], "m"), SearchAxis("y", Y[-1], Y[0], "m"))
    return Learner(Space(axes), outcome="height", **options)


def problem(engine, policy, guard):
    devices = as_bluesky(guard)

    def heights(uid, suggestions):
        """The events of the run, in the order in which the points were taken."""
        start = next(d for d in engine.of("start") if d["uid"] == uid)
        mine = {d["uid"] for d in engine.of("descriptor") if d["run_start"] == uid}
        events = [e["data"] for e in engine.of("event") if e["descriptor"] in mine]
        pairs = zip(start["blop_acquisition_order"], events, strict=True)
        return [{"_id": i, "height": event["pixel_height"]} for i, event in pairs]

    return protocols.OptimizationProblem(
        policy, list(devices.axes.values()), [devices.detectors["pixel"]], heights
    )


@pytest.mark.parametrize(
    "name",
    [
        "Optimizer",
        "CanRegisterSuggestions",
        "TrialFaultAware",
        "SupportsStoppingCriteria",
        "Checkpointable",
    ],
)
def test_a_learner_is_an_optimizer(name):
    assert isinstance(learner(), getattr(protocols, name))


def no_model(points, y, belief, key):
    return None


@pytest.mark.parametrize(
    ("initial", "model"), [(8, no_model), pytest.param(4, None, marks=pytest.mark.slow)]
)
def test_a_learner_drives_a_plan(engine, tmp_path, initial, model):
    file = tmp_path / "learner.json"
    policy = learner(initial=initial, model=model, budget=8, file=file)
    inner = Watched()
    engine(
        adaptive.optimize(
            problem(engine, policy, Guard(inner)), iterations=9, n_points=2, checkpoint_interval=1
        )
    )
    points, heights = policy.data
    assert len(points) == 8  # the budget, and not 18
    assert file.exists()
    np.testing.assert_allclose(heights, [height(x, y) for x, y in points])
    assert policy.get_best_points()[0][2]["height"] == heights.max()
    assert {d["exit_status"] for d in engine.of("stop")} == {"success"}


def test_a_suggestion_that_is_refused_is_a_failure_of_the_learner(engine):
    policy, inner = learner(), Watched()
    guard = Guard(inner, {"x": (0.0, 1e-9)})
    with pytest.raises(LimitError):
        engine(adaptive.optimize(problem(engine, policy, guard), iterations=3))
    assert len(policy._failures) == 1 and inner.sent == [] and not len(policy.data[1])


# --- devices of ophyd-async as an instrument ------------------------------------------------------


class Diode(core.StandardReadable):
    """Half of what the motors say, once it is triggered."""

    def __init__(self, x, y, name="diode"):
        self._places, self._set = (x, y), None
        with self.add_children_as_readables():
            self.signal, self._set = core.soft_signal_r_and_setter(float, 0.0, units="V")
        self.delay_s = 0.0
        super().__init__(name)

    @core.AsyncStatus.wrap
    async def trigger(self):
        await asyncio.sleep(self.delay_s)
        places = [await motor.user_readback.get_value() for motor in self._places]
        self._set(0.5 * sum(places))


class Absent(SimMotor):
    async def connect(self, *arguments, **options):
        raise core.NotConnectedError("mx: nobody answers")


class Stuck(SimMotor):
    """It says that it has moved."""

    @core.AsyncStatus.wrap
    async def set(self, value, timeout=None):
        pass


AXES = {"x": Axis("m", -1e-3, 1e-3, tol=1e-9), "y": Axis("m", -2e-3, 1e-3, tol=1e-9)}
MEASURE = Mode("point", {"diode-signal": "V"}, seconds=0.1)


def connected(x=None, y=None, mode=MEASURE, axes=AXES, **options):
    """Motors in mm, and the diode."""
    x, y = x or SimMotor("mx"), y or SimMotor("my")
    motors = {"x": (x, axes["x"], 1e-3), "y": (y, axes["y"], 1e-3)}
    return OphydAsync(motors, {"measure": (Diode(x, y), mode)}, **options)


def test_devices_of_ophyd_async_are_an_instrument():
    with connected() as inst:
        assert check_instrument(inst) and check_instrument(Guard(inst))
        inst.move({"x": 3e-4, "y": -1e-3})
        record = inst.acquire("measure")
        assert record.at == pytest.approx({"x": 3e-4, "y": -1e-3})
        assert float(record.data["diode-signal"]) == pytest.approx(0.5 * (0.3 - 1.0))
    with pytest.raises(LinkError, match="closed"):
        inst.read()
    inst.stop()


def test_a_motor_that_does_not_move_is_found_out():
    with connected(x=Stuck("mx")) as inst:
        with pytest.raises(MoveError, match="x is at 0 m, asked for 0.0005; 1e-09 m are tolerated"):
            inst.move({"x": 5e-4})


def test_when_one_motor_fails_the_others_stop():
    class Broken(SimMotor):
        @core.AsyncStatus.wrap
        async def set(self, value, timeout=None):
            raise RuntimeError("no power")

    with connected(x=Broken("mx"), y=SimMotor("my", instant=False)) as inst:
        with pytest.raises(MoveError, match="x, y: RuntimeError: no power"):
            inst.move({"x": 1e-3, "y": 1e-3})
        first = inst.read()
        time.sleep(0.15)
        assert inst.read() == first and first["y"] < 1e-3


WIDE = AXES | {"x": Axis("m", -1.0, 1.0, tol=1e-9)}


def test_a_move_that_takes_too_long_is_stopped():
    slow = SimMotor("mx", instant=False)  # 1 mm/s
    with connected(x=slow, axes=WIDE, timeout_s=1.0) as inst:
        with pytest.raises(MoveError, match="x, y: TimeoutError: no answer within 1 s"):
            inst.move({"x": 0.1, "y": 1e-3})
        first = inst.read()
        time.sleep(0.15)
        assert inst.read() == first and 0.0 <= first["x"] < 0.1


def test_stop_ends_a_move_and_a_measurement():
    slow = SimMotor("mx", instant=False)
    with connected(x=slow, axes=WIDE) as inst:
        inst._detectors["measure"].delay_s = 20.0
        begun = time.perf_counter()
        for verb in (lambda: inst.move({"x": 1.0}), lambda: inst.acquire("measure")):
            threading.Timer(0.3, inst.stop).start()
            with pytest.raises(Aborted):
                verb()
        assert time.perf_counter() - begun < 10.0
        assert inst.read()["x"] < 0.1


def test_a_device_may_refuse():
    class Limited(SimMotor):
        async def check_value(self, value):
            if value > 0.5:
                raise ValueError("beyond the soft limit of 0.5 mm")

    x, y = Limited("mx"), SimMotor("my")
    with connected(x=x, y=y) as inst:
        with pytest.raises(LimitError, match="x = 0.0008: beyond the soft limit"):
            inst.move({"y": 1e-4, "x": 8e-4})
        assert inst.read() == {"x": 0.0, "y": 0.0}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: connected(axes=AXES | {"y": Axis("m", 0.0, 1.0)}), ValueError, "y has no tol"),
        (lambda: connected(mode=Mode("frame", {})), ValueError, "goes over a frame"),
        (lambda: connected(x=Absent("mx")), LinkError, "mx: nobody answers"),
        (
            lambda: connected(mode=Mode("point", {"diode-sgnal": "V"})),
            NotReady,
            "no channel 'diode-sgnal'.*nearest: diode-signal",
        ),
        (
            lambda: connected(mode=Mode("point", {"diode-signal": "A"})),
            NotReady,
            "diode-signal comes in V, not in A",
        ),
    ],
)
def test_what_does_not_fit(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("count", [2000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_proposal_leaves_the_limits_and_none_is_clamped(count):
    """Proposals, in and out of range: all that the motors were sent is within limits."""
    sent = []

    class Written(SimMotor):
        def set(self, value, *arguments, **options):
            sent.append((self.name, value))
            return super().set(value, *arguments, **options)

    rng = np.random.default_rng(0)
    with connected(x=Written("mx"), y=Written("my")) as inst:
        guard = Guard(inst, {"x": (-5e-4, 5e-4)})
        wanted = []
        for _ in range(count):
            point = {n: float(rng.uniform(-2.5e-3, 2.5e-3)) for n in ("x", "y")}
            if rng.uniform() < 0.02:
                point["y"] = float(rng.choice([math.nan, math.inf, -math.inf]))
            try:
                arrived = guard.move(point)
                assert arrived == pytest.approx(point, rel=1e-12)
                wanted.append((point["x"], point["y"]))
            except LimitError:
                assert not (abs(point["x"]) <= 5e-4 and -2e-3 <= point["y"] <= 1e-3)
        places = np.array([value for _, value in sent]).reshape(-1, 2)
        np.testing.assert_allclose(1e-3 * places, wanted, rtol=1e-12)
        assert len(wanted) > count / 10
