"""What the documentation says holds: its programs run, its commands and files exist."""

import importlib
import pathlib
import re
import shlex
import subprocess
import sys

import jax
import numpyro.distributions as dist
import pytest

import micjax
from micjax.__main__ import main
from micjax.io import formats
from micjax.run.cli import parser
from micjax.run.jobs.job import prepare
from micjax.run.plans.solve import SolvePlan

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "experiments/README.md"])
DOCS = ROOT / "docs"
COMMAND = re.compile(r"(micjax|make) [a-z]")


def blocks(page: pathlib.Path, language: str) -> list[str]:
    """The fenced blocks of one language; a program that begins with `# runs` is run here."""
    fenced = re.findall(r"^```(.*?)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [text for found, text in fenced if found == language]


def programs():
    for page in PAGES:
        for i, code in enumerate(b for b in blocks(page, "python") if b.startswith("# runs\n")):
            marks = [] if page.name == "README.md" else [pytest.mark.slow]
            yield pytest.param(code, id=f"{page.relative_to(ROOT)}-{i}", marks=marks)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of its own, on the path, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in [n for n in set(sys.modules) - before if n.startswith("mylab")]:
        del sys.modules[name]


@pytest.mark.parametrize("code", list(programs()))
def test_programs_run(code, here):
    exec(compile(code, "the program of this page", "exec"), {"__name__": "__main__"})


def test_readme_has_a_program_of_about_20_lines():
    (code,) = [b for b in blocks(ROOT / "README.md", "python") if b.startswith("# runs\n")]
    assert len(code.splitlines()) <= 25


# --- the file of "Write your own inverse problem in one file" -------------------------------------


@pytest.fixture
def mylab(here):
    """The file of the page, as mylab/my_problem.py in the current folder."""
    code = blocks(DOCS / "write-your-own.md", "python")[0]
    assert len(code.splitlines()) <= 40
    (here / "mylab").mkdir()
    (here / "mylab" / "my_problem.py").write_text(code)
    importlib.invalidate_caches()
    return importlib.import_module("mylab.my_problem")


def test_your_own_problem_keeps_the_contract(mylab):
    report = micjax.check(mylab)
    assert len(report.rows) == 8 and not any(fault for _, fault in report.rows)


def test_your_own_algorithm_runs(mylab, here, capsys):
    (code,) = blocks(DOCS / "stages.md", "python")
    assert len([line for line in code.splitlines() if line]) <= 30
    path = here / "mylab" / "my_stages.py"
    path.write_text((here / "mylab" / "my_problem.py").read_text() + code)
    importlib.invalidate_caches()
    module = importlib.import_module("mylab.my_stages")
    # the values given are far from the resonance
    truth, x, y = module.example(jax.random.key(0))
    far = module.problem(75.0).given({"forward.resonance_kHz": dist.Normal(70.0, 2.0)})
    solution = micjax.solve(module, far, x, y, key=jax.random.key(1), draws=100)
    assert solution.fit.stop_reason == "converged"
    error = solution.problem.forward.resonance_kHz - truth.forward.resonance_kHz
    assert abs(error) < 5 * solution.laplace.sd()["forward.resonance_kHz"]


def test_your_own_problem_runs_from_the_command_line(mylab, here, capsys):
    assert main(["demo", "mylab.my_problem", "--out", "demo"]) == 0
    out = capsys.readouterr().out
    assert "converged" in out and "All unknowns are identified by these data." in out
    assert (here / "demo/report.html").exists()


@pytest.mark.slow
def test_your_own_problem_is_sampled(mylab, capsys):
    assert main(["demo", "mylab.my_problem", "--set", "engine.sampler=nuts"]) == 0
    out = capsys.readouterr().out
    assert "5 % to 95 %" in out and "transitions diverged" not in out and "do not agree" not in out


def test_your_own_problem_reads_a_file(mylab, here):
    (here / "curve.csv").write_text("69.9,1.0\n70.0,3.0\n70.2,9.0\n70.3,4.0\n")
    plan = SolvePlan(problem="mylab.my_problem", file="curve.csv", options={"sigma_nm": 0.5})
    job = prepare(plan)
    assert float(job.problem.forward.resonance_kHz) == 70.2
    assert float(job.problem.noise.sigma) == 0.5 and job.y.shape == (4,)


# --- commands, names and links --------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_and_links_exist(page):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in "".join(blocks(page, "") + blocks(page, "sh")).splitlines():
        command, *words = shlex.split(line.split("  ")[0]) if COMMAND.match(line) else [""]
        if command == "micjax":
            parser().parse_args(words)  # leaves with SystemExit if it cannot
        elif command == "make":
            assert all(w in targets or "=" in w for w in words), line
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_formats_are_listed():
    page = (DOCS / "formats.md").read_text()
    assert [e for e in formats() if f"`{e}`" not in page] == []


def test_public_names_are_in_the_reference():
    page = (DOCS / "api.md").read_text()
    public = [n for n in dir(micjax) if not n.startswith("_")]
    assert len(public) > 15
    assert [n for n in public if not re.search(rf"\b{n}\b", page)] == []


@pytest.mark.slow
def test_the_pages_build(tmp_path):
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "write-your-own.html").exists()
