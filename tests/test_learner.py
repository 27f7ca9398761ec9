import json
import os
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest

from micjax.active.acquire.scalarise import scale_of
from micjax.active.identity import told_apart
from micjax.active.learner.belief import physical_model, plain_model
from micjax.active.learner.cost import Cost
from micjax.active.learner.learner import Learner
from micjax.active.learner.space import SearchAxis, Space
from micjax.problems import edge

GRID = np.stack(np.meshgrid(np.linspace(0, 1, 9), np.linspace(0, 1, 9)), -1).reshape(-1, 2)
BOX = Space([SearchAxis("u", 0.0, 1.0), SearchAxis("v", 0.0, 1.0)])


def hill(point):
    return float(np.exp(-8.0 * ((point["u"] - 0.7) ** 2 + (point["v"] - 0.2) ** 2)))


def explored(learner, count, measure=hill, batch=1):
    while len(learner.data[1]) < count:
        points = learner.suggest(batch)
        learner.ingest([{**p, "y": measure(p)} for p in points])
    return learner


def compilations(function):
    """How many programs XLA compiles while `function` runs."""
    events = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: events.append(name) if "backend_compile" in name else None
    )
    try:
        function()
    finally:
        jax.monitoring.clear_event_listeners()
    return len(events)


# --- axes and scales ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"u": 2.0, "v": 0.0}, r"axis u: 2  is outside \[0, 1\]"),
        ({"u": 0.5}, "the point has no v"),
        ({"u": "left", "v": 0.0}, "axis u: 'left' is no number"),
        ({"u": float("nan"), "v": 0.0}, "axis u"),
    ],
)
def test_points_off_the_axes_are_named(setting, message):
    with pytest.raises(ValueError, match=message):
        BOX.numbers(setting)


def test_axes_that_cannot_be():
    with pytest.raises(ValueError, match="empty"):
        SearchAxis("x", 1.0, 1.0)
    with pytest.raises(ValueError, match="not distinct"):
        SearchAxis("mode", categories=("a", "a"))
    with pytest.raises(ValueError, match="the name of an axis, 'v'"):
        Learner(BOX, outcome="v")
    with pytest.raises(ValueError, match="distinct names"):
        Space([SearchAxis("x"), SearchAxis("x")])
    with pytest.raises(ValueError, match="by this name a suggestion is known"):
        Space([SearchAxis("_id")])
    with pytest.raises(ValueError, match="candidate 0"):
        Space([SearchAxis("x")], np.array([[2.0]]))
    with pytest.raises(ValueError, match="no whole number"):
        SearchAxis("n", 0, 5, whole=True).number(1.5)


@pytest.mark.parametrize("kind", ["robust", "linear", "log", "likeliest", "none"])
def test_scales_are_monotone_and_come_back(kind):
    y = np.concatenate([np.random.default_rng(0).normal(size=50), [1e4]])
    y = np.exp(y / 5e3) if kind == "log" else y
    scale = scale_of(y, kind)
    np.testing.assert_allclose(scale.invert(scale.apply(y)), y, rtol=1e-9, atol=1e-9)
    assert (np.diff(scale.apply(np.sort(y))) > 0).all()
    step = 1e-6 * np.abs(y)
    slope = (scale.apply(y + step) - scale.apply(y - step)) / (2 * step)
    np.testing.assert_allclose(scale.log_slope(y), np.log(slope).sum(), rtol=1e-6, atol=1e-6)


def test_one_outlier_does_not_flatten_the_robust_scale():
    y = np.concatenate([np.linspace(0.0, 1.0, 20), [1e6]])
    assert np.ptp(scale_of(y, "robust").apply(y[:20])) > 0.3
    assert np.ptp(scale_of(y, "linear").apply(y[:20])) < 1e-5


def test_the_likeliest_scale_is_that_of_the_law_of_the_outcomes():
    z = np.random.default_rng(1).normal(size=200)
    assert scale_of(z, "likeliest").bend == "none"
    assert scale_of(np.exp(2.0 * z), "likeliest").bend == "log"
    assert scale_of(np.sinh(2.0 * z), "likeliest").bend == "arcsinh"
    with pytest.raises(ValueError, match="a logarithm wants positive ones"):
        scale_of(z, "log")


