"""Plans, settings and runs from inside."""

import dataclasses
import json
import signal
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from micjax.inference.stage import Search, Stage
from micjax.io import Field, FieldAxis, read_nexus
from micjax.problems import edge
from micjax.report.text import describe_prior
from micjax.run import registry
from micjax.run.folder import RunFolder, open_folder
from micjax.run.info import extras
from micjax.run.jobs import execute
from micjax.run.jobs.job import prepare
from micjax.run.jobs.kinds import SolveRun
from micjax.run.lifecycle import begin
from micjax.run.logs import Asked, Logs
from micjax.run.plans.plan import make_plan, read_plan, with_settings
from micjax.run.plans.priors import parse_prior
from micjax.run.plans.settings import checked, settings_of, takes_anything
from micjax.run.plans.yamls import parse
from micjax.run.provenance import git_state

# --- plans -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, value",
    [
        *(("1e-3", 1e-3), ("-2E5", -2e5), ("1.5e3", 1500.0), (".5", 0.5), ("3.", 3.0)),
        *(("12", 12), ("1_000", 1000), ("null", None), ("true", True), ("e5", "e5")),
        *(("[1, 2e0]", [1, 2.0]), ("a.b", "a.b"), ("-", [None]), (".inf", float("inf"))),
    ],
)
def test_yaml_values(text, value):
    found = parse(text, "here")
    assert found == value and type(found) is type(value)


def test_set_goes_where_it_belongs():
    texts = ["engine.steps=50", "seed=3", "values.forward.tip.radius_nm=4", "pixel_nm=2"]
    texts += ["priors.noise.sigma=null", "options.seed=7", " engine.rate = 1e-2 ", "note=a=b"]
    given = {"problem": "tip", "engine": {"steps": 1, "starts": 2}, "options": None}
    plan = make_plan(with_settings(given, texts), "here")
    assert plan.engine == {"steps": 50, "starts": 2, "rate": 0.01} and plan.seed == 3
    assert plan.values == {"forward.tip.radius_nm": 4.0} and plan.priors == {"noise.sigma": None}
    assert plan.options == {"pixel_nm": 2, "seed": 7, "note": "a=b"}
    assert given["engine"] == {"steps": 1, "starts": 2}


@pytest.mark.parametrize("text", ["steps", "=3", "engine=3", "engine.=3", "priors", "x.y=3"])
def test_set_refuses(text):
    with pytest.raises(ValueError, match="--set|a table is wanted"):
        make_plan(with_settings({"problem": "edge"}, [text]), "here")


def test_a_plan_is_frozen():
    plan = make_plan({"problem": "edge"}, "here")
    with pytest.raises(ValueError, match="frozen"):
        plan.seed = 3


@pytest.mark.parametrize(
    "prior",
    [
        *("Normal(0, 5)", "LogNormal(2.3, 0.5)", "HalfNormal(0.1)", "Uniform(-1, 2.5)"),
        *("Gamma(2, 0.5)", "StudentT(4, 0, 1)", "Exponential(3)", "LogUniform(0.1, 10)"),
    ],
)
def test_priors_are_read_as_they_are_written(prior):
    found = parse_prior(prior)
    assert describe_prior(found) == prior
    assert describe_prior(found.expand((3, 2)).to_event(2)) == prior


def test_a_prior_may_name_its_arguments():
    prior = parse_prior("dist.Normal(loc=-1e0, scale=2)")
    assert float(prior.loc) == -1.0 and isinstance(prior, dist.Normal)


# --- YAML ----------------------------------------------------------------------------------------

