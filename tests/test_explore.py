import json
import os
import pathlib

import h5py
import numpy as np
import pytest
import yaml

from micjax.__main__ import main
from micjax.active.signals import SIGNALS, signal
from micjax.io import Axis, Field, write_nexus
from micjax.run.explore import (
    Exploration,
    Journal,
    make_explore_plan,
    with_assignments,
)

HILL = """
import pathlib

def hill(u, v):
    return -((u - 0.7) ** 2) - (v - 0.2) ** 2

def broken(u, v):
    raise OSError("no current")

def counted(u, v):
    with open("count.txt", "a") as file:
        file.write("x")
    if pathlib.Path("stop.txt").exists() and len(pathlib.Path("count.txt").read_text()) == 7:
        raise KeyboardInterrupt
    return hill(u, v)
"""
AXES = {"u": {"lower": 0.0, "upper": 1.0}, "v": {"lower": 0.0, "upper": 1.0, "unit": "V"}}
PLAN = {"measure": "hilly:hill", "axes": AXES, "budget": 9, "initial": 6, "outcome": "height"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "hilly.py").write_text(HILL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "hilly", raising=False)
    return tmp_path


def written(plan, name="explore.yaml"):
    pathlib.Path(name).write_text(yaml.safe_dump(plan))
    return name


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


def test_an_interrupted_run_goes_on_as_if_nothing_had_been(folder):
    whole = {**PLAN, "measure": "hilly:counted"}
    assert main(["explore", written(whole), "--out", "whole"]) == 0
    (folder / "count.txt").unlink()
    (folder / "stop.txt").touch()
    assert main(["explore", written(whole), "--out", "broken"]) == 130
    (folder / "stop.txt").unlink()
    assert main(["explore", written(whole), "--out", "broken"]) == 2  # says: --resume
    with open(folder / "broken" / "journal.jsonl", "a") as file:
        file.write('{"result": {"_id"')  # a line that was torn off
    assert main(["explore", written(whole), "--out", "broken", "--resume"]) == 0
    first, second = (
        (folder / name / "measurements.csv").read_text().splitlines()
        for name in ("whole", "broken")
    )
    assert [line.split(",")[:3] for line in first] == [line.split(",")[:3] for line in second]


def test_another_plan_or_a_changed_journal_is_refused(folder, capsys):
    plan = written({**PLAN, "budget": 6})
    assert main(["explore", plan, "--out", "run"]) == 0
    assert main(["explore", plan, "--out", "run", "--resume", "--set", "seed=1"]) == 2
    assert "seed was 0, is 1" in capsys.readouterr().err
    path = folder / "run" / "journal.jsonl"
    lines = path.read_text().splitlines()
    entry = json.loads(lines[0])
    entry["suggested"][0]["u"] += 0.25
    path.write_text("\n".join([json.dumps(entry), *lines[1:]]) + "\n")
    assert main(["explore", plan, "--out", "run", "--resume"]) == 2
    assert "went another way" in capsys.readouterr().err


def test_an_instrument_that_always_fails_ends_the_run(folder, capsys):
    plan = written({**PLAN, "measure": "hilly:broken"})
    assert main(["explore", plan, "--out", "run"]) != 0
    assert "10 measurements in a row have failed" in capsys.readouterr().err
    assert len((folder / "run" / "journal.jsonl").read_text().splitlines()) == 20


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
    ],
)
def test_bad_plans_are_told_in_one_line(folder, capsys, plan, message):
    plan = {k: v for k, v in plan.items() if k != "axes" or plan["measure"].startswith("hilly")}
    assert main(["explore", written(plan), "--out", "run"]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1


def test_assignments_reach_into_sections():
    plan = with_assignments({"budget": 3}, ["budget=70", "cost.dwell_s=1e-1"])
    assert plan == {"budget": 70, "cost": {"dwell_s": 0.1}}
    with pytest.raises(ValueError, match="write name=value"):
        with_assignments({}, ["budget"])


def test_a_map_of_curves_is_scalarised(folder, shared):
    path = shared / "data" / "afm" / "BEPS_PTO_50x50.h5"
    plan = make_explore_plan({"measure": str(path), "signal": "loop_area"}, "test")
    source = Exploration(plan, Journal(folder / "j")).source
    assert source.shape == (50, 50) and source.space.names == ["y", "x"]
    with h5py.File(path) as file:
        data, bias = file["Channel_000/generic/generic"], file["Channel_000/generic/Voltage"]
        loop = data[4, 3]  # the file says [x, y]
        expected = abs(np.trapezoid(np.append(loop, loop[0]), np.append(bias[:], bias[0])))
    point = dict(zip("yx", source.space.candidates[3 * 50 + 4], strict=True))
    np.testing.assert_allclose(source.measure(point), expected, rtol=1e-6)


@pytest.fixture
def seen_before(folder):
    """A file with an image taken before and what is high where that image is far from zero."""
    image = np.random.default_rng(0).normal(size=(10, 12))
    axes = (Axis("y", np.arange(10.0), "nm"), Axis("x", np.arange(12.0), "nm"))
    fields = {n: Field(d, axes, "V", n) for n, d in (("now", image**2), ("before", image))}
    write_nexus("sample.nxs", fields)
    return image


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


def test_signals():
    along = np.linspace(0.0, 2.0 * np.pi, 201)[:-1]
    np.testing.assert_allclose(SIGNALS["loop_area"](np.sin(along), np.cos(along)), np.pi, rtol=1e-3)
    np.testing.assert_allclose(SIGNALS["rms"](np.sin(along), along), np.sqrt(0.5))
    with pytest.raises(ValueError, match="there are first, mean"):
        signal("nothing")


def test_the_journal_tells_of_a_broken_line(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('{"suggested": []}\nnonsense\n{"suggested": []}\n')
    with pytest.raises(ValueError, match="line 2"):
        Journal(path).entries()
    assert os.path.getsize(path) > 0
