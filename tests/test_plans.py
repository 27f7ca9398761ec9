"""Plans of every kind: what a run has written is a plan that gives the same again."""

import json
import pathlib
import sys

import numpy as np
import pytest
import yaml

from micjax.__main__ import main
from micjax.inference.solution import Solution
from micjax.instruments import records
from micjax.io import read_nexus
from micjax.nets.train import weights_of
from micjax.nets.weights import load_network
from micjax.problems import edge
from micjax.run.plans.plan import KINDS, make_plan, with_settings

HILL = "def hill(u):\n    return -((u - 0.7) ** 2)\n"
CRYSTAL = """1
Lattice="4 0 0 0 4 0 0 0 3" Properties=species:S:1:pos:R:3 pbc="T T T"
Au 0 0 0
"""
PLANS = {
    "solve": {"problem": "edge", "options": {"width_nm": 2}, "engine": {"steps": 20}, "seed": 3},
    "explore": {"measure": "hilly:hill", "axes": {"u": {}}, "budget": 3, "initial": 3, "seed": 3},
    "simulate": {"what": "hrtem", "structure": "gold.xyz", "sampling_A": 0.3, "u_A2": 0.01},
    "train": {
        "problem": "denoise",
        "options": {"edge_px": 16, "examples": 2, "width": 8, "depth": 1},
        "schedule": {"steps": 4, "chunk": 2},
        "seed": 3,
    },
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "hilly.py").write_text(HILL)
    (tmp_path / "gold.xyz").write_text(CRYSTAL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])  # main adds the folder
    # the report of an exploration takes longer than all the rest
    empty = Solution(edge.problem())
    monkeypatch.setattr("micjax.run.jobs.kinds.conclude", lambda *_: empty)
    yield tmp_path
    sys.modules.pop("hilly", None)


def result(kind, folder):
    """All numbers of a run, by name."""
    if kind == "explore":
        return {f"{n}": record.at["u"] for n, (_, record) in enumerate(records(folder))}
    if kind == "train":
        return weights_of(load_network(f"{folder}/network.h5").network)
    return {name: field.data for name, field in read_nexus(f"{folder}/result.nxs").items()}


def written(name, plan):
    pathlib.Path(name).write_text(yaml.safe_dump(plan))
    return name


@pytest.mark.parametrize("kind", KINDS)
def test_a_resolved_plan_is_a_plan_that_gives_the_same_again(here, kind, capsys, monkeypatch):
    if kind == "simulate":
        pytest.importorskip("ase", reason="reading structures needs micjax[structures]")
    given = written("plan.yaml", {"kind": kind, **PLANS[kind]})
    assert main(["validate", given]) == 0
    assert "plan.yaml is valid" in capsys.readouterr().out and not (here / "runs").exists()
    assert main(["run", given, "--set", "seed=5", "--out", "first"]) == 0
    resolved = "first/plan.resolved.json"
    known = json.loads((here / resolved).read_text())
    assert known["kind"] == kind and known["seed"] == 5 and "out" not in known
    assert (here / "first" / "plan.yaml").read_bytes() == (here / given).read_bytes()
    (here / "elsewhere").mkdir()  # files of a resolved plan are found from any folder
    if kind != "explore":  # whose function lies in this one
        monkeypatch.chdir(here / "elsewhere")
    assert main(["validate", str(here / resolved)]) == 0
    assert main(["run", str(here / resolved), "--out", str(here / "second")]) == 0
    first, second = (result(kind, here / name) for name in ("first", "second"))
    assert first.keys() == second.keys() and len(first) >= 3
    for name, values in first.items():
        np.testing.assert_array_equal(second[name], values)
    facts = [json.loads((here / n / "provenance.json").read_text()) for n in ("first", "second")]
    assert [f["status"] for f in facts] == ["finished"] * 2
    assert facts[0]["seed"] == 5 and facts[0]["start"] and facts[0]["wall_s"] >= 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_words_are_refused_in_the_same_way(here, kind, capsys):
    given = written("plan.yaml", {"kind": kind, **PLANS[kind]})
    (here / "file").touch()
    (here / "full").mkdir()
    (here / "full" / "thesis.tex").touch()
    for words, message in (
        (["--resume"], "--resume needs --out DIR"),
        (["--resume", "--out", "new"], "there is no run in new"),
        (["--out", "file"], "--out file is a file"),
        (["--out", "full"], f"full is not empty and holds no micjax run to {kind}"),
        (["--set", "seed"], "--set seed: write name=value"),
        (["--set", "seed=5000000000"], "plan.yaml: seed is 5000000000"),
        (["--set", "seed=-1"], "plan.yaml: seed is -1"),
        (["--set", "kind=solv"], "no kind 'solv' (nearest: solve)"),
        (["--set", "sead.x=1"], "no section 'sead'"),
        (["--set", "out=1"], "plan.yaml: out is 1"),
    ):
        assert main(["run", given, *words]) == 2
        said = capsys.readouterr().err
        assert message in said and "Traceback" not in said and len(said.splitlines()) == 1
        assert main(["run", given, *words, "--debug"]) == 2
        assert "Traceback" in capsys.readouterr().err
    assert not (here / "new").exists() and not (here / "runs").exists()


