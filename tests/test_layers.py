"""Who may import whom, and how large a room and a file may be."""

import ast
import pathlib

import pytest

# what a room of micjax may import; '' is `import micjax`
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
        "nets",
        "physics",
        "report",
        "problems",
        "run",
        "",
    },
}
# rooms within a room that know nothing of each other
APART = {
    "physics.tips": ("physics.probes", "physics.electrons", "physics.patches"),
    "physics.probes": ("physics.tips", "physics.electrons", "physics.patches"),
    "physics.electrons": ("physics.tips", "physics.probes", "physics.patches"),
    "physics.patches": ("physics.tips", "physics.probes", "physics.electrons"),
    "physics.spectra": (
        "physics.tips",
        "physics.probes",
        "physics.electrons",
        "physics.patches",
    ),
    "active.gp": ("active.acquire", "active.design", "active.learner"),
    "active.acquire": ("active.design", "active.learner"),
    "inference.starts": ("inference.solvers", "inference.errors"),
    "run.plans": ("run.jobs",),
}
MOST_FILES, MOST_LINES = 12, 450
ROOT = pathlib.Path(__file__).parents[1] / "micjax"
FILES = sorted(ROOT.glob("*/**/*.py"))
ROOMS = sorted({path.parent for path in ROOT.glob("**/*.py")})


def imported(tree):
    """Dotted names, `micjax.core.problem.InverseProblem`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield "a relative import"
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def inside(name, room):
    return f"{name}.".startswith(f"{room}.")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_layer(path):
    inner = path.relative_to(ROOT)
    here = ".".join(inner.with_suffix("").parts)
    for name in imported(ast.parse(path.read_text())):
        assert name != "a relative import", "write the full name: rooms are read off it"
        if inside(name, "micjax"):
            name = name.removeprefix("micjax").removeprefix(".")
            target = name.split(".")[0]
            if not (ROOT / target).is_dir() and not (ROOT / f"{target}.py").exists():
                target = ""  # a public name
            room = inner.parts[0]
            assert target in ALLOWED[room], f"{path.name} (room {room}) imports {name}"
            for own, others in APART.items():
                apart = inside(here, own) and any(inside(name, other) for other in others)
                assert not apart, f"{path.name} (room {own}) imports {name}"


def test_rooms_apart_are_there():
    """A room that was renamed would no longer be looked at."""
    for room in [*APART, *(other for others in APART.values() for other in others)]:
        assert (ROOT / room.replace(".", "/")).is_dir(), room


@pytest.mark.parametrize("room", ROOMS, ids=lambda p: str(p.relative_to(ROOT.parent)))
def test_a_room_is_seen_at_a_glance(room):
    files = sorted(path.name for path in room.glob("*.py"))
    assert len(files) <= MOST_FILES, files


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_is_read_in_one_go(path):
    assert len(path.read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("path", sorted(ROOT.glob("problems/**/*.py")), ids=lambda p: p.name)
def test_problems_draw_with_figures_only(path):
    for name in imported(ast.parse(path.read_text())):
        if inside(name, "micjax.report"):
            assert inside(name, "micjax.report.figures"), name
