"""The command line from outside: what it prints, what it writes, and how it refuses."""

import importlib
import json
import pathlib
import re
import shlex
import subprocess
import sys

import h5py
import numpy as np
import pytest
import yaml

import micjax
from micjax.__main__ import main
from micjax.io import read_nexus
from micjax.problems import denoise
from micjax.run.jobs import execute, page

TOY = '''
"""A plane through an image."""
import dataclasses
import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array
from matplotlib.figure import Figure
from micjax import Gaussian, InverseProblem, parameter
from micjax.io import read


class Plane(eqx.Module):
    slope: Array = parameter()
    offset: Array = parameter()

    def __call__(self, x):
        return self.slope * x + self.offset


def problem(slope=0.0, shape=(4, 5), colour: str = "red") -> InverseProblem:
    """A plane.

    **Arguments:**

    - `slope`: nm per pixel.
    """
    assert isinstance(shape, tuple)
    priors = {"forward.slope": dist.Normal(0.0, 3.0), "forward.offset": dist.Normal(0.0, 9.0)}
    return InverseProblem(Plane(slope, 0.0), Gaussian(0.1), priors)


def _x(shape):
    return jnp.broadcast_to(jnp.arange(float(shape[1])), shape)


def example(key, shape=(4, 5)):
    truth, x = problem(slope=2.0), _x(shape)
    return truth, x, truth.noise(truth.forward(x)).sample(key)


def load(file, channel=None, pixel_nm: float | None = None, known_tip=None):
    image = read(file, channel, pixel_nm)
    assert image.pixel_nm  # it asks for a size of its own accord
    return {"slope": 1.0}, _x(image.data.shape), image.data


def figures(solution, x, y, truth=None):
    figure = Figure()
    figure.subplots().plot([1, 2])
    return {"A <b>bold</b> plane": figure, "Broken": lambda: 1 / 0}
'''
FAST = ["--set", "engine.steps=40"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Every test in a folder of its own, with the toy problem in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])  # main adds the folder
    (tmp_path / "mylab").mkdir()
    (tmp_path / "mylab" / "plane.py").write_text(TOY)
    yield tmp_path
    for name in [n for n in sys.modules if n.split(".")[0] == "mylab"]:
        del sys.modules[name]


@pytest.fixture
def scan(here):
    image = np.add.outer(np.zeros(4), 2.0 * np.arange(5)) + 0.1 * np.eye(4, 5)
    np.savez(here / "scan.npz", Height=image, Phase=-image, pixel_nm=2.0)
    return "scan.npz"


def refused(capsys, *argv):
    """The one line on stderr with which `micjax argv` refuses its input."""
    assert main(list(argv)) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("micjax: error: ")]
    assert len(lines) == 1 and "Traceback" not in err and out == ""
    return lines[0]


# --- what it does ------------------------------------------------------------------------------


def test_demo_fills_a_run_folder(here, capsys):
    assert main(["demo", "edge", "--set", "seed=3"]) == 0
    out, err = capsys.readouterr()
    (run,) = (here / "runs").iterdir()
    assert run.name.split("-")[1] == "edge" and len(run.name.split("-")[2]) == 8
    assert "converged after" in out and "forward.width_nm" in out and "truth" in out
    assert f"report: runs/{run.name}/report.html" in out
    assert {p.name for p in run.iterdir()} == {
        *("plan.yaml", "plan.resolved.json", "provenance.json", "log.txt", "metrics.jsonl"),
        *("result.nxs", "values.h5", "checkpoints", "figures", "report.html"),
    }
    assert "edge on its example" in (run / "log.txt").read_text()
    assert yaml.safe_load((run / "plan.yaml").read_text()) == {"problem": "edge", "seed": 3}
    resolved = json.loads((run / "plan.resolved.json").read_text())
    assert resolved["engine"]["steps"] == 3000 and resolved["options"]["sigma"] == 0.05
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert 0 < rows[0]["steps"] <= 100 and np.isfinite(rows[-1]["loss"])
    assert (run / "checkpoints" / "fit.h5").exists()
    assert len(list((run / "figures").glob("*.png"))) == 4


