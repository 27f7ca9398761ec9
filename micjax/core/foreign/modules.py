"""Python code that a plan or a result file names, looked at before any of it runs.

To import a module is to run it, and with it the packages that it lies in. What a file names is
therefore found and read as text first: where it lies, whether the user has agreed to code from
there, and whether what is wanted is defined in it.
"""

import ast
import importlib.machinery
import importlib.metadata
import importlib.util
import pathlib
import pkgutil
import re
import sys
from collections.abc import Collection, Iterator

GROUP = "micjax.problems"  # of entry points: name = the name of the problem, value = its module
PROBLEMS = pathlib.Path(__file__).parents[2] / "problems"
SHARED = "shared"  # among the problems: the room of what several of them need
INSTALLED = ("site-packages", "dist-packages")
MOST_STEPS = 10  # from one module to the next that a name is imported from


def references() -> dict[str, str]:
    """The module of every problem known by a short name; a built-in name cannot be taken."""
    table = {p.name: p.value for p in importlib.metadata.entry_points(group=GROUP)}
    built_in = [m.name for m in pkgutil.iter_modules([str(PROBLEMS)]) if m.name != SHARED]
    return table | {n: f"{GROUP}.{n}" for n in built_in}


def source_of(module: str) -> pathlib.Path:
    """The file of a module, found without an import of it or of its packages.

    **Raises:** `ValueError` for what is no dotted name, belongs to Python itself or is not written
    in Python; `ModuleNotFoundError` where there is none.
    """
    parts = module.split(".")
    if not all(part.isidentifier() for part in parts):
        raise ValueError(f"{module!r} is no name of a module: package.module, not a path")
    if parts[0] in sys.stdlib_module_names or parts[0] in sys.builtin_module_names:
        raise ValueError(f"{module!r} is a part of Python: nothing that can be named here")
    spec, places = None, None
    for i in range(len(parts)):
        name = ".".join(parts[: i + 1])
        spec = _spec(name, places)
        places = None if spec is None else spec.submodule_search_locations
        if spec is None or (places is None and i < len(parts) - 1):
            raise ModuleNotFoundError(f"no module {module!r}", name=name)
    if spec.origin is None or not spec.origin.endswith(".py"):
        raise ValueError(f"{module!r} has no source in Python: {spec.origin or 'only a folder'}")
    return pathlib.Path(spec.origin)


def _spec(name: str, places: Collection[str] | None) -> importlib.machinery.ModuleSpec | None:
    if places is not None:
        return importlib.machinery.PathFinder.find_spec(name, list(places))
    try:
        return importlib.util.find_spec(name)  # of a name without a dot it imports nothing
    except ValueError:  # a module made by hand, without a file
        return None


def defined(path: pathlib.Path) -> dict[str, list[str]]:
    """What the statements of a file define, and where they import it from: `package.module` or
    `package.module:name`; nowhere, if it is made in the file itself.

    **Raises:** `ValueError` for a file that is no Python.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    origins: dict[str, list[str]] = {}
    for name, origin in _names(tree.body):
        origins.setdefault(name, []).extend([] if origin is None else [origin])
    return origins


def _names(statements: list[ast.stmt]) -> Iterator[tuple[str, str | None]]:
    for node in statements:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, None
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((t.id, None) for t in targets if isinstance(t, ast.Name))
        elif isinstance(node, ast.ImportFrom):
            of = "." * node.level + (node.module or "")
            yield from ((a.asname or a.name, f"{of}:{a.name}") for a in node.names)
        elif isinstance(node, ast.Import):
            yield from ((a.asname or a.name.partition(".")[0], a.name) for a in node.names)
        elif isinstance(node, ast.If | ast.Try):
            others = [h.body for h in getattr(node, "handlers", [])]
            for body in [node.body, *others, node.orelse, getattr(node, "finalbody", [])]:
                yield from _names(body)


def trusted_source(module: str, trusted: Collection[str] | None = ()) -> pathlib.Path:
    """The file of a module whose code the user has agreed to: micjax and the problems that are
    installed as entry points, what lies below the current folder, and what he has named himself.

    **Arguments:**

    - `trusted`: modules and packages that the user has named. None: he names this one.

    **Raises:** as `source_of`, and `ValueError` for a module from elsewhere.
    """
    path = source_of(module)
    if trusted is None:
        return path
    named = {"micjax", *(value.partition(":")[0] for value in references().values()), *trusted}
    if any(f"{module}.".startswith(f"{name}.") for name in named) or _is_here(path):
        return path
    raise ValueError(
        f"{module} lies in {path.parent}, not below the current folder: a plan may name it when "
        f"you agree to run it, --trust {module.partition('.')[0]}"
    )


def _is_here(path: pathlib.Path) -> bool:
    working_folder, path = pathlib.Path.cwd().resolve(), path.resolve()
    if not path.is_relative_to(working_folder):
        return False
    return not any(part in INSTALLED for part in path.relative_to(working_folder).parts)


def trusted_function(what: str, trusted: Collection[str] | None = ()) -> str:
    """The module in which `package.module:name` is defined: a function, a class or an object of a
    module which the user has agreed to, as he has to the one where that has it from.

    **Raises:** `ValueError` for everything else.
    """
    if not re.fullmatch(r"[\w.]+:\w+", what):
        raise ValueError(f"{what!r} is no package.module:name")
    return _origin(what, trusted, MOST_STEPS)


def _origin(what: str, trusted: Collection[str] | None, steps: int) -> str:
    module, _, name = what.partition(":")
    if not name:
        raise ValueError(f"{what} is a module, neither an instrument nor a function")
    if not steps:
        raise ValueError(f"{what} is imported in a circle")
    try:
        path = trusted_source(module, trusted)
    except ModuleNotFoundError as error:
        raise ValueError(f"{what} cannot be imported: {error}") from error
    names = defined(path)
    if name not in names:
        raise ValueError(f"{what} cannot be imported: {path} defines no {name!r}")
    origins = [_absolute(origin, module, path) for origin in names[name]]
    return [module, *(_origin(origin, trusted, steps - 1) for origin in origins)][-1]


def _absolute(origin: str, module: str, path: pathlib.Path) -> str:
    level = len(origin) - len(origin.lstrip("."))
    if not level:
        return origin
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    of = ".".join(package[: len(package) - level + 1])
    return f"{of}{'' if origin[level] == ':' else '.'}{origin[level:]}"