BOMB = "a: &a [1, 1]\n" + "\n".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text, message",
    [
        (BOMB, "more than 50000 values, those of aliases included"),
        (BOMB.replace("[1, 1]", "{x: 1}").replace("[*", "{<<: [*").replace("]", "]}"), "aliases"),
        ("[" * 100_000, "more than 40 lists or mappings inside each other"),
        ("{a: " * 100_000, "more than 40 lists or mappings inside each other"),
        ("a: &a [1, *a]", r"\*a stands inside of what it stands for"),
        ("a: &a {b: *a}", r"\*a stands inside of what it stands for"),
        ("x" * 1_000_001, "1000001 characters; 1000000 are allowed"),
        ("[" + "1," * 60_000 + "]", "more than 50000 values"),
        ("seed: " + "9" * 5000, "a whole number of 5000 digits"),
        ("a: !!binary aGVsbG8=", "could not determine a constructor"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("{[1, 2]: 3}", "a key is one word"),
    ],
    ids=lambda text: text[:12],
)
def test_a_plan_that_would_never_end_is_one_line(text, message):
    began = time.monotonic()
    with pytest.raises(ValueError, match=message) as error:
        parse(text, "here")
    assert str(error.value).startswith("here") and "\n" not in str(error.value)
    assert time.monotonic() - began < 10.0


def test_yaml_as_its_users_mean_it():
    text = (
        "[1:30, 010, 1e-3, 1., .5, -1_000, 2026-11-28, 2026-99-99, 1.5e3, '12', +3, true, ~, .inf]"
    )
    expected = ["1:30", 10, 1e-3, 1.0, 0.5, -1000, "2026-11-28", "2026-99-99", 1.5e3, "12", 3]
    assert parse(text, "here") == [*expected, True, None, np.inf]


def test_an_alias_is_a_copy():
    given = parse("engine: &e {steps: 5}\noptions: *e", "here")
    given["engine"]["steps"] = 6
    assert given["options"] == {"steps": 5}


def test_a_plan_of_many_bytes_is_not_read(tmp_path):
    with open(tmp_path / "plan.yaml", "wb") as file:
        file.truncate(10**10)
    with pytest.raises(ValueError, match="10000000000 bytes are too many for a plan"):
        read_plan(tmp_path / "plan.yaml")


# --- settings ----------------------------------------------------------------------------------


def test_settings_are_read_off_a_function():
    def function(file, *, key, rate: float = 0.1, size=(1, 2), mode=None, **rest):
        """Something.

        **Arguments:**

        - `rate`: how fast, in
            1/s.
        - `size`, `mode`: both explained.

        **Returns:** nothing.
        """

    found = settings_of(function, skip=("key",))
    assert list(found) == ["rate", "size", "mode"] and takes_anything(function)
    assert found["rate"].text == "how fast, in 1/s."
    assert found["size"].text == found["mode"].text == "both explained."
    assert checked("setting", {"rate": 3, "size": [4, 5]}, found) == {"rate": 3.0, "size": (4, 5)}
    with pytest.raises(ValueError, match="setting 'rate' is 'fast'"):
        checked("setting", {"rate": "fast"}, found)


def test_a_default_of_none_may_be_given():
    def function(channel: str = None):
        pass

    assert checked("option", {"channel": None}, settings_of(function)) == {"channel": None}


@pytest.mark.parametrize(
    "default, good, bad",
    [
        (3, 4, "x"),
        (3, 1e3, 1.5),
        (3, 4, True),
        (0.5, 2, False),
        (0.5, 2, "x"),
        (0.5, [1, 2], None),
        (True, False, 7),
        ("a", "b", 1),
    ],
)
def test_the_kind_of_a_default(default, good, bad):
    def function(value=default):
        pass

    allowed = settings_of(function)
    assert checked("option", {"value": good}, allowed)["value"] == good
    with pytest.raises(ValueError, match="option 'value' is"):
        checked("option", {"value": bad}, allowed)


# --- problems from elsewhere -------------------------------------------------------------------


def toy(monkeypatch, **functions):
    """A module which is `edge` but for `functions`."""
    module = types.ModuleType("toy_problem", "A toy.")
    module.problem, module.example = edge.problem, edge.example
    for name, function in functions.items():
        setattr(module, name, function)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.__name__


