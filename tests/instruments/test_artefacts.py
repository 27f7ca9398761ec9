"""Layers that make a twin behave like the instrument: closed forms, statistics, and the same again
after a break."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_instruments import LIMITS, Watched, fields, simulated

from micjax.active.campaign import Campaign, RandomPolicy
from micjax.instruments import (
    Aborted,
    Axis,
    Dilated,
    Drifting,
    Feedback,
    Frame,
    Function,
    Guard,
    InstrumentError,
    Journal,
    Latency,
    LimitError,
    LineOffsets,
    Noisy,
    Replay,
    check_instrument,
)
from micjax.io import Field, FieldAxis
from micjax.physics.probes.loop import trace_and_retrace
from micjax.physics.tips.dilation import dilate
from micjax.physics.tips.shapes import FreeForm, Paraboloid
from micjax.problems import feedback as gains_problem

KEY = jax.random.key(7)
NY, NX = 40, 60
SIZE = NX * 0.999999999e-9, NY * 0.999999999e-9  # no rounding puts a pixel beyond the border
FRAME = Frame((30e-9, 20e-9), SIZE, (NY, NX), dwell=1e-3)
PARABOLOID = Paraboloid(8.0, pixel_nm=1.0, size=9)


def image(heights_nm=None, **options):
    """Pixels of 1 nm in the middles of whole nanometres, heights and a phase."""
    if heights_nm is None:
        heights_nm = 3.0 * np.random.default_rng(0).random((NY, NX))
    y, x = (FieldAxis(n, np.arange(size) + 0.5, "nm") for n, size in (("y", NY), ("x", NX)))
    phase = np.arange(NY * NX, dtype=float).reshape(NY, NX)
    return Replay(
        [Field(1e-9 * heights_nm, (y, x), "m", "height"), Field(phase, (y, x), "rad", "phase")],
        **options,
    )


def feedback(inst, **options):
    gains = {"proportional": 0.05, "integral": 1e-3, "set_point": 1e-9, **options}
    return Feedback(inst, ["height"], **gains)


def drifting(inst, **options):
    return Drifting(inst, KEY, **{"velocity": (1e-9, -2e-9), "margin": 1e-9, **options})


def stack(inst, seconds=1e-6, **drift):
    inst = Dilated(drifting(inst, **drift), PARABOLOID, ["height"])
    inst = LineOffsets(feedback(inst), KEY, {"height": 1e-11})
    return Latency(Noisy(inst, KEY, {"height": 1e-11}), seconds)


def far():
    return Replay(fields(), rate=1e-6, seconds=0.1)


LAYERS = {
    "noisy": lambda: Noisy(far(), KEY, {"height": 1.0, "loop": 0.1}),
    "noisy twin": lambda: Noisy(simulated(), KEY, {"response": 0.1}),
    "line offsets": lambda: LineOffsets(far(), KEY, {"height": 1.0}),
    "dilated": lambda: Dilated(far(), PARABOLOID, ["height"]),
    "feedback": lambda: feedback(far()),
    "drifting": lambda: drifting(far(), walk=1e-9),
    "latency": lambda: Latency(far(), 1e-3),
    "latency, long": lambda: Latency(simulated(), 0.2),
    "all": lambda: Guard(stack(far())),
}


@pytest.mark.parametrize("name", LAYERS)
def test_conformance(name):
    found = check_instrument(LAYERS[name]())
    assert len(found.rows) == 9 and all(f == "" or "skipped" in f for _, f in found.rows)


@pytest.mark.parametrize("count", [2000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_proposals_through_all_layers(count):
    inner = Watched()
    guard = Guard(stack(inner, 0.0), LIMITS)
    rng = np.random.default_rng(0)
    arrived = 0
    for _ in range(count):
        names = rng.permutation(["x", "y", "z"])[: rng.integers(1, 4)]
        proposal = {str(n): float(rng.uniform(-3e-6, 3e-6)) for n in names}
        if rng.random() < 0.5:
            proposal = {n: abs(v) / 3 for n, v in proposal.items() if n != "z"} or {"x": 5e-7}
        if rng.random() < 0.05:
            proposal[str(names[0])] = float(rng.choice([np.nan, np.inf, -np.inf]))
        inner.sent.clear()
        axes = guard.axes
        if all(n in axes and axes[n].lo <= v <= axes[n].hi for n, v in proposal.items()):
            found = guard.move(proposal)
            assert {n: found[n] for n in proposal} == proposal and inner.sent == [proposal]
            arrived += 1
        else:
            with pytest.raises(LimitError):
                guard.move(proposal)
            assert inner.sent == []
    assert 0.1 * count < arrived < 0.9 * count


# --- noise and lines ------------------------------------------------------------------------------


def test_noise_is_as_large_as_it_says_and_only_where_it_says():
    plain, noisy = image().acquire("image", FRAME), Noisy(image(), KEY, {"height": 2e-10})
    first, second = (noisy.acquire("image", FRAME) for _ in range(2))
    noise = first.data["height"] - plain.data["height"]
    assert noise.std() == pytest.approx(2e-10, rel=0.05) and abs(noise.mean()) < 2e-11
    assert np.abs(np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]) < 0.05
    np.testing.assert_array_equal(first.data["phase"], plain.data["phase"])
    assert np.all(first.data["height"] != second.data["height"])
    for part in ("dims", "units", "at"):
        assert getattr(first, part) == getattr(plain, part)
    np.testing.assert_array_equal(first.coords["x"][0], plain.coords["x"][0])


@pytest.mark.parametrize("kind", [Noisy, LineOffsets])
def test_lots_are_decided_by_the_key_and_the_count(kind):
    one, two = (kind(image(), KEY, {"height": 1e-10}) for _ in range(2))
    for _ in range(3):
        expected = one.acquire("image", FRAME).data["height"]
    two.count = 2  # as after a restart
    np.testing.assert_array_equal(two.acquire("image", FRAME).data["height"], expected)
    other = kind(image(), jax.random.key(8), {"height": 1e-10})
    other.count = 2
    assert np.all(other.acquire("image", FRAME).data["height"] != expected)


def test_layers_of_one_key_draw_lots_of_their_own():
    path, plain = FRAME.points()[3], image().acquire("line", FRAME.points()[3]).data["height"]
    first = [
        (kind(image(), KEY, {"height": 1e-10}).acquire("line", path).data["height"] - plain)[0]
        for kind in (Noisy, LineOffsets)
    ]
    assert abs(first[0] - first[1]) > 1e-12


def test_lines_lie_at_heights_of_their_own():
    plain, inst = image(), LineOffsets(image(), KEY, {"height": 5e-10})
    offsets = []
    for _ in range(5):
        moved = (
            inst.acquire("image", FRAME).data["height"]
            - plain.acquire("image", FRAME).data["height"]
        )
        np.testing.assert_allclose(moved, np.tile(moved[:, :1], (1, NX)), atol=1e-22)
        offsets.append(moved[:, 0])
    assert np.std(offsets) == pytest.approx(5e-10, rel=0.2)
    path = FRAME.points()[3]
    moved = inst.acquire("line", path).data["height"] - plain.acquire("line", path).data["height"]
    assert np.ptp(moved) < 1e-22 and abs(moved[0]) > 1e-12


# --- the tip --------------------------------------------------------------------------------------


def test_a_spike_shows_the_tip():
    heights = np.zeros((NY, NX))
    heights[20, 30] = 50.0
    tip = FreeForm(np.array([[-4.0, -2.0, -1.0], [-5.0, 0.0, -3.0], [-6.0, -7.0, -8.0]]), 1.0)
    record = Dilated(image(heights), tip, ["height"]).acquire("image", FRAME)
    expected = np.zeros((NY, NX))
    expected[19:22, 29:32] = 50.0 + np.asarray(tip())[::-1, ::-1]  # I(x) = S(x + u) + T(u)
    np.testing.assert_allclose(1e9 * record.data["height"], expected, atol=1e-7)
    np.testing.assert_array_equal(record.data["phase"].ravel(), np.arange(NY * NX))


def test_the_tip_is_resampled_to_the_pixels_of_the_frame():
    wide = Frame(FRAME.center, FRAME.size, (NY // 2, NX // 3))
    heights = image().acquire("image", wide).data["height"]
    found = Dilated(image(), PARABOLOID, ["height"]).acquire("image", wide).data["height"]
    expected = dilate(jnp.asarray(1e9 * heights), PARABOLOID.resample([2.0, 3.0])())
    np.testing.assert_allclose(1e9 * found, expected, atol=1e-7)
    assert np.all(found >= heights)


def test_a_tip_larger_than_the_frame():
    line = Frame(FRAME.center, (5e-9, 1e-9), (1, 5))
    found = Dilated(image(), PARABOLOID, ["height"]).acquire("image", line).data["height"]
    heights = 1e9 * image().acquire("image", line).data["height"][0]
    x = np.arange(5)
    expected = (heights - (x[:, None] - x) ** 2 / 16.0).max(axis=1)
    np.testing.assert_allclose(1e9 * found[0], expected, atol=1e-7)


def test_what_a_tip_cannot_measure():
    inst = Dilated(image(), PARABOLOID, ["height"])
    assert list(inst.modes) == ["image"]
    assert list(Dilated(far(), PARABOLOID, ["height"]).modes) == ["image", "spectrum"]
    with pytest.raises(LimitError, match="no mode 'line'"):
        inst.acquire("line", FRAME.points()[0])
    with pytest.raises(LimitError, match=r"turned by 0\.1 rad"):
        inst.acquire("image", Frame(FRAME.center, (1e-8, 1e-8), (3, 3), angle=0.1))


# --- the loop -------------------------------------------------------------------------------------


def test_heights_as_the_loop_follows_them():
    record = feedback(image(), samples_per_pixel=4).acquire("image", FRAME)
    heights = jnp.asarray(1e9 * image().acquire("image", FRAME).data["height"])
    expected = trace_and_retrace(heights, 0.05, 1e-3, 1.0, samples_per_pixel=4)
    for name, z in zip(("height", "height retrace"), expected, strict=True):
        np.testing.assert_allclose(1e9 * record.data[name], z - 1.0, atol=1e-9)
        assert record.units[name] == "m" and record.dims[name] == ("y", "x")
    np.testing.assert_array_equal(record.data["phase"].ravel(), np.arange(NY * NX))


def test_it_is_the_loop_of_the_inverse_problem():
    record = feedback(image(), samples_per_pixel=4).acquire("image", FRAME)
    surface = 1e9 * image().acquire("image", FRAME).data["height"]
    problem = gains_problem.problem(1, NY, NX, 0.05, 1e-3, 1.0, 4)
    both = problem.at({"forward.surface_nm": surface[None]}).forward(jnp.arange(1))[0]
    for name, heights in zip(("height", "height retrace"), both, strict=True):
        np.testing.assert_allclose(1e9 * record.data[name], heights, atol=1e-9)


def test_points_are_settled_and_paths_are_lines():
    inst = feedback(image())
    rows = inst.acquire("image", FRAME)
    path = inst.acquire("line", FRAME.points()[5])
    for name in ("height", "height retrace"):
        np.testing.assert_allclose(path.data[name], rows.data[name][5], atol=1e-18)
        assert path.dims[name] == ("along",)
    point = inst.acquire("pixel")
    assert point.data == image().acquire("pixel").data and set(point.data) == {"height", "phase"}
    single = inst.acquire("line", FRAME.points()[5, :1])
    np.testing.assert_allclose(single.data["height retrace"], rows.data["height"][5, :1], atol=1e-9)


# --- drift ----------------------------------------------------------------------------------------


def analytic(**options):
    """Says where on the sample it stands."""
    axes = {n: Axis("m", -1e-6, 1e-6, **options) for n in ("x", "y")}
    return Function(lambda x, y: 1e6 * x + 1e9 * y, axes, seconds=2.0)


def test_a_point_shows_what_lies_there_by_now():
    inst = drifting(analytic(rate=1e-7, settle=0.5))
    before = inst.acquire("measure")
    inst.move({"x": 2e-7, "y": 1e-7})
    record = inst.acquire("measure")
    assert inst.read() == {"x": 2e-7, "y": 1e-7}
    t = 2.0 + 2e-7 / 1e-7 + 0.5 + 1.0  # the first, travel along x, half of the second
    sample = 2e-7 - 1e-9 * t, 1e-7 + 2e-9 * t
    assert float(record.data["y"]) == pytest.approx(1e6 * sample[0] + 1e9 * sample[1])
    assert record.at == pytest.approx({"x": 2e-7, "y": 1e-7})
    assert before.meta["drifting"]["seconds"] == 2.0
    assert record.meta["drifting"] == {"seconds": t + 1.0, "place": {"x": 2e-7, "y": 1e-7}}


def test_a_step_moves_with_the_sample_along_a_frame():
    """The step stands at 20 nm; the frame takes 2.4 s, its lines 60 ms each."""
    heights = np.tile(np.arange(NX) >= 20, (NY, 1)).astype(float)
    inner = Frame((30e-9, 20e-9), (30e-9, 20e-9), (NY, NX), dwell=1e-3)
    for speed in (2.5e-9, -0.9e-9):
        inst = drifting(image(heights), velocity=(speed, 0.0), margin=9e-9)
        for begun in (0.0, 2.4):
            record = inst.acquire("image", inner)
            assert record.dims["height"] == ("y", "x")
            np.testing.assert_array_equal(record.coords["x"][0], inner.points()[0, :, 0])
            where = record.coords["x"][0][np.argmax(record.data["height"] > 0, axis=1)]
            lines = begun + 0.06 * np.arange(NY)  # up to a line of 60 ms and a pixel of 0.5 nm
            assert np.abs(where - (20e-9 + speed * lines)).max() < 0.8e-9


def test_lines_are_met_sooner_or_later_as_the_sample_moves_across_them():
    heights = np.tile((np.arange(NY) >= 20)[:, None], (1, NX)).astype(float)
    inner = Frame((30e-9, 20e-9), (30e-9, 20e-9), (20, NX), dwell=1e-3)
    inst = drifting(image(heights), velocity=(0.0, 4e-9), margin=10e-9)
    height = inst.acquire("image", inner).data["height"]
    # y - 4 nm/s t = 20 nm with t = 60 ms a line of 1 nm: y - 10 nm = 10 / (1 - 0.24)
    assert abs(int(np.argmax(height[:, 0] > 0)) - 10 / 0.76) < 1.0


def test_a_path_keeps_the_places_it_was_asked_for():
    inst, path = drifting(image(), margin=1e-9), FRAME.points()[5, 5:40:5]
    record = inst.acquire("line", path)
    np.testing.assert_allclose(record.coords["along"][0], 5e-9 * np.arange(7), rtol=1e-7)
    np.testing.assert_array_equal(
        record.data["height"], image().acquire("line", path).data["height"]
    )  # no time has gone by: the mode takes none


def test_the_random_walk_is_one_walk_and_as_wide_as_it_says():
    inst = drifting(image(), velocity=(0.0, 0.0), walk=2e-9, margin=1e-9)
    early = inst.drift(np.array([0.0, 3.0, 7.5]))
    inst.drift(np.array([5000.0]))
    again = drifting(image(), velocity=(0.0, 0.0), walk=2e-9, margin=1e-9)
    np.testing.assert_array_equal(again.drift(np.array([0.0, 3.0, 7.5, 900.0]))[:3], early)
    assert np.all(early[0] == 0.0)
    long = inst.drift(np.arange(40_000.0))
    for lag in (1, 25):
        steps = long[lag::lag] - long[:-lag:lag]
        np.testing.assert_allclose(steps.std(axis=0), 2e-9 * np.sqrt(lag), rtol=0.05)
    assert abs(np.corrcoef(np.diff(long, axis=0).T)[0, 1]) < 0.02


def test_what_has_drifted_away_is_refused():
    inner, clock = Watched(), [0.0]  # a measurement takes 1 s
    inst = drifting(inner, velocity=(4e-7, 0.0), margin=3e-7, clock=lambda: clock[0])
    assert inst.axes["x"].lo == 3e-7 and inst.axes["y"].hi == pytest.approx(6e-7)
    inst.move({"x": 4e-7})
    inst.acquire("pixel")
    clock[0] = 1.0
    inner.sent.clear()
    with pytest.raises(LimitError, match="drifted, and x from -2e-07 to -2e-07 m of it is outside"):
        inst.acquire("pixel")
    assert inner.sent == [] and inst.read()["x"] == 4e-7
    inst.move({"x": 8e-7})
    lies = inner.acquire("line", np.array([[2e-7, inst.read()["y"]]])).data["height"]
    assert inst.acquire("pixel").data["height"] == lies[0]


# --- after a break --------------------------------------------------------------------------------


def campaign(folder, resume=False):
    inst = drifting(far(), walk=3e-8, margin=2e-7)
    inst = Noisy(LineOffsets(inst, KEY, {"height": 1e-9}), KEY, {"height": 1e-9})
    journal = Journal(folder, {}, resume=resume)
    policy = RandomPolicy(inst.axes, seed=1)
    return journal, Campaign(
        Guard(inst), policy, "pixel", lambda r: float(r.data["height"]), journal
    )


def test_a_campaign_goes_on_with_its_noise_and_its_drift(tmp_path):
    journal, whole = campaign(tmp_path / "whole")
    with journal:
        whole.run(8)
    for points in (3, 8):
        journal, broken = campaign(tmp_path / "broken", resume=points > 3)
        with journal:
            broken.run(points)
    assert broken.points == whole.points
    assert len({p["y"] for p in whole.points}) == 8


def test_a_drift_that_was_not_there_before():
    with pytest.raises(InstrumentError, match="measured without this drift"):
        drifting(far()).go_on_from(far().acquire("pixel"))


# --- late answers ---------------------------------------------------------------------------------


def test_answers_come_late_and_cost_what_they_take():
    inst = Latency(analytic(settle=0.5), 0.05)
    for act in (lambda: inst.move({"x": 1e-7}), lambda: inst.acquire("measure")):
        begun = time.perf_counter()
        act()
        assert time.perf_counter() - begun > 0.045
    assert inst.modes["measure"].cost()[0] == pytest.approx(2.05)
    assert inst.axes["x"].settle == pytest.approx(0.55)


def test_stop_ends_the_waiting():
    inst = Latency(analytic(), 30.0)
    threading.Timer(0.05, inst.stop).start()
    begun = time.perf_counter()
    with pytest.raises(Aborted, match="stopped before it began"):
        inst.move({"x": 1e-7})
    assert time.perf_counter() - begun < 10.0 and inst.read()["x"] == 0.0


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Noisy(image(), KEY, {"heigth": 1.0}), "no channel 'heigth'.*nearest: height"),
        (lambda: Noisy(image(), KEY, {"height": -1.0}), "height = -1.0: must be a number from 0"),
        (lambda: LineOffsets(image(), KEY, {"height": np.nan}), "height = nan"),
        (lambda: Dilated(image(), PARABOLOID, ["phase"]), "phase is in 'rad'; heights are in m"),
        (lambda: feedback(image(), integral=np.inf), "integral = inf: must be a number from 0 on"),
        (lambda: drifting(image(), velocity=(np.nan, 0.0)), "speed = nan"),
        (lambda: drifting(image(), walk=-1.0), "walk = -1.0"),
        (lambda: drifting(simulated()), "it has no x, y to drift along"),
        (lambda: drifting(Dilated(image(), PARABOLOID, ["height"])), "no mode goes over paths"),
        (lambda: Latency(image(), -1.0), "seconds = -1.0"),
    ],
)
def test_what_cannot_be_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_margin_that_leaves_nothing():
    with pytest.raises(LimitError, match="limits of x from"):
        drifting(image(), margin=1e-6)