def test_constant_outcomes_have_a_scale():
    for kind in ("robust", "linear", "log", "likeliest"):
        assert np.isfinite(scale_of(np.full(5, 3.0), kind).apply(np.array([3.0, 4.0]))).all()


# --- suggestions -------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_finds_the_top_of_a_hill():
    learner = explored(Learner(BOX, seed=1), 18)
    (_, where, outcome), *_ = learner.get_best_points()
    assert outcome["y"] > 0.99
    assert abs(where["u"] - 0.7) < 0.03 and abs(where["v"] - 0.2) < 0.03
    minimum = explored(Learner(BOX, goal="minimise", seed=1), 18, lambda p: -hill(p))
    assert minimum.get_best_points()[0][2]["y"] < -0.99


SLOW = (pytest.param(n, marks=pytest.mark.slow) for n in ("pi", "uncertainty", "mes"))


@pytest.mark.parametrize("name", ["ucb", "thompson", *SLOW])
def test_every_acquisition_suggests_new_candidates(name):
    learner = explored(Learner(Space(BOX.axes, GRID), acquisition=name, initial=5), 8)
    points, _ = learner.data
    assert len({tuple(p) for p in points.tolist()}) == 8


def test_candidates_are_measured_once_each():
    space = Space(BOX.axes, GRID[:12])
    learner = explored(Learner(space, initial=5, goal="map"), 12)
    assert len({tuple(p) for p in learner.data[0].tolist()}) == 12
    assert learner.should_stop() == (True, "every candidate has been measured")
    with pytest.raises(ValueError, match="none of 12 candidates is feasible"):
        learner.suggest()


@pytest.mark.slow
def test_a_level_is_straddled():
    learner = explored(Learner(Space(BOX.axes, GRID), goal="level", level=0.5, initial=8), 24)
    _, y = learner.data
    assert np.abs(y[12:] - 0.5).mean() < np.abs(y[:8] - 0.5).mean()
    with pytest.raises(ValueError, match="needs the level"):
        Learner(BOX, goal="level")


@pytest.mark.slow
def test_a_batch_is_spread():
    learner = explored(Learner(BOX, seed=2), 8)
    points = learner.suggest(4)
    numbers = np.asarray([BOX.numbers(p) for p in points])
    apart = np.linalg.norm(numbers[:, None] - numbers, axis=-1)[np.triu_indices(4, 1)]
    assert apart.min() > 1e-6  # four times the best of one map would be one point
    assert len({p["_id"] for p in points}) == 4


@pytest.mark.slow
def test_whole_numbers_and_categories():
    axes = [
        SearchAxis("volts", -1.0, 1.0),
        SearchAxis("turns", 0, 6, whole=True),
        SearchAxis("mode", categories=("dart", "be", "ac")),
    ]

    def measure(point):
        bonus = {"dart": 0.0, "be": 1.0, "ac": 0.3}[point["mode"]]
        return bonus - (point["volts"] - 0.3) ** 2 - 0.1 * (point["turns"] - 4) ** 2

    learner = explored(Learner(Space(axes), seed=0), 16, measure)
    where = learner.get_best_points()[0][1]
    assert where["mode"] == "be" and where["turns"] == 4
    assert all(isinstance(p["turns"], int) for p in learner.suggest(2))
    with pytest.raises(ValueError, match="mode: 'stm'"):
        learner.ingest([{"volts": 0.0, "turns": 1, "mode": "stm", "y": 0.0}])


@pytest.mark.slow
def test_travel_is_saved_where_it_costs():
    space = Space(BOX.axes, GRID)
    rates = np.full(2, 0.1)

    def way(cost):
        learner = Learner(space, goal="map", initial=5, cost=cost)
        points = explored(learner, 16).data[0][5:]
        return np.abs(np.diff(points, axis=0)).max(axis=1).sum()

    assert way(Cost(rates, dwell_s=0.1)) < 0.6 * way(None)
    with pytest.raises(ValueError, match="cannot be weighed by seconds"):
        Learner(space, acquisition="ucb", cost=Cost(rates, dwell_s=0.1))


