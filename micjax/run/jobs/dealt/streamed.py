"""A map that is read row by row, as one is that is larger than memory."""

import logging
import os
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from micjax.core.names import listed
from micjax.core.problem import InverseProblem
from micjax.core.progress import progress, until_interrupted
from micjax.inference.attempt import attempt
from micjax.inference.checkpoint import (
    Candidate,
    Snapshot,
    StopReason,
    digest,
    load_snapshot,
    save_snapshot,
)
from micjax.inference.maps.each import EachPixel
from micjax.inference.runner import stages_of
from micjax.inference.solution import Solution
from micjax.inference.solve import Fit
from micjax.inference.stage import Search
from micjax.io.registry import formats
from micjax.io.rows import FileRows
from micjax.run.jobs.dealt.quiet import QUIET
from micjax.run.registry import RegistryEntry, find

log = logging.getLogger("micjax")

SAMPLE = 1 << 24  # numbers: what priors and the like are made of, all of a smaller map
SHARE = 0.1  # of the memory: of data that are not read row by row several copies are needed


class LoadedRows:
    """What the `load` of a problem makes of a map, when rows of it are asked for.

    It goes to other processes as the path of the file.
    """

    read_anywhere = True

    def __init__(
        self, reference: str, rows: FileRows, options: Mapping[str, Any], datum: tuple[int, ...]
    ):
        self.reference, self.rows, self.options = reference, rows, dict(options)
        self.shape, self.ndim = (rows.count, *datum), 1 + len(datum)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(jnp.result_type(float))

    def __getitem__(self, rows: slice) -> np.ndarray:
        field = self.rows[rows]
        if not np.isfinite(field.data).any():  # which `load` refuses of a whole file
            return np.full((len(field.data), *self.shape[1:]), np.nan, self.dtype)
        try:
            with QUIET:  # what is to be said has been said of the rows that the priors are of
                *_, y = find(self.reference).module.load(field, **self.options)
        except ValueError as error:
            raise ValueError(f"rows {rows.start} to {rows.stop}: {error}") from error
        return np.asarray(y)


def rows_of_file(
    file: str, channel: str | None, wanted: bool | None, dealt_out: bool
) -> FileRows | None:
    """The rows of a file if it is read row by row; None if it is read whole.

    **Arguments:**

    - `wanted`: as the plan says; where it does not, large files are, and what is `dealt_out`.

    **Raises:** `ValueError` for `wanted` rows of a format that is read whole; as `read`.
    """
    if wanted is False:
        return None
    rows = FileRows.of(file, channel)
    if rows is None and wanted:
        known = [name for name, kind in formats().items() if kind.by_rows]
        raise ValueError(
            f"streamed: {file} is no map [y, x, ...] in a format that is read row by row: "
            f"{listed(known)}"
        )
    if rows is None or wanted or dealt_out:
        return rows
    return rows if rows.bytes > SHARE * memory_bytes() else None


def memory_bytes() -> int:
    """Of this machine."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # a system that is no Unix
        return 8 << 30


def loaded(
    entry: RegistryEntry, rows: FileRows, options: Mapping[str, Any]
) -> tuple[dict[str, Any], Any, LoadedRows]:
    """As `load`, from evenly spaced rows: what the options of a problem say of all data is said of
    these, which are all of a small map.

    **Raises:** `ValueError` for a problem of other data than maps; as `load`.
    """
    sample = rows.thinned(SAMPLE)
    problem_options, x, y = entry.module.load(sample, **options)
    if np.ndim(y) < 3 or problem_options.get("ny") != len(y):
        raise ValueError(f"streamed: {entry.name} is no problem of a map of pixels")
    log.info("%s: read row by row; priors from %d of %d rows", rows.path, len(y), rows.count)
    return (
        {**problem_options, "ny": rows.count},
        x,
        LoadedRows(entry.reference, rows, options, np.shape(y)[1:]),
    )


def solve(
    module: ModuleType,
    problem: InverseProblem,
    x: Any,
    y: LoadedRows,
    *,
    key: Array,
    checkpoint: Any,
    resume: bool,
    on_chunk: Callable[..., Any],
    **engine: Any,
) -> Solution:
    """As `micjax.inference.runner.solve`, of a map whose data are never in memory together; its
    loss lacks a constant, and is not told.

    **Raises:** as `search_of`.
    """
    search = search_of(module, problem, x, y, engine)
    of = digest((x, problem, key), f"{y.rows.path} {y.rows.channel}")
    state = Snapshot([Candidate({"map": jnp.zeros(1)})])  # its values are in its arrays
    if resume:
        state = load_snapshot(checkpoint, state, of)
    with until_interrupted() as interruption, progress(search.title, 100) as show:

        def report(share: float, text: str) -> None:
            show(int(100 * share), text)

        for arrays in search.work(problem, x, y, key, report, state.arrays):
            state.arrays = arrays
            save_snapshot(checkpoint, state, search, of)
            loss = float(np.nansum(np.asarray(arrays.get("loss", np.nan), float)))
            on_chunk(int(np.sum(arrays["done"])), loss, {})
    if "status" not in state.arrays:
        raise KeyboardInterrupt
    return _solution(module, search, problem, x, y, state, interruption.happened)


def search_of(
    module: ModuleType, problem: InverseProblem, x: Any, y: LoadedRows, engine: Mapping[str, Any]
) -> Search:
    """What fits a map row by row.

    **Raises:** `ValueError` for a problem that is not solved pixel by pixel.
    """
    [search, *others] = stages_of(module)(problem, x, y, **engine)
    if others or not isinstance(search, Search) or not search.by_rows:
        raise ValueError(
            "streamed: pixels that have to do with each other (engine.smooth, engine.shared), a "
            "number of peaks that is chosen, and other stages need all data at once; "
            "streamed: false reads them so"
        )
    return search


def _solution(
    module: ModuleType, search: Search, problem: InverseProblem, x, y, state: Snapshot, broken: bool
) -> Solution:
    arrays = {n: np.asarray(a) for n, a in state.arrays.items()}
    loss = float(np.nansum(arrays["loss"].astype(float)))
    at = search.apply(problem, arrays)
    ended = StopReason.INTERRUPTED if broken else StopReason.STEPS
    fit = Fit(at, loss, np.empty(0), 0, ended, np.array([loss]), [], arrays=arrays)
    points = max(int(arrays["points"].sum()), 1)
    metrics = {"chi_squared_per_datum": float(np.nansum(arrays["chi_squared"])) / points}
    solution = Solution(at, fit, metrics=metrics)
    conclude = getattr(module, "conclude", None)
    if conclude is None:
        return solution
    return attempt("conclusion", conclude, solution, x, y) or solution


def is_map(problem: InverseProblem) -> bool:
    """Whether it is fitted pixel by pixel."""
    return isinstance(problem.forward, EachPixel)