def test_the_result_file_knows_where_it_comes_from(here):
    assert main(["demo", "edge", "--out", "r", *FAST]) == 0
    fields = read_nexus("r/result.nxs")
    assert list(fields) == ["data", "prediction", "residual"]
    assert fields["data"].metadata["default"] and fields["data"].axes[0].unit == "nm"
    provenance = json.loads((here / "r" / "provenance.json").read_text())
    with h5py.File("r/result.nxs") as file:
        kept = json.loads(file["entry/process/configuration/provenance"][()])
    assert kept == provenance
    assert provenance["status"] == "finished" and provenance["x64"] is False
    assert provenance["argv"][:3] == ["micjax", "demo", "edge"] and provenance["devices"]
    assert provenance["problem"]["reference"] == "micjax.problems.edge"
    best = micjax.load("r/values.h5").values()
    assert best["forward.edge_nm"].shape == ()


@pytest.mark.slow
def test_the_resolved_plan_gives_the_same_run(here):
    assert main(["demo", "edge", "--out", "a", "--set", "width_nm=2", *FAST]) == 0
    assert main(["run", "a/plan.resolved.json", "--out", "b"]) == 0
    assert main(["run", "b/plan.yaml", "--out", "a"]) == 0  # the same plan: begun anew
    a, b = micjax.load("a/values.h5").values(), micjax.load("b/values.h5").values()
    assert all(float(a[n]) == float(b[n]) for n in a)


def test_precision_is_that_of_the_plan(here):
    assert main(["demo", "edge", "--out", "r", "--set", "precision=float64", *FAST]) == 0
    with h5py.File("r/values.h5") as file:
        assert file["values/forward.edge_nm"].dtype == np.float64
    assert json.loads((here / "r" / "provenance.json").read_text())["x64"] is True


@pytest.mark.slow
def test_nuts_and_starts(here, capsys):
    engine = "sampler=nuts", "samples=20", "warmup=20", "starts=3", "steps=40"
    settings = [part for e in engine for part in ("--set", f"engine.{e}")]
    assert main(["demo", "edge", "--out", "r", *settings]) == 0
    assert "5 % to 95 %" in capsys.readouterr().out
    page = (here / "r" / "report.html").read_text()
    assert "2 chains of 20 draws" in page and "3 starts" in page and "r_hat" in page


@pytest.mark.slow
def test_a_known_value_and_another_prior(here, capsys):
    settings = ["--set", "priors.noise.sigma=null", "--set", "values.noise.sigma=0.05"]
    settings += ["--set", "priors.forward.width_nm=HalfNormal(2)"]
    assert main(["demo", "edge", "--out", "r", *settings, *FAST]) == 0
    out, _ = capsys.readouterr()
    assert "noise.sigma" not in out and "HalfNormal(2)" in out
    assert float(micjax.load("r/values.h5").values()["noise.sigma"]) == np.float32(0.05)


def test_a_problem_from_anywhere_reads_a_file(here, scan, capsys):
    assert main(["fit", "mylab.plane", scan, "--out", "r", "--set", "pixel_nm=2e0", *FAST]) == 0
    out, err = capsys.readouterr()
    assert "channel Height of Height, Phase" in err and "figure 'Broken' failed" in err
    assert "channel Height" in (here / "r" / "log.txt").read_text()
    assert "ZeroDivisionError" in (here / "r" / "log.txt").read_text()
    known = json.loads((here / "r" / "provenance.json").read_text())["inputs"]["file"]
    assert len(known["sha256"]) == 64 and known["bytes"] == (here / scan).stat().st_size
    page = (here / "r" / "report.html").read_text()
    assert "channel Height of Height, Phase" in page
    assert "A &lt;b&gt;bold&lt;/b&gt; plane" in page and "<b>bold" not in page
    with pytest.raises(ValueError, match="'mylab.plane' is none of micjax"):
        micjax.load("r/values.h5")
    assert float(micjax.load("r/values.h5", "mylab.plane").values()["forward.slope"]) > 1.0


