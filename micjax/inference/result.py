"""Results by name: an HDF5 file holds {name: array}, and which problem the names belong to."""

import contextlib
import importlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from types import ModuleType
from typing import Any

import h5py
import numpy as np

from micjax.core.files import write_atomically
from micjax.core.foreign.hdf5 import Damaged, File, opened
from micjax.core.foreign.modules import GROUP, references
from micjax.core.problem import InverseProblem
from micjax.core.ranges import check_ranges
from micjax.inference.errors.nuts import Posterior

FORMAT = "micjax result 1"
Path = str | os.PathLike


def save(
    path: Path,
    problem: InverseProblem,
    reference: str,
    options: Mapping[str, Any] | None = None,
    posterior: Posterior | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write the values of the unknowns (and the posterior) to the HDF5 file `path`.

    **Arguments:**

    - `reference`: the module of the problem, `"package.module"`; it is read back as
        `module.problem(**options).at(values)`.
    - `options`: the keyword arguments of `module.problem`, of kinds that JSON knows.
    - `metadata`: anything else worth keeping, of kinds that JSON knows.

    **Raises:** `OSError` when the file cannot be written, `TypeError` for options that are no JSON.
    """
    attributes = {
        "format": FORMAT,
        "reference": reference,
        "options": json.dumps(dict(options or {})),
        "metadata": json.dumps(dict(metadata or {})),
        "versions": json.dumps(
            {name: version(name) for name in ("micjax", "jax", "flax", "numpyro", "equinox")}
        ),
    }

    def write(file: h5py.File) -> None:
        file.attrs.update(attributes)
        group = file.create_group("values")
        for name, value in problem.values().items():
            group[name] = np.asarray(value)
        if posterior is not None:
            group = file.create_group("posterior")
            group.attrs["divergences"] = posterior.divergences
            for name, draws in posterior.draws.items():
                group[name] = draws

    write_atomically(path, write)


def load(path: Path, module: ModuleType | str | None = None) -> InverseProblem:
    """The problem with the values that `save` wrote.

    **Arguments:**

    - `module`: of the problem, or its name `"package.module"`, where it is none of micjax and no
        entry point: to import a module is to run it, and a file may name any.

    **Raises:** `FileNotFoundError`; `ValueError` when the file is no micjax result, when its
    problem is another one, may not or cannot be imported, or when its values are not those of the
    problem.
    """
    with _opened(path) as file:
        reference, options = _header(file, path)
        values = file.arrays("values")
    module = _imported(path, reference, module)
    ours = reference.startswith(f"{GROUP}.")
    for name, value in options.items():
        check_ranges(name, value, ours, f"{path}: ")
    try:
        problem = module.problem(**options)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{path} does not fit {reference}: {error}") from error
    wrong = _differences(values, problem.values())
    if wrong:
        raise ValueError(f"{path} does not fit {reference}.problem(**{options}): {wrong}")
    return problem.at(values)


def _imported(path: Path, reference: str, given: ModuleType | str | None) -> ModuleType:
    """**Raises:** `ValueError` for a module that the caller does not know of, or that is gone."""
    name = given.__name__ if isinstance(given, ModuleType) else given
    if name is None and reference not in references().values():
        raise ValueError(
            f"{path}: its problem {reference!r} is none of micjax; to import it runs its code: "
            f"load(path, {reference!r}) says that you agree"
        )
    if name is not None and name != reference:
        raise ValueError(f"{path} is a result of {reference}, not of {name}")
    if isinstance(given, ModuleType):
        return given
    try:
        return importlib.import_module(reference)
    except ImportError as error:
        raise ValueError(
            f"{path}: its problem {reference!r} cannot be imported ({error}); "
            "put its folder on the Python path"
        ) from error


def load_posterior(path: Path) -> Posterior:
    """The posterior that `save` wrote.

    **Raises:** `FileNotFoundError`; `ValueError` when the file is no micjax result or has no
    posterior.
    """
    with _opened(path) as file:
        group = file.get("posterior")
        if group is None:
            raise ValueError(f"{path} holds values but no posterior")
        divergences = np.ravel(group.attrs.get("divergences", ()))
        if divergences.dtype.kind not in "iu" or divergences.size != 1:
            raise ValueError(f"{path}: its posterior has {divergences} divergences")
        return Posterior(file.arrays("posterior"), int(divergences[0]))


def _header(file: File, path: Path) -> tuple[str, dict[str, Any]]:
    reference, options = (file.root.attrs.get(name) for name in ("reference", "options"))
    try:
        options = json.loads(options)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a micjax result: its options are no JSON") from error
    if not (isinstance(reference, str) and isinstance(options, dict)):
        raise ValueError(f"{path} is not a micjax result: it names no problem and options")
    return reference, options


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[File]:
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"no such result: {path}")
    try:
        with opened(path) as file:
            if file.root.text("format") != FORMAT:
                raise ValueError(f"{path} is not a micjax result (no format {FORMAT!r})")
            yield file
    except Damaged as error:
        raise ValueError(f"{path} is not a micjax result: {error}") from error


def _differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What keeps the values `stored` from being those of `wanted`; empty if nothing does."""
    lines = [f"{n!r} is missing" for n in sorted(set(wanted) - set(stored))]
    lines += [f"{n!r} is no unknown of it" for n in sorted(set(stored) - set(wanted))]
    lines += [
        f"{n!r} has shape {np.shape(stored[n])} instead of {np.shape(wanted[n])}"
        for n in sorted(set(stored) & set(wanted))
        if np.shape(stored[n]) != np.shape(wanted[n])
    ]
    return "; ".join(lines)