# --- failures and bad outcomes -----------------------------------------------------------------


def test_failures_keep_their_neighbourhood_away():
    def measure(point):
        return float("nan") if point["u"] > 0.6 else hill(point)

    learner = explored(Learner(Space(BOX.axes, GRID), seed=0), 14, measure)
    points, y = learner.data
    assert np.isfinite(y).all() and (points[:, 0] <= 0.6).all()
    # it looks beside the forbidden part and does not measure all of that
    assert points[8:, 0].max() > 0.4
    assert len(learner._failures) < 15


def test_registered_failures_are_not_suggested_again():
    learner = Learner(Space(BOX.axes, GRID[:10]), initial=5)
    failed = learner.suggest(3)
    learner.register_failures(failed)
    rest = explored(learner, 7)
    taken = {tuple(p) for p in rest.data[0].tolist()}
    assert not taken & {BOX.numbers(p) for p in failed}


@pytest.mark.slow
def test_a_wrong_point_leaves_the_learner_as_it_was():
    learner = explored(Learner(BOX), 6)
    with pytest.raises(ValueError, match="no outcome 'y'"):
        learner.ingest([{"u": 0.1, "v": 0.2, "y": 1.0}, {"u": 0.1, "v": 0.2}])
    with pytest.raises(ValueError, match="no number"):
        learner.ingest([{"u": 0.1, "v": 0.2, "y": "high"}])
    assert len(learner.data[1]) == 6


def test_data_count_as_much_as_their_errors_say(tmp_path):
    linear = plain_model(BOX, ("linear",))  # on a bent scale equal errors are not alike

    def told(sd_of_the_high_one, unit=1.0):
        learner = Learner(BOX, model=linear, file=tmp_path / "learner.json")
        rng = np.random.default_rng(0)
        near = [
            {"u": float(u), "v": float(v), "y": unit * 0.1 * float(rng.normal())}
            for u, v in GRID[::5]
        ]
        if sd_of_the_high_one is not None:
            near = [{**p, "y_sd": 0.1 * unit} for p in near]
            near[8] = {**near[8], "y": 3.0 * unit, "y_sd": sd_of_the_high_one * unit}
        else:
            near[8] = {**near[8], "y": 3.0 * unit}
        learner.ingest(near)
        return learner, float(learner.reckoned(GRID[40:41]).median[0]) / unit

    (doubtful, low), (_, high) = told(30.0), told(0.1)
    assert abs(low) < 0.3 and high > 1.0
    assert told(None)[1] == pytest.approx(high, rel=1e-3)  # all alike: as if none were known
    assert told(30.0, 1e9)[1] == pytest.approx(low, abs=1e-3)
    doubtful, _ = told(30.0)
    doubtful.checkpoint()
    again = Learner(BOX, model=linear, file=tmp_path / "learner.json")
    again.restore()
    np.testing.assert_allclose(again.reckoned(GRID), doubtful.reckoned(GRID), rtol=1e-9)
    for wrong, message in (
        ({"y_sd": -1.0}, "y_sd is -1; a standard deviation above 0"),
        ({"y_sd": float("nan")}, "y_sd is nan"),
        ({"sd": 1.0}, "part of a point 'sd'"),
    ):
        with pytest.raises(ValueError, match=message):
            again.ingest([{"u": 0.5, "v": 0.5, "y": 1.0} | wrong])
    assert len(again.data[1]) == len(doubtful.data[1])


# --- replay and protocol -----------------------------------------------------------------------


@pytest.mark.slow
def test_a_restored_learner_goes_on_as_the_first(tmp_path):
    file = tmp_path / "learner.json"
    first = explored(Learner(BOX, seed=3, file=file), 9)
    first.suggest(2)  # two are on their way
    first.checkpoint()
    second = Learner(BOX, seed=3, file=file)
    second.restore()
    assert second.suggest(2) == first.suggest(2)
    with pytest.raises(ValueError, match="other seed"):
        Learner(BOX, seed=4, file=file).restore()
    file.write_text(json.dumps({"format": "other"}))
    with pytest.raises(ValueError, match="no checkpoint of a learner"):
        second.restore()
    with pytest.raises(FileNotFoundError):
        Learner(BOX, file=tmp_path / "none.json").restore()