def test_channel_is_an_option(here, scan):
    fit = ["fit", "mylab.plane", scan, "--channel", "Phase"]
    assert main([*fit, "--set", f"known_tip={scan}", "--out", "r", *FAST]) == 0
    assert (read_nexus("r/result.nxs")["data"].data[:, 1:] < 0).all()
    inputs = json.loads((here / "r" / "provenance.json").read_text())["inputs"]
    assert set(inputs) == {"file", "options.known_tip"}


def test_files_in_a_list_are_inputs_too(here, scan):
    fit = ["fit", "mylab.plane", scan, "--set", f"known_tip=[{scan}]", "--out", "r"]
    assert main([*fit, *FAST]) == 0
    known = json.loads((here / "r" / "provenance.json").read_text())["inputs"]
    assert set(known) == {"file", "options.known_tip.0"}
    plan = json.loads((here / "r" / "plan.resolved.json").read_text())
    assert plan["options"]["known_tip"] == [str(here / scan)]


def test_options_of_the_example(here):
    assert main(["demo", "mylab.plane", "--out", "r", "--set", "shape=[3, 7]", *FAST]) == 0
    assert read_nexus("r/result.nxs")["data"].data.shape == (3, 7)


def test_plan_with_a_file(here, scan, capsys):
    plan = {"problem": "mylab.plane", "file": scan, "options": {"slope": 0.5}, "out": "r"}
    (here / "plan.yaml").write_text(yaml.safe_dump(plan) + "engine:\n  learning_rate: 1e-1\n")
    assert main(["validate", "plan.yaml"]) == 0
    assert "plan.yaml is valid" in capsys.readouterr().out and not (here / "r").exists()
    assert main(["run", "plan.yaml", *FAST]) == 0
    assert (here / "r" / "plan.yaml").read_text() == (here / "plan.yaml").read_text()
    resolved = json.loads((here / "r" / "plan.resolved.json").read_text())
    assert resolved["engine"]["learning_rate"] == 0.1 and resolved["options"]["slope"] == 0.5
    assert resolved["file"] == str(here / scan)


@pytest.mark.parametrize("name", ["edge", "mylab.plane"])
def test_init_writes_a_plan_which_is_valid(here, scan, capsys, name):
    assert main(["init", name, "plan.yaml"]) == 0
    assert main(["validate", "plan.yaml"]) == 0
    text = (here / "plan.yaml").read_text()
    assert "# steps: 3000" in text and "## at most." in text
    full = re.sub("^  # ", "  ", text, flags=re.MULTILINE)
    assert full != text
    full = full.replace("# file: scan.ibw", f"file: {scan}")  # only where files are read
    (here / "full.yaml").write_text(full)
    assert main(["validate", "full.yaml"]) == 0
    capsys.readouterr()
    assert "is there already" in refused(capsys, "init", name, "plan.yaml")
    assert main(["init", name]) == 0
    assert capsys.readouterr().out == text


def test_list_and_info(here, capsys):
    assert main(["list"]) == 0
    out, _ = capsys.readouterr()
    assert "edge" in out and "Probe size from a line scan" in out
    assert main(["info"]) == 0
    out, _ = capsys.readouterr()
    assert "jax " in out and "devices" in out and "extra spm" in out
    shipped = pathlib.Path(denoise.__file__).with_name("network.h5")
    assert main(["info", str(shipped)]) == 0
    out, _ = capsys.readouterr()
    assert "UNet" in out and "519," in out and "px on each side" in out and "width = 16" in out
    assert "no such network" in refused(capsys, "info", "nothing.h5")
    np.save("a.npy", np.random.default_rng(0).poisson(3.0, (64, 64)))
    assert "no such network" in refused(capsys, "fit", "denoise", "a.npy", "--net", "nothing.h5")


