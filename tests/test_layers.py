"""Who may import whom: a row lists what a room of micjax may import ('' is `import micjax`)."""

import ast
import pathlib

import pytest

ALLOWED = {
    "core": {"core"},
    "physics": {"core", "physics"},
    "nets": {"core", "nets"},
    "io": {"core", "io"},
    "inference": {"core", "inference"},
    "problems": {"core", "physics", "nets", "inference", "io", "problems", "report", ""},
    "report": {"core", "inference", "io", "report"},
    "active": {"core", "physics", "nets", "inference", "instruments", "active", ""},
    "instruments": {"core", "physics", "io", "instruments"},
    # nobody imports run but the command line
    "run": {
        "active",
        "core",
        "inference",
        "instruments",
        "io",
        "physics",
        "report",
        "problems",
        "run",
        "",
    },
}
ROOT = pathlib.Path(__file__).parents[1] / "micjax"
FILES = sorted(ROOT.glob("*/**/*.py"))


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield "a relative import"
        elif isinstance(node, ast.ImportFrom):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_layer(path):
    room = path.relative_to(ROOT).parts[0]
    for name in imported(ast.parse(path.read_text())):
        assert name != "a relative import", "write the full name: rooms are read off it"
        if name.split(".")[0] == "micjax":
            target = (name.split(".") + [""])[1]
            assert target in ALLOWED[room], f"{path.name} (room {room}) imports {name}"


@pytest.mark.parametrize("path", sorted(ROOT.glob("problems/**/*.py")), ids=lambda p: p.name)
def test_problems_draw_with_figures_only(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("micjax.report"):
            what = [f"{node.module}.{alias.name}" for alias in node.names]
            assert all((w + ".").startswith("micjax.report.figures.") for w in what), what