def test_an_entry_point_is_a_problem(monkeypatch):
    name = toy(monkeypatch)

    class Point:
        def __init__(self, name, value):
            self.name, self.value = name, value

    points = [Point("mine", name), Point("edge", name), Point("gone", "no_such_package.x")]
    monkeypatch.setattr(registry.importlib.metadata, "entry_points", lambda group: points)
    assert registry.find("mine").reference == name and registry.find("mine").title == "A toy"
    assert registry.find("edge").reference == "micjax.problems.edge"
    with pytest.raises(ValueError, match="no_such_package"):
        registry.find("gone")
    listed = {p.name: p for p in registry.listed()}
    assert listed["edge"].functions == ("problem", "example") and "gone" in listed


def plan_of(tmp_path, problem, **plan):
    return make_plan({"problem": problem, "out": str(tmp_path / "r"), **plan}, "test")


def ran(tmp_path, problem, **plan):
    asked = Asked(["test"], Logs())
    run = SolveRun(plan_of(tmp_path, problem, **plan), asked)
    folder = open_folder(run.plan, run.name, run.inputs, False)
    try:
        return run.compute(folder, begin(run, folder, asked), False)
    finally:
        folder.unlock()


def searching(work):
    """The stages of an algorithm that is no descent: `work(problem)`, then nothing more."""

    def stages(problem, x, y, rate: float = 1.0, deep=True):
        """- `rate`: of learning."""
        return [Search(lambda problem, *_: work(problem, rate, deep))]

    return stages


def test_an_algorithm_of_its_own(tmp_path, monkeypatch, caplog):
    seen = {}

    def work(problem, rate, deep):
        seen.update(rate=rate, deep=deep)
        return {"count": 3}

    def conclude(solution, x, y):
        axes = (FieldAxis("x", np.arange(3.0), "nm"),)
        result = Field(np.arange(3.0), axes, "nm", "height", {"errors": np.ones(3)})
        return dataclasses.replace(
            solution,
            results={"height": result},
            metrics={**solution.metrics, "score": np.float64(0.5)},
            table=[{"method": "new", "error": 0.1}, {"method": "old", "note": "<b>"}],
            statements=["The height is known."],
            extra={"count": solution.fit.arrays["count"]},
        )

    def figures(solution, x, y, truth=None):
        raise KeyError("height")

    name = toy(monkeypatch, stages=searching(work), conclude=conclude, figures=figures)
    outcome = ran(tmp_path, name, engine={"rate": 3})
    folder = outcome.folder
    assert seen == {"rate": 3.0, "deep": True} and outcome.solution.extra["count"] == 3
    assert np.isfinite(outcome.solution.metrics["loss"]) and outcome.solution.fit.steps == 0
    assert (read_nexus(folder / "result.nxs")["height"].metadata["errors"] == 1).all()
    page = (folder / "report.html").read_text()
    assert "The height is known." in page and "&lt;b&gt;" in page and "score" in page
    assert "KeyError" in caplog.text and outcome.report is not None


def test_a_line_for_each_chunk(tmp_path, monkeypatch):
    asked = Asked(["test"], Logs())
    run = SolveRun(plan_of(tmp_path, toy(monkeypatch)), asked)
    folder = open_folder(run.plan, run.name, run.inputs, False)
    begin(run, folder, asked)
    on_chunk = execute._recorder(folder, time.monotonic())
    on_chunk(10, np.nan, {"a": jnp.asarray(2.5), "image": jnp.zeros(3)})
    (row,) = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert row["loss"] is None and row["steps"] == 10 and row["values"] == {"a": 2.5}


def test_a_solver_in_place_of_stages_is_refused(tmp_path, monkeypatch):
    def solve(problem, x, y, *, key, checkpoint):
        pass

    with pytest.raises(ValueError, match="solve is not called: write stages"):
        prepare(plan_of(tmp_path, toy(monkeypatch, solve=solve)))
    # one of another kind is the module's own business
    prepare(plan_of(tmp_path, toy(monkeypatch, solve=lambda matrix, vector: None)))


