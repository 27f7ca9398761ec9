import functools
import json
import pathlib
import re
import shlex
import sys
import threading
import time

import h5py
import numpy as np
import pytest
import yaml
from bokeh.document import Document
from bokeh.plotting import figure as bokeh_figure

from micjax.__main__ import main
from micjax.active import streaming
from micjax.active.campaign import request_stop
from micjax.active.learner.signals import SIGNALS, signal
from micjax.active.learner.space import SearchAxis
from micjax.inference.solution import Solution
from micjax.instruments import records
from micjax.instruments.journal_reader import journal_lines
from micjax.io import Field, FieldAxis, write_nexus
from micjax.problems import edge
from micjax.report import exploration as report_figures
from micjax.report.live import fill
from micjax.run.jobs import explore_report
from micjax.run.jobs.explore import Exploration, check_code, source_of
from micjax.run.jobs.explore_report import _along
from micjax.run.plans.plan import make_plan, with_settings
from micjax.run.watch import view_of

HILL = """
import pathlib
import time
from os import system

def hill(u, v=0.2):
    return -((u - 0.7) ** 2) - (v - 0.2) ** 2

def broken(u, v):
    raise OSError("no current")

def slow(u, v=0.2):
    time.sleep(0.1)
    return hill(u, v)

def counted(u, v=0.2):
    with open("count.txt", "a") as file:
        file.write("x")
    if pathlib.Path("stop.txt").exists() and len(pathlib.Path("count.txt").read_text()) == 5:
        raise KeyboardInterrupt
    return hill(u, v)
"""
POLICY = """
class Halves:  # somebody's optimiser: halves the interval again and again
    def __init__(self, space, *, outcome, goal, seed, first=0.5):
        self.names, self.outcome, self.goal = space.names, outcome, goal
        self.told, self.next = [], first

    def suggest(self, num_points=None):
        return [{n: self.next for n in self.names} for _ in range(num_points or 1)]

    def ingest(self, points):
        self.told += [p[self.outcome] for p in points]
        self.next *= 0.5

    def should_stop(self):
        return len(self.told) == 4, "it is halved enough"

def Outside(space, **_):
    policy = Halves(space, outcome="height", goal="maximise", seed=0, first=1.5)
    return policy

def Nothing(space, **_):
    return space
"""
AXES = {"u": {"lower": 0.0, "upper": 1.0}, "v": {"lower": 0.0, "upper": 1.0, "unit": "V"}}
PLAN = {"measure": "hilly:hill", "axes": AXES, "budget": 9, "initial": 6, "outcome": "height"}
LINE = {**PLAN, "axes": {"u": AXES["u"]}}  # what it compiles, the tests share


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "hilly.py").write_text(HILL)
    (tmp_path / "device.py").write_text(DEVICE)
    (tmp_path / "policies.py").write_text(POLICY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("hilly", "device", "policies"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.fixture
def unreported(monkeypatch):
    """Runs without their report, which takes longer than all measurements of a function."""
    empty = Solution(edge.problem())
    monkeypatch.setattr("micjax.run.jobs.kinds.conclude", lambda *_: empty)


DEVICE = """
import numpy as np
from micjax.instruments import Axis, Simulated, Replay
from micjax.instruments.base import Mode
from micjax.io import FieldAxis, Field

class Bench(Replay):  # a stage and a bias
    made = []

    def __init__(self, tilt=0.0):
        y, x = (FieldAxis(n, np.linspace(0.0, 1000.0, 12), "nm") for n in "yx")
        height = np.cos(x.values / 400.0) + tilt * y.values[:, None] / 1000.0
        super().__init__([Field(height, (y, x), "m", "height")], seconds=2.0)
        self.axes["bias"] = Axis("V", -1.0, 1.0)
        self._at["bias"], self.closed = 0.0, False
        self.made.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closed = True

def Wrong():
    return {}

def Gone():
    raise ConnectionRefusedError(111, "nobody listens")

def Wrong_inside():
    return 1 / 0
"""
BENCH = {
    "measure": "device:Bench",
    "mode": "pixel",
    "options": {"tilt": -1.0},
    "at": {"bias": 0.5},
    "axes": {"y": {}, "x": {"lower": 2e-7}},
    "budget": 6,
    "initial": 6,
    "outcome": "height",
}


def written(plan, name="explore.yaml"):
    pathlib.Path(name).write_text(yaml.safe_dump(plan, sort_keys=False))
    return name


@pytest.mark.slow
def test_a_function_is_explored(folder, capsys):
    assert main(["explore", written(PLAN), "--out", "run"]) == 0
    said = capsys.readouterr().out
    assert "9 measurements; stopped: the budget of 9" in said and "Best height" in said
    for name in ("report.html", "result.nxs", "measurements.csv", "provenance.json"):
        assert (folder / "run" / name).stat().st_size > 100
    page = (folder / "run" / "report.html").read_text()
    assert page.count("data:image/png") >= 2 and ">nan<" not in page
    with h5py.File(folder / "run" / "result.nxs") as file:
        assert "entry" in str(list(file)).lower()


@pytest.mark.slow
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(folder, unreported):
    whole = {**LINE, "measure": "hilly:counted", "initial": 4, "budget": 7}
    assert main(["explore", written(whole), "--out", "whole"]) == 0
    (folder / "count.txt").unlink()
    (folder / "stop.txt").touch()
    assert main(["explore", written(whole), "--out", "broken"]) == 130
    (folder / "stop.txt").unlink()
    assert main(["explore", written(whole), "--out", "broken"]) == 2  # says: --resume
    with open(folder / "broken" / "journal.jsonl", "a") as file:
        file.write('{"kind": "res')  # a line that was torn off
    assert main(["explore", written(whole), "--out", "broken", "--resume"]) == 0
    first, second = ([record.at for _, record in records(n)] for n in ("whole", "broken"))
    assert first == second and len(first) == 7


def test_the_optimiser_of_somebody_else_suggests(folder, capsys, monkeypatch):
    def conclude(exploration, *_):
        statements = explore_report._statements(exploration, None, None)
        return Solution(edge.problem(), statements=statements)

    monkeypatch.setattr("micjax.run.jobs.kinds.conclude", conclude)
    halved = {**LINE, "policy": "policies:Halves", "policy_options": {"first": 0.8}}
    assert main(["explore", written({**halved, "budget": 3}), "--out", "run"]) == 0
    assert "policies:Halves suggested what to measure" in capsys.readouterr().out
    assert main(["explore", written(halved), "--out", "run", "--resume"]) == 0
    assert "stopped: it is halved enough" in capsys.readouterr().out
    places = [record.at["u"] for _, record in records("run")]
    np.testing.assert_allclose(places, [0.8, 0.4, 0.2, 0.1])
    with np.load(folder / "run" / "state.npz") as believed:
        np.testing.assert_allclose(believed["points"][:, 0], places)
    other = {**halved, "policy_options": {"first": 0.6}}
    assert main(["explore", written(other), "--out", "run", "--resume"]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": "os:system"}, "os"),
        ({"policy": "policies:Halved"}, "defines no 'Halved'"),
        ({"policy": "policies:Nothing"}, "gave a Space, which has not both suggest"),
        ({"policy_options": {"first": 0.5}}, "are for a `policy`"),
        ({"policy": "policies:Outside"}, "the policy suggests {'u': 1.5}: axis u: 1.5"),
    ],
)
def test_bad_policies_are_told(folder, capsys, change, message):
    assert main(["explore", written(LINE | change), "--out", "run"]) != 0
    said = capsys.readouterr().err.strip()
    assert message in said and "Traceback" not in said


def test_another_plan_or_a_changed_journal_is_refused(folder, capsys, unreported):
    plan = written({**PLAN, "budget": 6})
    assert main(["explore", plan, "--out", "run"]) == 0
    assert main(["explore", plan, "--out", "run", "--resume", "--set", "seed=1"]) == 2
    assert "of another seed: 0 then, 1 now" in capsys.readouterr().err
    assert main(["explore", plan, "--out", "run", "--resume", "--set", "goal=map"]) == 2
    assert "goal: 'maximise' then, 'map' now" in capsys.readouterr().err
    path = folder / "run" / "journal.jsonl"
    first, second, *lines = path.read_text().splitlines()
    entry = json.loads(second)
    entry["points"][0]["u"] += 0.25
    path.write_text("\n".join([first, json.dumps(entry), *lines]) + "\n")
    assert main(["explore", plan, "--out", "run", "--resume"]) == 2
    assert "line 2: its checksum is another one" in capsys.readouterr().err


def test_an_instrument_that_always_fails_ends_the_run(folder, capsys):
    plan = written({**PLAN, "measure": "hilly:broken"})
    assert main(["explore", plan, "--out", "run"]) != 0
    assert "10 points in a row could not be measured" in capsys.readouterr().err
    assert len((folder / "run" / "journal.jsonl").read_text().splitlines()) == 31


@pytest.mark.slow
def test_an_instrument_is_explored_within_its_bounds(folder):
    """Narrower limits, a setting that stays, and seconds that are counted over all runs."""
    plan = make_plan({"kind": "explore", **BENCH, "guard": {"seconds": 9.0}}, "test")
    for resume in (False, True):
        with Exploration(plan, "run", resume=resume) as exploration:
            exploration.run()
        # the moves may have taken some of the last second
        assert re.fullmatch(r"pixel takes 2 s; (1|0\.\d+) s are left", exploration.stop_reason)
        assert len(exploration.learner.data[1]) == 4 and exploration.finished
    plan = make_plan({"kind": "explore", **BENCH}, "test")
    with Exploration(plan, "run", resume=True) as exploration:
        exploration.run()
    assert exploration.stop_reason.startswith("the budget of 6")
    (*_, last) = sys.modules["device"].Bench.made
    assert last.closed and last.read()["bias"] == 0.5
    found = [record.at for _, record in records("run")]
    assert len(found) == 6 and min(at["x"] for at in found) >= 2e-7 - 1e-6 / 22


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "pixl"}, "no mode 'pixl' (nearest: pixel); there are image, line, pixel"),
        ({"mode": "image"}, "goes over a frame"),
        ({"channel": "hight"}, "no channel 'hight' (nearest: height); there are height"),
        ({"axes": {"z": {}}}, "no axis 'z'; there are x, y, bias"),
        ({"axes": {"x": {"unit": "nm"}}}, "is in m"),
        ({"axes": {"x": {"lower": -1.0}}}, "do not lie within"),
        ({"at": {"current": 1.0}}, "no axis 'current'"),
        ({"measure": "device:np"}, "neither an instrument nor a function"),
        ({"measure": "device:Mode", "options": {"kind": "point"}}, "is no instrument"),
        ({"measure": "device:Wrong", "options": {}}, "gave a dict"),
        ({"mode": None}, "are for instruments"),
    ],
)
def test_bad_plans_of_instruments(folder, capsys, change, message):
    assert main(["explore", written(BENCH | change), "--out", "run"]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and len(said.splitlines()) == 1


def test_a_line_is_explored_and_reported(folder, capsys, monkeypatch):
    # of the hyper-parameters: a picture of a line does not need all of them
    few = functools.partial(streaming.begin, particles=16)
    monkeypatch.setattr(streaming, "begin", few)
    plan = {**LINE, "initial": 4, "budget": 5}
    assert main(["explore", written(plan), "--out", "run"]) == 0
    said = capsys.readouterr().out
    assert "5 measurements; stopped: the budget of 5" in said and "Best height" in said
    page = (folder / "run" / "report.html").read_text()
    assert page.count("data:image/png") >= 2 and ">nan<" not in page
    assert (folder / "run" / "measurements.csv").read_text().startswith("u,height,")


def test_of_a_large_image_some_places_are_mapped(seen_before, folder, capsys, monkeypatch):
    few = functools.partial(streaming.begin, particles=16)
    monkeypatch.setattr(streaming, "begin", few)
    monkeypatch.setattr(explore_report, "MOST", 40)
    plan = {"measure": "sample.nxs", "channel": "now", "outcome": "now", "budget": 5}
    assert main(["explore", written(plan), "--out", "run"]) == 0
    assert "one of 2 x 2 places of the file" in capsys.readouterr().out
    with h5py.File(folder / "run" / "result.nxs") as file:
        shapes = []
        file.visititems(lambda _, item: shapes.append(getattr(item, "shape", ())))
    assert (5, 6) in shapes and (10, 12) not in shapes


def test_status_while_it_runs_and_a_stop_on_request(folder, capsys, monkeypatch):
    reasons, empty = [], Solution(edge.problem())

    def conclude(exploration, *_):
        reasons.append(exploration.stop_reason)
        return empty

    monkeypatch.setattr("micjax.run.jobs.kinds.conclude", conclude)
    slow = {**LINE, "measure": "hilly:slow", "initial": 500, "budget": 500}
    ended = []
    run = threading.Thread(
        target=lambda: ended.append(main(["explore", written(slow), "--out", "run"]))
    )
    run.start()
    until(lambda: len(list((folder / "run" / "records").glob("*.npz"))) >= 3)
    assert main(["status", "run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("run: being measured") and "Last: measure at u = 0." in said
    request_stop("run")
    run.join(60.0)
    assert ended == [130]
    assert reasons == ["stopped on request"]
    capsys.readouterr()
    assert main(["status", "run"]) == 0
    assert "nothing is being measured" in capsys.readouterr().out
    with pytest.raises(ValueError, match="nothing is being measured"):
        request_stop("run")


def test_categories_have_their_names(folder, capsys, unreported):
    axes = {"u": AXES["u"], "v": {"categories": [0.3, 0.2]}}
    plan = {**PLAN, "axes": axes, "initial": 5, "budget": 4}
    assert main(["explore", written(plan), "--out", "run"]) == 0
    capsys.readouterr()
    assert main(["status", "run"]) == 0
    (*_, (_, last)) = records("run")
    name = [0.3, 0.2][round(last.at["v"])]
    assert re.search(rf"Last: measure at u = 0\.\d+, v = {name}\.", capsys.readouterr().out)
    with np.load(folder / "run" / "state.npz") as believed:
        assert set(believed["along1"].tolist()) == {0.0, 1.0}  # between them there is nothing
    view = view_of(folder / "run")
    assert view.categories == {"v": ["0.3", "0.2"]}
    document = Document()
    fill(document, lambda: view, lambda: None)
    plots = [p for p in document.select({"type": bokeh_figure}) if "median" in p.title.text]
    assert plots[0].xaxis[0].major_label_overrides == {0: "0.3", 1: "0.2"}
    lines = journal_lines(folder / "run")
    named = [p for line in lines if line["kind"] == "suggested" for p in line["points"]]
    assert {p["v"] for p in named} <= {0.3, 0.2}


def test_categories_stand_at_the_axes_of_figures():
    x = np.arange(3.0)
    profile = {n: x for n in ("x", "median", "lower", "upper", "points", "outcomes")}
    named = {**profile, "categories": ["dart", "be", "ac"]}
    figure = report_figures.slices([profile, named], ["u", "mode"], "height")
    first, second = figure.axes[:2]
    assert [t.get_text() for t in second.get_xticklabels()] == ["dart", "be", "ac"]
    assert "dart" not in [t.get_text() for t in first.get_xticklabels()]
    panels, ends = {"height": np.zeros((2, 3))}, (-0.5, 2.5, 1.5, -0.5)
    where = np.zeros((1, 2))
    names = (("off", "on"), ())
    figure = report_figures.maps(panels, ends, ("v", "u"), where, categories=names)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["off", "on"]


def until(true, seconds=60.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({**PLAN, "goall": "map"}, "no key 'goall' (nearest: goal)"),
        ({**PLAN, "measure": "hilly:peak"}, "cannot be imported"),
        ({**PLAN, "axes": {}}, "needs `axes`"),
        ({**PLAN, "axes": {"u": {"lower": 1.0, "upper": 0.0}}}, "is empty"),
        ({**PLAN, "goal": "level"}, "needs the level"),
        ({**PLAN, "cost": {"rates": {"w": 1.0}}}, "no axis 'w'"),
        ({**PLAN, "signal": "loop"}, "signal 'loop'; there are"),
        ({**PLAN, "measure": "no_such.h5"}, "no such file"),
        ({**PLAN, "measure": "os:system"}, "'os' is a part of Python"),
        ({**PLAN, "measure": "hilly:system"}, "'os' is a part of Python"),
        ({**PLAN, "measure": "builtins:print"}, "is a part of Python"),
        ({**PLAN, "measure": "hilly:__builtins__"}, "defines no '__builtins__'"),
        ({**PLAN, "measure": "hilly:pathlib"}, "pathlib is a module"),
        ({**PLAN, "measure": "scipy.optimize:rosen"}, "--trust scipy"),
        ({**PLAN, "measure": "../hilly:hill"}, "is no package.module:name"),
        ({**PLAN, "measure": "micjax.instruments:consolidate"}, "is no instrument"),
        ({**PLAN, "mean": {"problem": "os"}}, "no problem module"),
        ({**PLAN, "mean": {"problem": "edge", "options": {"width_nm": -1}}}, "width_nm is -1"),
        ({**PLAN, "mean": {"problem": "edge", "options": {"wdth_nm": 1}}}, "nearest: width_nm"),
        ({**PLAN, "outcome": "../../x"}, "'../../x' is no name"),
        ({**PLAN, "outcome": ""}, "is no name"),
        ({**PLAN, "axes": {"a/b": {}}}, "'a/b' is no name"),
        ({**PLAN, "budget": 10**12}, "budget is 1e+12"),
    ],
)
def test_bad_plans_are_told_in_one_line(folder, capsys, plan, message):
    plan = {k: v for k, v in plan.items() if k != "axes" or plan["measure"].startswith("hilly")}
    assert main(["explore", written(plan), "--out", "run"]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1
    assert not (folder / "run").exists()  # told before there is a folder


def test_the_printed_line_goes_on_whatever_it_was_begun_with(folder, capsys, unreported):
    (folder / "stop.txt").touch()
    plan = {**LINE, "measure": "hilly:counted", "initial": 4, "budget": 3}
    begin = ["explore", written(plan), "--out", "a b"]
    settings = [part for s in ("budget=6", "outcome='the height'") for part in ("--set", s)]
    assert main([*begin, *settings]) == 130
    (folder / "stop.txt").unlink()
    (line,) = [text for text in capsys.readouterr().err.splitlines() if "to go on: " in text]
    program, *words = shlex.split(line.partition("to go on: ")[2])
    assert program == "micjax" and main(words) == 0
    assert len(list(records("a b"))) == 6


def facts_of(run):
    return json.loads((run / "provenance.json").read_text())


def test_an_instrument_that_cannot_be_had_is_a_failure(folder, capsys):
    """Not what was asked for is wrong: the run says so in its exit code, its log and its facts."""
    for name, fault in (("Gone", "ConnectionRefusedError"), ("Wrong_inside", "ZeroDivisionError")):
        plan = written({"measure": f"device:{name}", "mode": "pixel"})
        assert main(["explore", plan, "--out", name]) == 1
        run, said = folder / name, capsys.readouterr().err
        assert facts_of(run)["status"] == "failed" and fault in facts_of(run)["error"]
        assert "Traceback" in (run / "log.txt").read_text() and "Traceback" not in said


def test_a_report_that_fails_costs_no_measurement(folder, capsys, monkeypatch):
    def broken(*_):
        raise RuntimeError("no ink")

    monkeypatch.setattr("micjax.run.jobs.kinds.conclude", broken)
    assert main(["explore", written({**PLAN, "budget": 3}), "--out", "run"]) == 1
    facts = facts_of(folder / "run")
    assert facts["status"] == "failed" and facts["error"] == "RuntimeError: no ink"
    assert "no ink" in (folder / "run" / "log.txt").read_text() and facts["end"]
    assert len(list(records("run"))) == 3


def test_the_facts_are_there_from_the_beginning(folder, monkeypatch, unreported):
    """A run that is killed leaves them as well."""
    seen = []
    monkeypatch.setattr(Exploration, "run", lambda self: seen.append(facts_of(folder / "run")))
    main(["explore", written({**PLAN, "budget": 3}), "--out", "run"])
    assert seen[0]["status"] == "running" and seen[0]["versions"]["micjax"]


def test_a_wide_axis_of_whole_numbers_is_not_written_out():
    """Of a billion numbers 64 are drawn."""
    wide = _along(SearchAxis("n", 0, 10**9, whole=True))
    assert len(wide) == 64 and wide[-1] == 1e9 and np.all(wide == np.round(wide))
    np.testing.assert_array_equal(_along(SearchAxis("k", 0, 5, whole=True)), np.arange(6))


def test_assignments_reach_into_sections():
    texts = ["budget=70", "cost.dwell_s=1e-1", "options.a.b=1"]
    plan = with_settings({"kind": "explore", "budget": 3, "cost": None}, texts)
    assert plan["budget"] == 70 and plan["cost"] == {"dwell_s": 0.1}
    assert plan["options"] == {"a": {"b": 1}}
    for text, message in (("budget", "write name=value"), ("gaurd.dose=1", "nearest: guard")):
        with pytest.raises(ValueError, match=message):
            with_settings({"kind": "explore"}, [text])


def test_a_map_of_curves_is_scalarised(shared):
    path = shared / "data" / "afm" / "BEPS_PTO_50x50.h5"
    plan = make_plan({"kind": "explore", "measure": str(path), "signal": "loop_area"}, "test")
    source = source_of(plan)
    assert source.shape == (50, 50) and source.space.names == ["y", "x"]
    with h5py.File(path) as file:
        data, bias = file["Channel_000/generic/generic"], file["Channel_000/generic/Voltage"]
        loop = data[4, 3]  # the file says [x, y]
        expected = abs(np.trapezoid(np.append(loop, loop[0]), np.append(bias[:], bias[0])))
    point = dict(zip("yx", source.space.candidates[3 * 50 + 4], strict=True))
    source.instrument.move(source.target(point))
    record = source.instrument.acquire(source.mode)
    np.testing.assert_allclose(source.reduce(record), expected, rtol=1e-6)


@pytest.fixture
def seen_before(folder):
    """A file with an image taken before and what is high where that image is far from zero."""
    image = np.random.default_rng(0).normal(size=(10, 12))
    axes = (FieldAxis("y", np.arange(10.0), "nm"), FieldAxis("x", np.arange(12.0), "nm"))
    fields = {n: Field(d, axes, "V", n) for n, d in (("now", image**2), ("before", image))}
    write_nexus("sample.nxs", fields)
    return image


@pytest.mark.slow
def test_the_highest_are_found_by_looking(seen_before, folder, capsys):
    plan = {
        "measure": "sample.nxs",
        "channel": "now",
        "outcome": "now",
        "goal": "find",
        "wanted": 12,
        "initial": 10,
        "budget": 22,
        "look": {"channel": "before", "side": 3, "logarithm": True},
    }
    assert main(["explore", written(plan), "--out", "run"]) == 0
    assert "22 measurements" in capsys.readouterr().out
    page = (folder / "run" / "report.html").read_text()
    assert "The 12 highest now" in page and ">nan<" not in page
    rows = (folder / "run" / "measurements.csv").read_text().splitlines()
    column = rows[0].split(",").index("now")
    found = np.array([float(row.split(",")[column]) for row in rows[1:]])
    level = np.sort(seen_before.ravel() ** 2)[-12]
    # one or two by chance, at 22 of 120 pixels
    assert np.sum(found >= level * (1 - 1e-6)) >= 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"goal": "find"}, "wanted"),
        ({"look": {"channel": "befor"}}, "befor"),
        ({"look": {"channel": "before", "side": 4}}, "odd"),
        ({"look": {"channel": "before"}, "mean": {"problem": "edge"}}, "two models"),
    ],
)
def test_what_cannot_be_looked_for_is_told(seen_before, capsys, change, message):
    plan = {"measure": "sample.nxs", "channel": "now", "outcome": "now", **change}
    assert main(["explore", written(plan), "--out", "run"]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


def test_a_fit_is_code_that_has_to_be_trusted():
    signal = {"fit": "other.package", "name": "n"}
    plan = make_plan({"kind": "explore", "measure": "beps.h5", "signal": signal}, "test")
    with pytest.raises(ValueError, match="other"):
        check_code(plan)


def test_signals():
    along = np.linspace(0.0, 2.0 * np.pi, 201)[:-1]
    np.testing.assert_allclose(SIGNALS["loop_area"](np.sin(along), np.cos(along)), np.pi, rtol=1e-3)
    np.testing.assert_allclose(SIGNALS["rms"](np.sin(along), along), np.sqrt(0.5))
    with pytest.raises(ValueError, match="there are first, mean"):
        signal("nothing")
