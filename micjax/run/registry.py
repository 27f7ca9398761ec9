"""Problem modules by name: built in, installed as an entry point, or anywhere on the path."""

import ast
import importlib
import pathlib
import sys
from collections.abc import Callable, Collection
from types import ModuleType
from typing import Any, NamedTuple

from micjax.core.foreign.modules import GROUP, defined, references, source_of, trusted_source
from micjax.core.names import unknown_name
from micjax.report.table import plain_table

REQUIRED = ("problem", "example")
OPTIONAL = ("load", "stages", "conclude", "figures", "compare", "training", "training_figures")


class RegistryEntry(NamedTuple):
    """A problem module that has been imported: how the user called it, and what it can do."""

    name: str  # as given: "tip" or "mylab.my_problem"
    module: ModuleType

    @property
    def reference(self) -> str:
        return self.module.__name__

    @property
    def ours(self) -> bool:
        """Whether its words have the meaning of micjax (see `micjax.core.ranges`)."""
        return self.reference.startswith(f"{GROUP}.")

    @property
    def short(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def title(self) -> str:
        return first_line(self.module.__doc__).removesuffix(".") or self.name

    def function(self, name: str) -> Callable[..., Any] | None:
        attribute = getattr(self.module, name, None)
        return attribute if callable(attribute) else None


class Listed(NamedTuple):
    """A problem which was found and not imported."""

    name: str
    reference: str
    title: str
    functions: tuple[str, ...]


def first_line(doc: str | None) -> str:
    return (doc or "").strip().partition("\n")[0]


def find(name: str, trusted: Collection[str] | None = None) -> RegistryEntry:
    """The problem module called `name`: a short name of `references()`, or `package.module`.

    **Arguments:**

    - `trusted`: of a name that stands in a file, the packages which the user has agreed to run
        besides those of `trusted_source`. None: the name is the user's own word.

    **Raises:** `ValueError` when there is none, it may not or cannot be imported, or it is no
    problem module.
    """
    reference = recognised(name, trusted)
    try:
        module = importlib.import_module(reference)
    except Exception as error:
        raise ValueError(
            f"problem {name!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    _complete(reference, {n for n in REQUIRED if callable(getattr(module, n, None))})
    return RegistryEntry(name, module)


def recognised(name: str, trusted: Collection[str] | None = None) -> str:
    """The module that `find` would import, looked at without that; raises what `find` would."""
    known = references()
    reference = known.get(name, name)
    if name.endswith(".py") or "/" in name:
        module = pathlib.PurePath(name).with_suffix("").as_posix().strip("./").replace("/", ".")
        raise ValueError(f"a problem is a module, not a path: try {module}")
    try:
        if reference not in sys.modules:  # else all of it has run already
            _read(reference, trusted)
    except ModuleNotFoundError as error:
        if name in known:
            raise ValueError(f"problem {name!r} cannot be imported: {error}") from error
        raise ValueError(
            unknown_name("problem", name, known) + "; or a module on the path, package.module"
        ) from error
    return reference


def _read(reference: str, trusted: Collection[str] | None) -> None:
    """**Raises:** `ValueError` for a module that is no problem, told before it is imported."""
    names = defined(trusted_source(reference, trusted))
    if "*" not in names:
        _complete(reference, names)


def _complete(reference: str, names: Collection[str]) -> None:
    missing = [f"{name}()" for name in REQUIRED if name not in names]
    if missing:
        raise ValueError(f"{reference} is no problem module: it has no {' and no '.join(missing)}")


def listed() -> list[Listed]:
    """Every problem with a short name, read off its source without importing it."""
    return [_listed(name, reference) for name, reference in sorted(references().items())]


def table_of_problems() -> str:
    """As text: name, whether it reads files, what it is."""
    return plain_table(
        [
            {"problem": p.name, "reads files": "load" in p.functions, "what it is": p.title}
            for p in listed()
        ]
    )


def _listed(name: str, reference: str) -> Listed:
    try:
        path = source_of(reference)
        names = defined(path)
        doc = ast.get_docstring(ast.parse(path.read_bytes()))
    except Exception as error:  # one broken package must not hide the other problems
        return Listed(name, reference, f"(not readable: {type(error).__name__}: {error})", ())
    functions = tuple(f for f in REQUIRED + OPTIONAL if f in names)
    return Listed(name, reference, first_line(doc), functions)
