"""Simulations that are killed, interrupted or fail: no work is lost, what goes on is the same."""

import json
import logging

import numpy as np
import pytest

import micjax.run.jobs.simulate.sums as sums
from micjax.__main__ import main
from micjax.io import read
from micjax.run.jobs.simulate import job as module
from micjax.run.jobs.simulate.job import simulate
from micjax.run.plans.plan import make_plan

pytest.importorskip("ase", reason="reading structures needs micjax[structures]")
import ase  # noqa: E402
import ase.io  # noqa: E402

COMMON = {"sampling_A": 0.3, "u_A2": 0.01, "phonons": 2, "semiangle_mrad": 10.0, "dose": 1e5}
SCAN = {"detectors": {"adf": (5.0, 20.0)}, "scan": (3, 2), "tile": (2, 2, 1), "patterns": True}
PLANS = {
    "stem": COMMON | SCAN,
    "cbed": COMMON | {"averaged": True, "scan": (2, 1)},
    "hrtem": COMMON,
}


class Killed(BaseException):
    """Nobody catches it."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sums, "EVERY_S", 0.0)
    monkeypatch.setattr(sums, "SHARE", 1e9)
    monkeypatch.setattr(module, "GPU_WAVES", 1)  # one place at a time
    ase.io.write("gold.xyz", ase.Atoms("Au", cell=[4.0, 4.0, 3.0], pbc=True))
    return tmp_path


def plan(what, **options):
    return make_plan(
        {"kind": "simulate", "what": what, "structure": "gold.xyz", **PLANS[what], **options},
        "test",
    )


def killed_at(monkeypatch, step, after):
    """While that file is written, or just behind it, before anything else has its step."""
    write = sums.Kept.write

    def killed(self, done, values, steps):
        if done == step and not after:
            raise Killed
        write(self, done, values, steps)
        if done == step:
            raise Killed

    monkeypatch.setattr(sums.Kept, "write", killed)
    return lambda: monkeypatch.setattr(sums.Kept, "write", write)


@pytest.mark.parametrize(
    ("what", "kills"),
    [
        ("stem", [(2, False), (3, True), (6, True), (8, True)]),
        pytest.param("cbed", [(3, True)], marks=pytest.mark.slow),
        pytest.param("hrtem", [(1, True)], marks=pytest.mark.slow),
    ],
)
def test_what_goes_on_is_the_same_bit_for_bit(folder, monkeypatch, what, kills):
    """A scan is killed in its first configuration, between them, and while it counts electrons."""
    whole = simulate(plan(what), folder / "whole").fields
    for step, after in kills:
        restore = killed_at(monkeypatch, step, after)
        with pytest.raises(Killed):
            simulate(plan(what), folder / "part", resume=(folder / "part").exists())
        restore()
    found = simulate(plan(what), folder / "part", resume=True).fields
    assert list(found) == list(whole)
    for name, field in whole.items():
        np.testing.assert_array_equal(found[name].data, field.data)
    if what == "stem":
        ours, theirs = (read(folder / n / "patterns.nxs") for n in ("part", "whole"))
        np.testing.assert_array_equal(ours.data, theirs.data)
        assert ours.unit == "electrons" and np.all(theirs.data.sum((2, 3)) > 0.9e5)


COMMAND = ["simulate", "hrtem", "gold.xyz", "--set", "sampling_A=0.3", "--set", "u_A2=0.01"]
COMMAND += ["--set", "phonons=2", "--set", "semiangle_mrad=10"]


def test_a_failure_leaves_its_log_and_provenance(folder, capsys, monkeypatch):
    """Exit 1, since 2 is for bad input; and the line that is printed goes on."""

    def out_of_memory(*_, **__):
        raise RuntimeError("out of memory in the middle")

    with monkeypatch.context() as patch:
        patch.setattr(module, "multislice", out_of_memory)
        assert main([*COMMAND, "--out", "run"]) == 1
    said = capsys.readouterr().err
    assert "out of memory in the middle" in said
    assert "Traceback" in (folder / "run" / "log.txt").read_text()
    facts = json.loads((folder / "run" / "provenance.json").read_text())
    assert facts["status"] == "failed" and "out of memory" in facts["error"]
    again = said.partition("to go on: micjax ")[2].split()
    assert again == ["run", "run/plan.resolved.json", "--out", "run", "--resume"]
    assert main([*again[:-1], "--set", "energy_keV=300", "--resume"]) == 2
    assert "energy_keV was 200.0, is 300.0" in capsys.readouterr().err
    assert main(again) == 0
    assert json.loads((folder / "run" / "provenance.json").read_text())["status"] == "finished"
    assert not list((folder / "run" / "checkpoints").iterdir())
    for words, message in ((again, "is finished"), ([*COMMAND, "--resume"], "needs --out")):
        assert main(words) == 2
        assert message in capsys.readouterr().err
    assert main([*COMMAND, "--out", "none", "--resume"]) == 2
    assert "there is no run in none" in capsys.readouterr().err


def test_ctrl_c_tells_how_to_go_on(folder, caplog, monkeypatch):
    def interrupted(self, done, values, steps):
        write(self, done, values, steps)
        raise KeyboardInterrupt

    write = sums.Kept.write
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "micjax"):
        patch.setattr(sums.Kept, "write", interrupted)
        assert main([*COMMAND, "--out", "run"]) == 130
    assert "--out run --resume" in caplog.text
    facts = json.loads((folder / "run" / "provenance.json").read_text())
    assert facts["status"] == "interrupted"


def test_the_checkpoint_of_another_simulation_is_refused(folder):
    kept = sums.Kept(folder)
    kept.write(1, {"image": np.zeros(3, np.float32)}, 4)
    kept = sums.Kept(folder, resume=True)
    done, found = kept.read({"image": np.ones(3, np.float32)}, 4)
    assert done == 1 and not found["image"].any()
    for values, steps in (
        (np.ones(3), 4),
        (np.ones(4, np.float32), 4),
        (np.ones(3, np.float32), 5),
    ):
        with pytest.raises(ValueError, match="of another simulation"):
            kept.read({"image": values}, steps)