def test_numbers_of_numpy_are_kept_in_a_checkpoint(tmp_path):
    """Ids and settings that come back from a table, outcomes in float32."""
    axes = [
        SearchAxis("x", np.float32(-1.0), np.float32(1.0)),
        SearchAxis("n", np.int64(1), np.int64(9), whole=True),
        SearchAxis("mode", categories=tuple(np.array(["dart", "be"]))),
    ]
    options = {"file": tmp_path / "learner.json", "seed": np.int64(3), "budget": np.int64(9)}
    learner = Learner(Space(axes), initial=np.int64(3), level=np.float32(0.5), **options)
    for _ in range(3):
        point = {n: np.array([v])[0] for n, v in learner.suggest()[0].items()}
        learner.ingest([{**point, "y": np.float32(point["x"] ** 2)}])
    failed = learner.suggest()[0]
    learner.register_failures([{"_id": np.int64(failed["_id"])}])
    learner.suggest()
    learner.checkpoint()
    assert [f.name for f in tmp_path.iterdir()] == ["learner.json"]
    other = Learner(Space(axes), initial=3, level=np.float32(0.5), **options)
    other.restore()
    assert other.suggest() == learner.suggest()


def test_what_no_file_can_hold_is_refused_at_once():
    learner = Learner(BOX)
    with pytest.raises(ValueError, match="neither a text nor a number"):
        learner.ingest([{"_id": object(), "u": 0.1, "v": 0.2, "y": 1.0}])
    with pytest.raises(ValueError, match="neither texts nor numbers"):
        SearchAxis("mode", categories=(object(), object()))