@pytest.mark.parametrize(
    "given, message",
    [
        (
            {"kind": "explore", "measure": "a:b", "axes": {"u": {"lowr": 1}}},
            "nearest: axes.u.lower",
        ),
        ({"kind": "explore", "measure": "a:b", "cost": {"dwel_s": 1}}, "nearest: cost.dwell_s"),
        (
            {"kind": "explore", "measure": "a:b", "mean": {"y_scale": 1}},
            "key 'mean.problem' is mis",
        ),
        (
            {"kind": "explore", "measure": "a:b", "mean": {"problem": "x", "y_scale": 1e99}},
            "mean.y_sc",
        ),
        ({"kind": "explore", "problem": "edge"}, "no key 'problem' (nearest: rules); there"),
        ({"kind": "simulate", "what": "stem"}, "the key 'structure' is missing"),
        ({"problem": "edge", "engine": 3}, "engine is 3: a table is wanted, engine.name=value"),
        ({"problem": "edge", "kind": ["solve"]}, "no kind"),
        ({"problem": "edge", "seed": True}, "seed is True: "),
        ({"problem": "edge", "values": {"forward.edge_nm": [True]}}, "values is {"),
    ],
)
def test_a_fault_is_told_by_its_path(given, message):
    with pytest.raises(ValueError) as error:
        make_plan(given, "here")
    assert str(error.value).startswith("here: ") and message in str(error.value)


def test_a_table_of_comments_is_as_if_not_given():
    for kind, table in (("solve", "engine"), ("explore", "guard"), ("simulate", "detectors")):
        given = {"kind": kind, **PLANS[kind]}
        whole, commented = (make_plan(g, "here") for g in (given, {**given, table: None}))
        if kind == "solve":
            assert commented.engine == {}
        else:
            assert commented == whole
    with pytest.raises(ValueError, match="seed is None"):
        make_plan({"problem": "edge", "seed": None}, "here")


def test_set_reaches_into_tables_of_every_kind():
    plan = with_settings(
        {"kind": "simulate", "u_A2": None}, ["u_A2.Sr=0.008", "detectors={a: [0, 1]}"]
    )
    assert plan["u_A2"] == {"Sr": 0.008} and plan["detectors"] == {"a": [0, 1]}
    plan = with_settings({"problem": "edge"}, ["values.forward.width_nm=2"])
    assert plan["values"] == {"forward.width_nm": 2}
    with pytest.raises(ValueError, match="u_A2 is no section"):
        with_settings({"kind": "simulate", "u_A2": 0.01}, ["u_A2.Sr=0.008"])


def test_commands_of_one_kind_say_so(here, capsys):
    assert main(["explore", written("plan.yaml", {"kind": "solve", **PLANS["solve"]})]) == 2
    assert "kind is 'solve'; micjax run takes all kinds" in capsys.readouterr().err
    assert main(["run", "plan.yaml", "--in-doubt", "skip"]) == 2
    assert "--in-doubt is for explorations" in capsys.readouterr().err