def test_stages_that_are_none(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="'Adam' is no stage"):
        ran(tmp_path, toy(monkeypatch, stages=lambda problem, x, y: ["Adam"]))


def test_a_conclusion_that_fails_does_not_cost_the_fit(tmp_path, monkeypatch, caplog):
    def stages(problem, x, y):
        return [Stage(steps=2)]

    outcome = ran(tmp_path, toy(monkeypatch, stages=stages, conclude=lambda *_: None))
    assert "no conclusion: TypeError: conclude gave a NoneType" in caplog.text
    assert outcome.solution.fit.steps == 2 and outcome.report is not None


def test_data_that_do_not_fit_the_problem(tmp_path, monkeypatch):
    def load(file, **anything):
        return {}, np.arange(4.0), np.arange(5.0)

    (tmp_path / "file").write_text("")
    name = toy(monkeypatch, load=load)
    with pytest.raises(ValueError, match="the problem does not fit the data"):
        plan = plan_of(tmp_path, name, file=str(tmp_path / "file"), options={"whatever": 1})
        prepare(plan)


# --- the folder --------------------------------------------------------------------------------


def interrupted(*_):
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_before_there_is_a_result(tmp_path, monkeypatch):
    outcome = ran(tmp_path, toy(monkeypatch, stages=searching(interrupted)))
    assert outcome.interrupted and outcome.solution is None
    assert outcome.folder.read_json("provenance.json")["status"] == "interrupted"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_after_the_fit(tmp_path, monkeypatch):
    name = toy(monkeypatch, stages=searching(lambda *_: {}), conclude=interrupted)
    outcome = ran(tmp_path, name)
    assert outcome.interrupted and outcome.report is not None


def test_changed_inputs_are_another_run(tmp_path, monkeypatch):
    def load(file, pixel_nm=1.0):
        return {}, *edge.example(jax.random.key(0))[1:]

    stages = searching(lambda *_: {})
    name, file = toy(monkeypatch, load=load, stages=stages), tmp_path / "scan"
    file.write_text("a")
    ran(tmp_path, name, file=str(file))
    ran(tmp_path, name, file=str(file))
    file.write_text("b")
    with pytest.raises(ValueError, match="the input files have another content"):
        ran(tmp_path, name, file=str(file))


def test_git_state(tmp_path):
    (tmp_path / "__init__.py").write_text("")
    assert git_state(tmp_path) is None


def test_extras_are_told_apart():
    assert extras()["test"] == "installed"


def test_one_run_at_a_time_in_a_folder(tmp_path):
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    first.lock()
    with pytest.raises(ValueError, match="another run is at work"):
        second.lock()
    first.unlock()
    second.lock()


def test_a_file_of_an_option_is_found_from_anywhere(tmp_path, monkeypatch):
    def problem(width_nm=1.0, table: str | None = None):
        assert table is None or np.load(table).size
        return edge.problem(width_nm=width_nm)

    monkeypatch.chdir(tmp_path)
    np.save("table.npy", np.ones(3))
    run = SolveRun(
        plan_of(tmp_path, toy(monkeypatch, problem=problem), options={"table": "table.npy"}),
        Asked(["test"], Logs()),
    )
    assert run.plan.options["table"] == str(tmp_path / "table.npy")


def with_a_map(solution, x, y):
    axes = (FieldAxis("x", np.arange(3.0), "nm"),)
    return dataclasses.replace(solution, results={"height": Field(np.arange(3.0), axes, "nm", "h")})


def test_an_estimate_is_told_when_no_result_can_be_written(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("micjax.run.jobs.execute.write_nexus", full)
    outcome = ran(tmp_path, toy(monkeypatch, conclude=with_a_map), engine={"steps": 5})
    assert outcome.solution is not None and "no space" in str(outcome.error)