SPACE = Space(BOX.axes, GRID)
OTHERS = {
    "axes": {"space": Space([SearchAxis("u", 0.0, 1.0), SearchAxis("v", 0.0, 2.0)], GRID)},
    "candidates": {"space": Space(BOX.axes, GRID * (1.0 - 1e-9))},
    "cost": {"cost": Cost(np.ones(2), 0.1, 0.5)},
    "model": {"model": plain_model(BOX, ("linear",))},
    "goal": {"goal": "minimise"},
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_checkpoint_of_another_experiment_is_refused(what, tmp_path):
    given = {"space": SPACE, "cost": Cost(np.ones(2), 0.1, 0.4), "file": tmp_path / "a.json"}
    Learner(**given).checkpoint()
    Learner(**given).restore()
    with pytest.raises(ValueError, match=f"other [a-z, ]*{what}[a-z, ]*: "):
        Learner(**(given | OTHERS[what])).restore()


@pytest.mark.slow
def test_what_a_checkpoint_says_of_a_model_is_the_same_in_another_process():
    program = (
        "from micjax.active.identity import told_apart\n"
        "from micjax.active.learner.belief import plain_model\n"
        "from micjax.active.learner.space import SearchAxis, Space\n"
        "axes = [SearchAxis(name, 0.0, 1.0) for name in 'uv']\n"
        "print(told_apart(plain_model(Space(axes))))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    out = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True)
    assert out.stdout.decode().strip() == told_apart(plain_model(BOX))
    assert told_apart(plain_model(BOX)) != told_apart(physical_model(BOX, edge.problem()))


def test_waiting_and_failed_points_compile_nothing():
    learner = Learner(BOX, seed=0)

    def step(count, fails=False):
        points = learner.suggest(count)
        if fails:
            return learner.register_failures(points)
        return learner.ingest([{**p, "y": hill(p)} for p in points])

    for count in (1, 1, 1, 1, 1, 1, 2, 1, 1, 1):
        step(count)
    step(1, fails=True)
    step(1)

    def later():
        step(3)
        step(1, fails=True)
        step(2)

    assert compilations(later) == 0


def test_a_candidate_that_comes_back_in_float32_is_measured():
    space = Space([SearchAxis("u", 0.0, 1.0)], np.linspace(0.0, 1.0, 11)[:, None])
    learner = Learner(space, initial=12)
    for _ in range(11):
        point = learner.suggest()[0]
        learner.ingest([{"_id": point["_id"], "u": float(np.float32(point["u"])), "y": 0.0}])
    assert learner.should_stop() == (True, "every candidate has been measured")
    assert space.numbers({"u": 0.30001}) == (0.30001,)  # somewhere else


@pytest.mark.slow
def test_suggestions_are_a_function_of_seed_and_data():
    runs = [explored(Learner(BOX, seed=s), 8).suggest()[0] for s in (5, 5, 6)]
    assert runs[0] == runs[1] != runs[2]


def test_the_protocol_of_bluesky_adaptive():
    protocols = pytest.importorskip("bluesky_adaptive.protocols")
    learner = Learner(BOX)
    for name in (
        "Optimizer",
        "Checkpointable",
        "TrialFaultAware",
        "SupportsStoppingCriteria",
        "CanRegisterSuggestions",
    ):
        assert isinstance(learner, getattr(protocols, name))


@pytest.mark.slow
def test_it_stops_on_budget_and_on_tolerance():
    learner = explored(Learner(BOX, budget=7), 7)
    assert learner.should_stop() == (True, "the budget of 7 measurements is used")
    assert Learner(BOX).should_stop() == (False, None)
    easy = explored(Learner(BOX, tolerance=0.01, seed=1), 25)
    stop, reason = easy.should_stop()
    assert stop and "expected at best" in reason


# --- predictions -------------------------------------------------------------------------------


@pytest.mark.slow
def test_predictions_cover():
    rng = np.random.default_rng(0)
    points = rng.uniform(size=(60, 2))
    y = np.sin(6.0 * points).sum(axis=1) + 0.1 * rng.normal(size=60)
    learner = Learner(BOX, outcome="signal")
    learner.ingest([{"u": a, "v": b, "signal": s} for (a, b), s in zip(points, y, strict=True)])
    test = rng.uniform(size=(500, 2))
    truth = np.sin(6.0 * test).sum(axis=1) + 0.1 * rng.normal(size=500)
    found = learner.predict(test)
    assert 0.85 < np.mean((found.lower < truth) & (truth < found.upper)) < 0.96


@pytest.mark.slow
def test_a_physical_model_learns_its_unknowns():
    space = Space([SearchAxis("x_nm", -5.0, 5.0)])
    truth = edge.problem(edge_nm=1.2, width_nm=0.6)
    model = physical_model(space, edge.problem(), y_scale=0.1)
    learner = Learner(space, goal="map", model=model, outcome="s", initial=6)
    rng = np.random.default_rng(1)
    for _ in range(12):
        point = learner.suggest()[0]
        signal = float(truth.forward(jax.numpy.asarray([point["x_nm"]]))[0])
        learner.ingest([{**point, "s": signal + 0.02 * rng.normal()}])
    mean = learner.belief.states[0].problem.forward.mean.forward
    assert abs(float(mean.edge_nm) - 1.2) < 0.1


def test_few_data_are_no_model():
    with pytest.raises(ValueError, match="two are needed"):
        Learner(BOX).predict(GRID)


@pytest.fixture(autouse=True)
def sobol_of_any_length():
    with warnings.catch_warnings():
        warnings.filterwarnings("error")
        yield


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"budget": -1}, "budget is -1; a whole number from 0 on"),
        ({"tolerance": np.nan}, "tolerance is nan: numbers from 0"),
        ({"initial": -1}, "initial is -1; a whole number"),
        ({"seed": -1}, "seed is -1: whole numbers from 0"),
        ({"outcome": ""}, "outcome is ''; a name"),
        ({"outcome": "_id"}, "outcome is '_id'; a name is needed, other than"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        Learner(Space([SearchAxis("v")]), **setting)


def test_only_whole_numbers_of_points_are_suggested():
    for count in (0, -1):
        with pytest.raises(ValueError, match="a whole number from 1 on is needed"):
            Learner(Space([SearchAxis("v")])).suggest(count)