def test_help_and_no_command(capsys):
    for argv, code in (["--help"], 0), ([], 2), (["demo", "--nonsense"], 2):
        with pytest.raises(SystemExit) as end:
            main(argv)
        assert end.value.code == code


# --- how it refuses ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv, message",
    [
        ("demo egde", "no problem 'egde' (nearest: edge)"),
        ("demo json", "json is no problem module: it has no problem() and no example()"),
        ("demo mylab.nothing", "no problem 'mylab.nothing'"),
        ("demo ./mylab/plane.py", "try mylab.plane"),
        ("demo edge --set wdth_nm=2", "no option of edge 'wdth_nm' (nearest: width_nm)"),
        ("demo mylab.plane --set channel=Height", "is for reading a file, and no file is given"),
        ("demo edge --set width_nm=wide", "'width_nm' is 'wide'"),
        ("demo edge --set engine.step=2", "no engine setting 'step' (nearest: steps)"),
        ("demo edge --set engine.steps=many", "'steps' is 'many'"),
        ("demo edge --set engine.sampler=gibbs", "'sampler' is 'gibbs'"),
        ("demo edge --set engin.steps=2", "no section 'engin' (nearest: engine)"),
        ("demo edge --set steps", "write name=value"),
        ("demo edge --set seed=-1", "seed is -1"),
        ("demo edge --set precision=half", "precision is 'half'"),
        ("demo edge --set width_nm=[1", "--set width_nm=[1"),
        ("demo edge --set priors.noise.sgma=null", "no prior 'noise.sgma' (nearest: noise.sigma)"),
        ("demo edge --set priors.noise.sgma=Normal(0,1)", "no float array or network"),
        ("demo edge --set priors.noise.sigma=HalfNorm(1)", "(nearest: HalfNormal)"),
        ("demo edge --set priors.noise.sigma=HalfNormal(-1)", "invalid scale"),
        ("demo edge --set priors.noise.sigma=Normal(f())", "f() is not a number"),
        ("demo edge --set priors.noise.sigma=Uniform(1,2)", "which its prior does not allow"),
        ("demo edge --set values.noise.sgma=1", "no value 'noise.sgma' (nearest: noise.sigma)"),
        ("demo edge --set values.noise.sigma=[1,2]", "does not fit the shape ()"),
        ("demo edge --resume", "--resume needs --out DIR"),
        ("demo edge --resume --out new", "there is no run in new"),
        ("fit edge scan.npz", "edge reads no files"),
        ("fit mylab.plane none.npz", "no such file: none.npz"),
        ("fit mylab.plane mylab", "mylab is a folder"),
        ("fit mylab.plane scan.npz --channel Heigth", "there are Height, Phase"),
        ("fit mylab.plane scan.npz --set pixl_nm=2", "(nearest: pixel_nm)"),
        ("fit mylab.plane scan.npz --set pixel_nm=3", "the file states pixels of 2 x 2 nm"),
        ("fit mylab.plane bare.npy", "no pixel size in the file, give --set pixel_nm="),
        ("fit mylab.plane scan.xyz", "unknown format .xyz"),
        ("fit mylab.plane short.npz", "not readable as NumPy archive"),
        ("fit mylab.plane empty.npz", "the file is empty"),
        ("run none.yaml", "no such plan: none.yaml"),
        ("run broken.yaml", "broken.yaml, line 3"),
        ("run list.yaml", "a plan is `key: value` lines"),
        ("run twice.yaml", "'seed' stands there twice"),
        ("run key.yaml", "no key 'engin' (nearest: engine)"),
        ("run bare.npy", "a plan is a text file"),
        ("validate key.yaml", "no key 'engin' (nearest: engine)"),
        ("validate short.yaml", "the key 'problem' is missing"),
    ],
)
def test_bad_input(here, scan, capsys, argv, message):
    np.save("bare.npy", np.arange(6.0).reshape(2, 3))
    (here / "scan.xyz").write_text("1 2 3")
    (here / "short.npz").write_bytes((here / scan).read_bytes()[:100])
    (here / "empty.npz").write_bytes(b"")
    (here / "broken.yaml").write_text("problem: edge\nengine: {steps: 1\nseed: 3\n")
    (here / "list.yaml").write_text("- edge\n")
    (here / "twice.yaml").write_text("problem: edge\nseed: 1\nseed: 2\n")
    (here / "key.yaml").write_text("problem: edge\nengin: {steps: 1}\n")
    (here / "short.yaml").write_text("seed: 1\n")
    assert message in refused(capsys, *argv.split())
    assert not (here / "runs").exists() and not (here / "new").exists()


