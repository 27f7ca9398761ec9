"""Several outcomes of one measurement, and rules on settings."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from micjax.active.acquire.hypervolume import boxes_beyond, log_expected_hypervolume
from micjax.active.campaign import Campaign
from micjax.active.learner.learner import Learner
from micjax.active.learner.space import SearchAxis, Space
from micjax.active.outcomes import Outcomes, Wish
from micjax.instruments import Axis, Function, Journal
from micjax.run.folder import RunFolder
from micjax.run.jobs.explore import Exploration
from micjax.run.jobs.explore_report import conclude
from micjax.run.plans.plan import make_plan, read_plan
from micjax.run.status import status

GRID = np.stack(np.meshgrid(np.linspace(0, 1, 7), np.linspace(0, 1, 7)), -1).reshape(-1, 2)
AXES = [SearchAxis("u"), SearchAxis("v")]
LIST = Space(AXES, GRID)
FRONT = {"cost": {"goal": "minimise"}}


def both(point):
    """Two bowls of different places: the front is the line between them."""
    u, v = point["u"], point["v"]
    return {"y": -((u - 0.2) ** 2) - (v - 0.5) ** 2, "cost": (u - 0.8) ** 2 + (v - 0.5) ** 2}


def explored(learner, count, measure=both, scale=1.0):
    while len(learner.values) < count:
        told = [p | {n: scale * y for n, y in measure(p).items()} for p in learner.suggest(1)]
        learner.ingest(told)
    return learner


# --- rules -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("u + w <= 1", "'w'"),
        ("u + v", "no comparison"),
        ("__import__('os') <= 1", "'__import__'|holds a|functions"),
        ("u.real <= 1", "holds a Attribute"),
        ("u <=", "cannot be read"),
        ("abs(u, v) < 1", "of one"),
        ("u + v <= -1", "allow no setting"),
        ("u == v", "holds a Eq"),
        ("+" * 1000 + "u < 1", "at most 500"),
    ],
)
def test_rules_that_cannot_be_kept_are_refused(rule, message):
    with pytest.raises(ValueError, match=message):
        Space(AXES, rules=[rule])


def test_a_function_as_a_rule_says_true_or_false_of_each_setting():
    with pytest.raises(ValueError, match="true or false for each"):
        Space(AXES, rules=[lambda u, v: u + v])
    with pytest.raises(ValueError, match="a rule on settings fails"):
        Space(AXES, rules=[lambda w: w < 1.0])


@pytest.mark.parametrize("rule", ["0.2 <= u * v + abs(u - v)**2 <= 0.5", lambda u, v: u + v < 0.6])
def test_nothing_is_suggested_that_a_rule_forbids(rule):
    listed = Space(AXES, GRID, rules=[rule])
    learner = explored(Learner(listed, seed=1, initial=4), 8, lambda p: {"y": p["u"] + p["v"]})
    assert listed.allowed(learner.data[0]).all()
    sequence = Learner(Space(AXES, rules=[rule]), initial=20).suggest(20)
    assert listed.allowed(np.array([[p["u"], p["v"]] for p in sequence])).all()


def test_in_a_box_the_search_stays_on_the_allowed_side():
    space = Space([SearchAxis("u")], rules=["u <= 0.37"])
    learner = explored(Learner(space, initial=3), 6, lambda p: {"y": p["u"]})
    best = learner.data[0].max()
    assert 0.36 < best <= 0.37


def test_a_seed_that_a_rule_forbids_is_refused_and_a_readback_is_not():
    space = Space(AXES, rules=["u + v <= 1"])
    learner = Learner(space)
    with pytest.raises(ValueError, match=r"'u': 0.9, 'v': 0.9.* rule is u \+ v <= 1"):
        learner.register_suggestions([{"u": 0.1, "v": 0.1}, {"u": 0.9, "v": 0.9}])
    with pytest.raises(ValueError, match="not allowed"):
        learner.ingest([{"u": 0.9, "v": 0.9, "y": 1.0}])
    assert not len(learner.values)
    assert not learner._pending
    (known,) = learner.register_suggestions([{"u": 0.5, "v": 0.5}])
    learner.ingest([known | {"u": 0.5001, "y": 1.0}])  # where the instrument arrived
    assert len(learner.values) == 1


# --- what is wanted ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"drift": {}}, "neither a goal nor"),
        ({"drift": {"at_mots": 1.0}}, "at_most"),
        ({"drift": {"at_least": 2.0, "at_most": 1.0}}, "is not below"),
        ({"drift": {"at_most": np.nan}}, "finite"),
        ({"u": {"at_most": 1.0}}, "taken"),
        ({"drift": {"goal": "map"}}, "maximise, minimise"),
        ({"y": {"goal": "minimise"}}, "the goal of 'y'"),
        ({"drift": {"at_most": 1.0, "reference": 1.0}}, "reference"),
        ({n: {"goal": "minimise"} for n in "abc"}, "4 objectives"),
    ],
)
def test_wishes_that_do_not_fit_are_refused(wanted, message):
    with pytest.raises(ValueError, match=message):
        Learner(LIST, outcomes=wanted)


def test_what_cannot_be_weighed_is_refused():
    limit = {"drift": {"at_most": 1.0}}
    with pytest.raises(ValueError, match="cannot be weighed by limits"):
        Learner(LIST, outcomes=limit, acquisition="ucb")
    with pytest.raises(ValueError, match="beside other objectives"):
        Learner(LIST, goal="map", outcomes=FRONT)
    with pytest.raises(ValueError, match="tolerance"):
        Learner(LIST, outcomes=FRONT, tolerance=0.1)
    with pytest.raises(ValueError, match="several objectives"):
        Learner(LIST, acquisition="hypervolume")


def test_a_point_needs_all_outcomes_and_has_failed_without_one_number():
    learner = Learner(LIST, outcomes=FRONT)
    with pytest.raises(ValueError, match="no outcome 'cost'"):
        learner.ingest([{"u": 0.0, "v": 0.0, "y": 1.0}])
    with pytest.raises(ValueError, match="cost_sd"):
        learner.ingest([{"u": 0.0, "v": 0.0, "y": 1.0, "cost": 1.0, "cost_sd": -1.0}])
    learner.ingest([{"u": 0.0, "v": 0.0, "y": 1.0, "cost": np.nan}])
    assert not len(learner.values)
    assert learner._failures == [(0.0, 0.0)]


def test_fronts_and_volumes_by_hand():
    outcomes = Outcomes("y", "maximise", {"cost": Wish("minimise"), "drift": {"at_most": 1.0}})
    values = np.array([[1.0, 1.0, 0.0], [2.0, 3.0, 0.0], [0.5, 2.0, 0.0], [9.0, 0.0, 2.0]])
    assert outcomes.feasible(values).tolist() == [True, True, True, False]
    assert outcomes.front(values).tolist() == [0, 1]
    assert np.allclose(outcomes.reference(values), [0.9, 3.2])
    assert np.allclose(outcomes.volumes(values), [0.1 * 2.2, 0.42, 0.42, 0.42])
    assert "front has 2 points" in outcomes.told(values)[1]
    assert "3 of 4 points are feasible: drift at most 1." in outcomes.told(values)[0]


@pytest.mark.parametrize("objectives", [2, 3])
def test_expected_hypervolume_against_draws(objectives):
    rng = np.random.default_rng(objectives)
    front, reference = rng.uniform(size=(4, objectives)), np.full(objectives, -0.2)
    mean, sd = rng.uniform(size=objectives), np.full(objectives, 0.4)
    boxes = boxes_beyond(front[None], reference)
    with jax.enable_x64(True):
        log_value = log_expected_hypervolume(
            [jnp.full((1, 1), m) for m in mean],
            [jnp.full((1, 1), s) for s in sd],
            [jnp.zeros(1)] * objectives,
            boxes,
        )
    quantiles = (np.arange(200_000) + 0.5) / 200_000
    draws = np.stack(
        [m + s * norm.ppf(rng.permutation(quantiles)) for m, s in zip(mean, sd, strict=True)], -1
    )
    low, high = boxes.lower[0][:, None], boxes.upper[0][:, None]
    sides = np.maximum(np.minimum(draws, high) - low, 0.0)
    expected = np.mean(np.sum(np.prod(sides, axis=-1), axis=0))
    assert np.exp(log_value[0]) == pytest.approx(expected, rel=0.01)


# --- searches ----------------------------------------------------------------------------------


def test_the_front_is_found_on_a_list_whatever_the_units():
    def searched(scale):
        wanted = {"y": {"reference": -scale}, "cost": {"goal": "minimise", "reference": scale}}
        return explored(Learner(LIST, outcomes=wanted, seed=2), 16, scale=scale)

    learner = searched(1.0)
    truth = np.array([[*both({"u": u, "v": v}).values()] for u, v in GRID])
    whole = {tuple(GRID[i]) for i in learner.outcomes.front(truth)}
    front = {(p["u"], p["v"]) for _, p, _ in learner.get_best_points()}
    assert len(front & whole) >= len(whole) - 1
    assert np.array_equal(searched(1e9).data[0], learner.data[0])


def test_a_limit_is_learnt_and_the_best_is_feasible():
    wanted = {"drift": {"at_most": 0.5}}

    def measure(point):
        return {"y": point["u"] + 0.1 * point["v"], "drift": point["u"]}

    learner = explored(Learner(LIST, outcomes=wanted, seed=3), 14, measure)
    ((_, settings, outcomes),) = learner.get_best_points()
    assert settings == {"u": 0.5, "v": 1.0}
    assert outcomes["drift"] <= 0.5


def test_where_nothing_is_feasible_the_search_goes_to_where_it_may_be():
    def measure(point):
        return {"y": point["u"], "drift": 2.0 + (point["u"] - 1.0) ** 2 + (point["v"] - 1.0) ** 2}

    learner = explored(Learner(LIST, outcomes={"drift": {"at_most": 1.0}}, seed=3), 10, measure)
    assert learner.get_best_points() == []
    assert learner.leading.tolist() == [1.0, 1.0]
    assert "0 of 10 points are feasible" in learner.outcomes.told(learner.values)[0]
    assert learner.should_stop() == (False, None)


def test_a_checkpoint_leads_to_the_same_suggestions(tmp_path):
    def made(**changed):
        file = tmp_path / "state.json"
        return Learner(LIST, outcomes=FRONT | changed, file=file, seed=1)

    learner = explored(made(), 8)
    learner.checkpoint()
    again = made()
    again.restore()
    assert np.array_equal(again.told, learner.told, equal_nan=True)
    assert again.suggest(2) == learner.suggest(2)
    with pytest.raises(ValueError, match="other outcomes"):
        made(cost={"goal": "maximise"}).restore()


# --- campaigns and plans -----------------------------------------------------------------------


def test_a_campaign_learns_several_outcomes_of_a_record(tmp_path):
    axes = {"u": Axis("", 0.0, 1.0), "v": Axis("", 0.0, 1.0)}

    def campaign(journal):
        instrument = Function(lambda **at: both(at), axes, channels={"y": "", "cost": ""})
        learner = Learner(LIST, outcomes=FRONT)

        def reduce(record):
            return {"y": float(record.data["y"]), "cost": (float(record.data["cost"]), 0.1)}

        return learner, Campaign(instrument, learner, "measure", reduce, journal)

    with Journal(tmp_path, {}) as journal:
        learner, first = campaign(journal)
        first.run(3)
    with Journal(tmp_path, {}, resume=True) as journal:
        again, _ = campaign(journal)
    assert np.array_equal(again.told, learner.told, equal_nan=True)
    assert again.told[0, 1, 1] == 0.1


PLAN = """
kind: explore
measure: twoways:measured
axes: {u: {lower: 0.0, upper: 4.0, whole: true}, v: {lower: 0.0, upper: 4.0, whole: true}}
rules: ["u + v <= 6"]
outcome: gain
outcomes:
  dose: {goal: minimise, reference: 9.0}
  drift: {at_most: 0.9}
