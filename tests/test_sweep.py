"""One plan with many settings."""

import contextlib
import csv
import json
from concurrent.futures import Executor, Future

import numpy as np
import pytest

from micjax.__main__ import main
from micjax.run.jobs.dealt import sweep


class Here(Executor):
    """At once, in this thread."""

    def submit(self, function, *arguments):
        future = Future()
        future.set_result(function(*arguments))
        return future


@pytest.fixture(autouse=True)
def at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(sweep, "processes", lambda count: Here())
    monkeypatch.chdir(tmp_path)


def rows(folder):
    with open(folder / "sweep.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_every_combination(tmp_path, capsys):
    command = ["demo", "edge", "--set", "engine.steps=20", "--sweep", "seed=[3,4]"]
    command += ["--sweep", "precision=[float32]", "--out", "all"]
    assert main(command) == 0
    table = rows(tmp_path / "all")
    assert [r["seed"] for r in table] == ["3", "4"]
    assert {r["precision"] for r in table} == {"float32"}
    assert {r["status"] for r in table} == {"finished"}
    for row in table:
        facts = json.loads((tmp_path / "all" / row["run"] / "provenance.json").read_text())
        assert str(facts["seed"]) == row["seed"] and float(row["loss"])
    # a sweep that is over has nothing left to do, and is no other one
    assert main([*command, "--resume"]) == 0
    assert main(command) == 2
    assert main([*command, "--sweep", "engine.tolerance=[0.1]", "--resume"]) == 2
    assert "holds another sweep" in capsys.readouterr().err


def test_files_by_a_pattern(tmp_path):
    x = np.linspace(-1.0, 1.0, 32)
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", np.tanh(x / 0.2) + 0 * x)
    assert [sorted(s) for s in sweep.settings_of(["file=*.npy"])] == [["file"], ["file"]]
    first, second = sweep.settings_of(["file=*.npy"])
    assert first["file"].endswith("a.npy") and second["file"].endswith("b.npy")


def test_files_that_change_and_all_that_is_wrong_are_told_beforehand(tmp_path, capsys):
    counts = np.random.default_rng(0).poisson(9.0, (2, 2, 2, 24))
    np.save(tmp_path / "a.npy", counts[0])
    command = ["fit", "peaks", "a.npy", "--set", "engine.steps=20", "--out", "all"]
    seeds = ["--sweep", "seed=[1,2]"]
    assert main([*command, *seeds, "--sweep", "shape=[gaussian,square]"]) == 2
    assert not (tmp_path / "all").exists() and "'square'" in capsys.readouterr().err
    assert main([*command, *seeds]) == 0
    np.save(tmp_path / "a.npy", counts[1])
    assert main([*command, *seeds, "--resume"]) == 2
    assert "a.npy has changed since the run" in capsys.readouterr().err


def test_one_that_fails_costs_itself(tmp_path, capsys, monkeypatch):
    carried_out = sweep.carried_out

    def fails(folder, trust):
        if folder.endswith("0001"):
            return {"status": "failed", "error": "no luck"}
        return carried_out(folder, trust)

    monkeypatch.setattr(sweep, "carried_out", fails)
    command = ["demo", "edge", "--set", "engine.steps=20", "--sweep", "seed=[3,4]", "--out", "all"]
    assert main(command) == 1
    assert [r["status"] for r in rows(tmp_path / "all")] == ["finished", "failed"]
    assert "no luck" in capsys.readouterr().out
    monkeypatch.setattr(sweep, "carried_out", carried_out)
    with contextlib.suppress(SystemExit):
        assert main([*command, "--resume"]) == 0
    assert {r["status"] for r in rows(tmp_path / "all")} == {"finished"}


@pytest.mark.parametrize(
    "text, told",
    [
        ("seed", "NAME=[VALUE, ...]"),
        ("seed=[]", "no such values"),
        ("file=nothing*.npy", "no such values"),
        ("engine.stepz=[3]", "stepz"),
        ("seed=[1.5]", "seed"),
        ("out=[a]", "a folder of its own"),
    ],
)
def test_bad_input(text, told, capsys):
    assert main(["demo", "edge", "--sweep", text, "--out", "all"]) in (1, 2)
    assert told in capsys.readouterr().err
