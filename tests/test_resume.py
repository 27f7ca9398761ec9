"""Ctrl-C or `kill -9` at some moment and --resume: the same answer as undisturbed, for every
problem."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from micjax.__main__ import main
from micjax.core.foreign.modules import references
from micjax.run.folder import RunFolder

# settings under which a problem is solved in seconds, and after how many chunks it is interrupted;
# 0 where there is no descent: in its last search
QUICK = {
    "edge": (["engine.steps=200", "engine.tolerance=0"], 1),
}
LONG = {
    "aberrations": ([], 7),
    "autofocus": ([], 2),
    "cbed": ([], 2),
    "denoise": (["ny=48", "nx=48", "engine.steps=100"], 0),
    "feedback": (["engine.steps=200"], 1),
    "joint": ([], 1),
    "edx": (["ny=3", "nx=4"], 0),
    "eels": (["ny=2", "nx=3"], 0),
    "loop": (["ny=3", "nx=4"], 0),
    "particles": ([], 0),
    "peaks": (["ny=3", "nx=4", "peaks=1"], 0),
    "sho": (["ny=3", "nx=4"], 0),
    "phase_map": (["ny=200", "nx=200", "grains=3"], 1),
    "resonance": (["engine.steps=300"], 1),
    "structure": ([], 1),
    "unmixing": (["ny=20", "nx=20", "channels=60", "most_components=3"], 0),
    "tip": (["engine.steps=100", "engine.tip_steps=20"], 1),
    "tip_characteriser": (["engine.steps=200", "engine.starts=3", "engine.chains=0"], 1),
}


LAST = {"denoise": "looked_up", "particles": "contrasts", "unmixing": "end_members"}
LAST |= dict.fromkeys(["edx", "eels", "loop", "peaks", "sho"], "starts")


def problems():
    for name in sorted(n for n, m in references().items() if m.startswith("micjax.")):
        marks = [] if name in QUICK else [pytest.mark.slow]
        yield pytest.param(name, marks=marks)


def values(folder: pathlib.Path) -> dict[str, np.ndarray]:
    found = {}
    with h5py.File(folder / "values.h5") as file:
        file.visititems(
            lambda name, node: found.update(
                {name: node[()]} if isinstance(node, h5py.Dataset) else {}
            )
        )
    return found


def steps(folder: pathlib.Path) -> list[int]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["steps"] for line in lines if line.endswith("\n")]


@pytest.mark.parametrize("name", list(problems()))
def test_ctrl_c_and_resume_give_the_same_answer(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings, chunks = (QUICK | LONG)[name]
    run = ["demo", name, *(w for s in settings for w in ("--set", s))]
    assert main([*run, "--out", "whole"]) == 0

    add = RunFolder.add_metrics
    rows = []

    def interrupt(self, row):
        add(self, row)
        rows.append(row)
        if len(rows) == chunks:
            raise KeyboardInterrupt

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "add_metrics", interrupt)
        if chunks == 0:
            # the module, and not the function of its name
            package = f"micjax.problems.{name}"
            module = sys.modules.get(f"{package}.stages", sys.modules[package])
            patched.setattr(module, LAST[name], stop)
        assert main([*run, "--out", "part"]) == 130
    assert main([*run, "--out", "part", "--resume"]) == 0
    same_answer(tmp_path)


def same_answer(folder: pathlib.Path):
    """And the run `part` went on where it was, and did not begin anew."""
    assert steps(folder / "part") == steps(folder / "whole")
    whole, part = values(folder / "whole"), values(folder / "part")
    assert whole.keys() == part.keys()
    for n, value in whole.items():
        np.testing.assert_array_equal(part[n], value, err_msg=n)


@pytest.mark.slow
# particles look once, for seconds, and keep nothing before
@pytest.mark.parametrize("name", sorted((QUICK | LONG).keys() - {"particles"}))
def test_kill_and_resume_give_the_same_answer(name, tmp_path):
    """The process dies by SIGKILL as soon as it has told of so many chunks."""
    settings, chunks = (QUICK | LONG)[name]
    demo = [sys.executable, "-m", "micjax", "demo", name]
    demo += [w for s in settings for w in ("--set", s)]
    quiet = {"cwd": tmp_path, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*demo, "--out", "whole"], check=True, **quiet)
    with subprocess.Popen([*demo, "--out", "part"], **quiet) as part:
        kept = tmp_path / "part" / "checkpoints" / "fit.h5"
        while part.poll() is None and (not kept.exists() or len(steps(tmp_path / "part")) < chunks):
            time.sleep(0.01)
        part.kill()
    assert part.returncode == -signal.SIGKILL
    subprocess.run([*demo, "--out", "part", "--resume"], check=True, **quiet)
    same_answer(tmp_path)


def test_what_follows_a_fit_does_not_cost_it(tmp_path, monkeypatch, capsys):
    def out_of_memory(*args, **options):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("micjax.inference.errors.estimates.laplace", out_of_memory)
    assert main(["demo", "edge", "--out", "r", "--set", "engine.steps=20"]) == 0
    assert {"values.h5", "report.html", "metrics.jsonl"} <= {
        p.name for p in (tmp_path / "r").iterdir()
    }
    assert (
        "no Laplace errors: RuntimeError: RESOURCE_EXHAUSTED"
        in (tmp_path / "r/log.txt").read_text()
    )


DIGEST = """
import numpyro.distributions as dist
from micjax.inference.checkpoint import digest
for prior in (dist.Normal(0.0, 1.5), dist.LogNormal([1.0, 2.0], 3.0), dist.Gamma(2.0, 3.0)):
    print(digest({"x": prior.expand((2,)).to_event(1)}))
print(digest(dist.Gamma(3.0, 2.0)), digest(dist.Gamma(2.0, 3.0)))
"""


def test_a_fit_is_known_again_in_another_process():
    """The order of a set of strings, as NumPyro keeps the fields of a distribution, is not."""
    told = [
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        for seed in ("1", "2", "3")
    ]
    assert told[0] == told[1] == told[2]
    assert told[0][-2] != told[0][-1]