initial: 4
budget: 6
"""
CODE = """
def measured(u, v):
    return {"gain": u, "dose": 0.5 * u**2 + v, "drift": 0.1 * u * v}
"""


def test_a_plan_with_rules_limits_and_two_objectives(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "twoways.py").write_text(CODE)
    (tmp_path / "plan.yaml").write_text(PLAN)
    plan = make_plan(read_plan(tmp_path / "plan.yaml"), "plan.yaml")
    with Exploration(plan, tmp_path / "run", trusted=None) as exploration:
        exploration.run()
        solution = conclude(exploration, RunFolder(tmp_path / "run"), {})
    said = " ".join(status(tmp_path / "run"))
    assert "points are feasible: drift at most 0.9" in said
    assert "hypervolume" in said
    assert (exploration.learner.data[0].sum(axis=1) <= 6).all()
    assert solution.metrics["hypervolume"] > 0.0
    assert {"gain", "dose", "drift"} <= set(solution.table[0])
    header = (tmp_path / "run" / "measurements.csv").read_text().splitlines()[0]
    assert header.endswith("dose,drift,feasible,on_front")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "The front" in page
    with Exploration(plan, tmp_path / "run", resume=True, trusted=None) as again:
        assert np.array_equal(again.learner.told, exploration.learner.told, equal_nan=True)
    lines = (tmp_path / "run" / "journal.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["configuration"]["rules"] == ["u + v <= 6"]


def test_plans_with_wrong_outcomes_say_so():
    wrong = {"kind": "explore", "measure": "a:b", "outcomes": {"dose": {"at_mots": 1.0}}}
    with pytest.raises(ValueError, match=r"outcomes.dose.*at_most"):
        make_plan(wrong, "plan")