def test_debug_shows_the_traceback(capsys):
    assert main(["demo", "edge", "--debug", "--set", "engine.step=2"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_out_must_be_empty_or_the_same_run(here, capsys):
    (here / "full").mkdir()
    (here / "full" / "thesis.tex").write_text("x")
    assert "holds no micjax run" in refused(capsys, "demo", "edge", "--out", "full")
    assert "is a file" in refused(capsys, "demo", "edge", "--out", "full/thesis.tex")
    assert main(["demo", "edge", "--out", "r", *FAST]) == 0
    capsys.readouterr()
    other = refused(capsys, "demo", "edge", "--out", "r", "--set", "seed=5", *FAST)
    assert "another plan: seed was 0, is 5" in other
    assert "engine.steps was 40" in refused(capsys, "demo", "edge", "--out", "r")
    known = "--set", "priors.noise.sigma=null"  # None, as what is not there
    assert "sigma was 'that of" in refused(capsys, "demo", "edge", "--out", "r", *known, *FAST)
    other = refused(capsys, "demo", "edge", "--out", "r", "--resume", "--set", "width_nm=9")
    assert "options.width_nm was 1.0, is 9.0" in other


def test_a_problem_that_does_not_import(here, capsys):
    (here / "mylab" / "broken.py").write_text("import nonsense_package\n" + TOY)
    assert "nonsense_package" in refused(capsys, "demo", "mylab.broken")
    (here / "mylab" / "worse.py").write_text("1 / 0\n" + TOY)
    assert "ZeroDivisionError" in refused(capsys, "demo", "mylab.worse")


# --- what goes wrong on the way ----------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch):
    """Ctrl-C after 200 steps."""
    recorder = execute._recorder

    def interrupted(folder, began):
        record = recorder(folder, began)

        def on_chunk(steps, *more):
            record(steps, *more)
            if steps >= 200:
                raise KeyboardInterrupt

        return on_chunk

    return lambda patch: patch.setattr(execute, "_recorder", interrupted)


def line_to_go_on(err):
    """What the last line on the terminal says, as a shell takes it."""
    (line,) = [line for line in err.splitlines() if "to go on: " in line]
    program, *words = shlex.split(line.partition("to go on: ")[2])
    assert program == "micjax"
    return words


def test_ctrl_c_keeps_the_best_so_far_and_resume_goes_on(here, capsys, monkeypatch, impatient):
    whole = ["demo", "edge", "--set", "engine.steps=400", "--set", "engine.tolerance=0"]
    whole += ["--set", "engine.learning_rate=0.02"]
    assert main([*whole, "--out", "whole"]) == 0
    with monkeypatch.context() as patch:
        impatient(patch)
        assert main([*whole, "--out", "r"]) == 130
    out, err = capsys.readouterr()
    assert "stopped after 200 steps: interrupted" in out and "report: r/report.html" in out
    assert "micjax run r/plan.resolved.json --out r --resume" in err
    assert json.loads((here / "r" / "provenance.json").read_text())["status"] == "interrupted"
    assert read_nexus("r/result.nxs") and micjax.load("r/values.h5")
    assert "give --resume to go on" in refused(capsys, *whole, "--out", "r")
    assert main(["run", "r/plan.resolved.json", "--out", "r", "--resume"]) == 0
    assert "after 400 steps" in capsys.readouterr().out
    lines = (here / "r" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["steps"] for line in lines]
    assert steps == [100, 200, 300, 400]
    a, b = micjax.load("r/values.h5").values(), micjax.load("whole/values.h5").values()
    assert all(float(a[n]) == float(b[n]) for n in a)
    assert main([*whole, "--set", "engine.steps=500", "--out", "r", "--resume"]) == 0


def test_the_printed_line_goes_on_whatever_the_run_was_begun_with(
    here, scan, capsys, monkeypatch, impatient
):
    texts = [
        "slope=2",
        "engine.steps=400",
        "engine.tolerance=0",
        "engine.learning_rate=0.02",
        "seed=3",
        "precision=float64",
    ]
    texts += ["values.forward.offset=0.5", "priors.forward.slope=Normal(0, 2)"]
    settings = [part for text in texts for part in ("--set", text)]
    begin = ["fit", "mylab.plane", scan, "--channel", "Phase", *settings, "--out", "of monday"]
    with monkeypatch.context() as patch:
        impatient(patch)
        assert main(begin) == 130
    words = line_to_go_on(capsys.readouterr().err)
    assert main(words) == 0
    assert "after 400 steps" in capsys.readouterr().out
    given = yaml.safe_load((here / "of monday" / "plan.yaml").read_text())
    assert given["options"] == {"channel": "Phase", "slope": 2} and given["seed"] == 3


def test_a_failure_that_the_solver_did_not_see_is_in_the_provenance(here, monkeypatch):
    """The result cannot be written: the run has failed, and not only its exit code says so."""

    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(execute, "write_nexus", full)
    assert main(["demo", "edge", "--out", "r", *FAST]) == 1
    facts = json.loads((here / "r" / "provenance.json").read_text())
    assert facts["status"] == "failed" and "MemoryError" in facts["error"]
    assert "MemoryError" in (here / "r" / "log.txt").read_text()


def test_what_nobody_expected_is_no_bad_input(here, scan, capsys):
    (here / "mylab" / "wrong.py").write_text(TOY.replace("def load(", "def load_(") + WRONG)
    assert main(["fit", "mylab.wrong", scan]) == 1
    assert "micjax: error: KeyError: 'lost'" in capsys.readouterr().err


WRONG = """

def load(file):
    raise KeyError("lost")
"""


# --- code that a plan names ----------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path_factory, monkeypatch):
    """A module on the path, but not below the current folder; it leaves a trace when it runs."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "far_away.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n" + TOY)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "far_away", raising=False)
    yield folder
    sys.modules.pop("far_away", None)


def test_a_plan_names_code_that_the_user_must_agree_to(here, elsewhere, capsys):
    (here / "plan.yaml").write_text("problem: far_away\nengine: {steps: 40}\n")
    said = refused(capsys, "run", "plan.yaml")
    assert "not below the current folder" in said and "--trust far_away" in said
    assert not (elsewhere / "ran").exists()
    assert main(["run", "plan.yaml", "--trust", "far_away", "--out", "r"]) == 0
    assert (elsewhere / "ran").exists()


def test_a_name_on_the_command_line_is_the_word_of_the_user(
    here, elsewhere, capsys, monkeypatch, impatient
):
    begin = ["demo", "far_away", "--set", "engine.steps=400", "--set", "engine.tolerance=0"]
    begin += ["--set", "engine.learning_rate=0.02"]
    with monkeypatch.context() as patch:
        impatient(patch)
        assert main([*begin, "--out", "r"]) == 130
    words = line_to_go_on(capsys.readouterr().err)
    assert words[-2:] == ["--trust", "far_away"] and main(words) == 0


@pytest.mark.parametrize("module", ["antigravity", "this", "mylab.script", "mylab.nested.deep"])
def test_what_is_no_problem_is_not_imported(here, capsys, module):
    """What would run is read first: neither the module nor the packages around it are imported."""
    (here / "mylab" / "nested").mkdir()
    for name in ("script.py", "nested/__init__.py", "nested/deep.py"):
        (here / "mylab" / name).write_text("open('ran', 'w').close()\n")
    (here / "plan.yaml").write_text(f"problem: {module}\n")
    for argv in (["run", "plan.yaml"], ["demo", module]):
        said = refused(capsys, *argv)
        assert "is a part of Python" in said or "is no problem module" in said
    assert module not in sys.modules and not (here / "ran").exists()


def test_a_folder_of_data_takes_the_place_of_no_package(here, monkeypatch):
    """A `tabulate.py` beside the data is not what `import tabulate` finds, if there is another."""
    installed = here / "installed"
    installed.mkdir()
    for folder, word in ((installed, "installed"), (here, "data")):
        (folder / "of_both.py").write_text(f"WORD = {word!r}\n")
    monkeypatch.setattr(sys, "path", [str(installed), *sys.path])
    assert main(["info"]) == 0
    assert importlib.import_module("of_both").WORD == "installed"
    del sys.modules["of_both"]


def test_a_full_disk_at_the_report_costs_the_report_only(here, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    assert main(["demo", "edge", "--out", "r", *FAST]) == 0
    monkeypatch.setattr(page, "write_page", full)
    assert main(["demo", "edge", "--out", "r", *FAST]) == 1
    err = capsys.readouterr().err
    assert "No space left" in err and "the result is in r" in err and "Traceback" not in err
    assert read_nexus("r/result.nxs") and not (here / "r" / "report.html").exists()


def test_a_full_disk_at_the_result_is_said(here, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(execute, "write_nexus", full)
    assert main(["demo", "edge", "--out", "r", *FAST]) == 1
    err = capsys.readouterr().err
    assert "No space left" in err and "to go on: micjax run" in err
    assert micjax.load("r/values.h5") and "Traceback" in (here / "r" / "log.txt").read_text()


def test_a_solver_that_fails(here, capsys):
    text = TOY + ("\ndef stages(problem, x, y, rate=1.0):\n    raise RuntimeError('lost')\n")
    (here / "mylab" / "lost.py").write_text(text)
    assert "'rte'" in refused(capsys, "demo", "mylab.lost", "--set", "engine.rte=2")
    assert main(["demo", "mylab.lost", "--out", "r", "--set", "engine.rate=2"]) == 1
    err = capsys.readouterr().err
    assert "micjax: error: RuntimeError: lost (more in r/log.txt)" in err and "Trace" not in err
    assert "Traceback" in (here / "r" / "log.txt").read_text()
    facts = json.loads((here / "r" / "provenance.json").read_text())
    assert facts["status"] == "failed" and "lost" in facts["error"]


@pytest.mark.parametrize("words", [["list"], ["fit", "nosuch", "scan.ibw"], ["fit", "--nosuch"]])
def test_an_answer_comes_before_jax_does(words):
    """Which takes most of a second to import."""
    look = (
        "import sys\nfrom micjax.__main__ import main\n"
        f"try:\n    status = main({words})\nexcept SystemExit as left:\n    status = left.code\n"
        "heavy = {'jax', 'scipy', 'numpyro', 'equinox', 'h5py', 'pydantic'} & set(sys.modules)\n"
        "print(status, len(sys.modules) < 600, heavy)"
    )
    told = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True)
    assert told.stdout.splitlines()[-1] == f"{2 * (words != ['list'])} True set()", told.stderr


def test_what_micjax_offers_is_known_before_it_is_imported():
    assert {"InverseProblem", "fit", "solve", "fit_map"} <= set(dir(micjax))
    with pytest.raises(AttributeError, match="nosuch"):
        _ = micjax.nosuch
