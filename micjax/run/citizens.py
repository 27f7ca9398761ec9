"""Problem modules by name: built in, installed as an entry point, or anywhere on the path."""

import ast
import importlib
import importlib.metadata
import importlib.util
import pathlib
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import micjax.problems
from micjax.run.names import unknown_name

GROUP = "micjax.problems"  # of entry points: name = the name of the problem, value = its module
REQUIRED, OPTIONAL = ("problem", "example"), ("load", "solve", "figures", "compare")


class Citizen(NamedTuple):
    """A problem module that has been imported: how the user called it, and what it can do."""

    name: str  # as given: "tip" or "mylab.my_problem"
    module: ModuleType

    @property
    def reference(self) -> str:
        return self.module.__name__

    @property
    def ours(self) -> bool:
        """Whether its words have the meaning of micjax (see `micjax.core.ranges`)."""
        return self.reference.startswith(f"{micjax.problems.__name__}.")

    @property
    def short(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def title(self) -> str:
        return first_line(self.module.__doc__).removesuffix(".") or self.name

    def function(self, name: str) -> Callable[..., Any] | None:
        found = getattr(self.module, name, None)
        return found if callable(found) else None


class Listed(NamedTuple):
    """A problem which was found and not imported."""

    name: str
    reference: str
    title: str
    functions: tuple[str, ...]


def first_line(doc: str | None) -> str:
    return (doc or "").strip().partition("\n")[0]


def references() -> dict[str, str]:
    """The module of every problem known by a short name; a built-in name cannot be taken."""
    table = {p.name: p.value for p in importlib.metadata.entry_points(group=GROUP)}
    built_in = [m.name for m in pkgutil.iter_modules(micjax.problems.__path__)]
    built_in = [name for name in built_in if not name.startswith("_")]
    return table | {name: f"{micjax.problems.__name__}.{name}" for name in built_in}


def find(name: str) -> Citizen:
    """The problem module called `name`: a short name of `references()`, or `package.module`.

    **Raises:** `ValueError` when there is none, it cannot be imported, or it is no problem module.
    """
    known = references()
    reference = known.get(name, name)
    if name.endswith(".py") or "/" in name:
        module = pathlib.PurePath(name).with_suffix("").as_posix().strip("./").replace("/", ".")
        raise ValueError(f"a problem is a module, not a path: try {module}")
    try:
        module = importlib.import_module(reference)
    except ModuleNotFoundError as error:
        # is it the module itself that is missing, or something which it imports?
        if name in known or not (reference + ".").startswith(f"{error.name}."):
            raise ValueError(f"problem {name!r} cannot be imported: {error}") from error
        raise ValueError(
            unknown_name("problem", name, known) + "; or a module on the path, package.module"
        ) from error
    except Exception as error:
        raise ValueError(
            f"problem {name!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    missing = [f"{f}()" for f in REQUIRED if not callable(getattr(module, f, None))]
    if missing:
        raise ValueError(f"{reference} is no problem module: it has no {' and no '.join(missing)}")
    return Citizen(name, module)


def listed() -> list[Listed]:
    """Every problem with a short name, read off its source without importing it."""
    return [_listed(name, reference) for name, reference in sorted(references().items())]


def _listed(name: str, reference: str) -> Listed:
    try:
        spec = importlib.util.find_spec(reference)
        source = pathlib.Path(spec.origin).read_text(encoding="utf-8")
        tree = ast.parse(source)
    except Exception as error:  # one broken package must not hide the other problems
        return Listed(name, reference, f"(not readable: {type(error).__name__}: {error})", ())
    names = {n for node in tree.body for n in _defined(node)}
    functions = tuple(f for f in REQUIRED + OPTIONAL if f in names)
    return Listed(name, reference, first_line(ast.get_docstring(tree)), functions)


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef):
        return [node.name]
    if isinstance(node, ast.ImportFrom | ast.Import):
        return [a.asname or a.name for a in node.names]
    if isinstance(node, ast.Assign):
        return [t.id for t in node.targets if isinstance(t, ast.Name)]
    return []
