"""What the error bars of a problem are worth: it is solved again and again with the truth known."""

import dataclasses
import importlib.metadata
import json
import logging
import pathlib
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from micjax.core.files import replaced
from micjax.core.plain import dumps
from micjax.core.problem import InverseProblem, drawn_data
from micjax.core.progress import progress, until_interrupted
from micjax.inference.calibration.ranks import Claim, Ranks, claim, ranks_of, ranks_of_results
from micjax.inference.runner import solve
from micjax.inference.starts.draw import prior_draws
from micjax.inference.verdicts.residual import NOTICED

log = logging.getLogger("micjax")

CLEAN = "clean"  # data of the model itself
UNLIKE = 0.1  # of the runs on clean data: of white noise it is 1 in 500
FEWEST = 20  # runs, of fewer of which nothing is said

Stress = Mapping[str, Callable[..., Any]]


@dataclasses.dataclass
class Certificate:
    """Ranks of the truth in each run, `{condition: {unknown: [array of a run, ...]}}`, how many
    runs gave no answer, and in how many errors were made larger because of what was left of the
    data."""

    ranks: dict[str, dict[str, list[np.ndarray]]] = dataclasses.field(default_factory=dict)
    runs: dict[str, int] = dataclasses.field(default_factory=dict)
    failures: dict[str, int] = dataclasses.field(default_factory=dict)
    grown: dict[str, int] = dataclasses.field(default_factory=dict)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    def add(self, condition: str, ranks: Ranks | None, grown: bool = False) -> None:
        """A run, or None for one without an answer."""
        self.grown[condition] = self.grown.get(condition, 0) + grown
        self.runs[condition] = self.runs.get(condition, 0) + 1
        self.failures[condition] = self.failures.get(condition, 0) + (ranks is None)
        of = self.ranks.setdefault(condition, {})
        for name, u in (ranks or {}).items():
            of.setdefault(name, []).append(np.asarray(u, float))

    def claims(self, condition: str = CLEAN) -> dict[str, Claim]:
        """Of each unknown that errors are stated of."""
        every = {n: claim(u) for n, u in self.ranks.get(condition, {}).items()}
        return {n: c for n, c in every.items() if c is not None}

    def rows(self) -> list[dict[str, Any]]:
        """A table."""
        return [
            {
                "data": condition,
                "unknown": name,
                "runs": c.runs,
                "50 % hold": c.half,
                "90 % hold": c.ninety,
                "+-": c.ninety_sd,
                "ranks alike (p)": c.p_value,
                "widen by": c.widening,
            }
            for condition in self.runs
            for name, c in self.claims(condition).items()
        ]

    def sentences(self) -> list[str]:
        """What a reader of the errors has to know."""
        out = []
        for condition, runs in self.runs.items():
            claims = self.claims(condition)
            wrong = {n: c for n, c in claims.items() if not c.holds()}
            of = "made up by the model itself" if condition == CLEAN else f"with {condition}"
            if runs < FEWEST:
                out.append(f"{runs} runs on data {of} are too few to judge the errors by.")
                continue
            for name, c in wrong.items():
                out.append(
                    f"{name}: 90 % intervals hold the truth in {100 * c.ninety:.0f} % of {c.runs} "
                    f"runs on data {of}; {c.widening:.2g} times as wide they would hold it in 90 %."
                )
            if claims and not wrong:
                low, high = (f(c.ninety for c in claims.values()) for f in (min, max))
                out.append(
                    f"90 % intervals hold the truth in {100 * low:.0f} to {100 * high:.0f} % of "
                    f"{runs} runs on data {of}."
                )
            if condition == CLEAN and (unlike := self.unlike()):
                out.append(unlike)
            if self.failures[condition]:
                out.append(f"{self.failures[condition]} of {runs} runs {of} gave no answer.")
        return out

    def unlike(self) -> str:
        """A sentence where data that the model itself made up are not what the solutions take them
        for."""
        runs, grown = self.runs.get(CLEAN, 0), self.grown.get(CLEAN, 0)
        if runs < FEWEST or grown <= UNLIKE * runs:
            return ""
        return (
            f"In {grown} of {runs} runs on data made up by the model itself what was left of them "
            "was not its noise: `problem` and `example` are not of one model, or the fits are no "
            "good."
        )

    def save(self, path: pathlib.Path) -> None:
        """As JSON, all of it or none."""
        content = dataclasses.asdict(self)
        content["ranks"] = {
            c: {n: [np.round(u, 6).tolist() for u in every] for n, every in of.items()}
            for c, of in self.ranks.items()
        }
        with replaced(path) as unfinished:
            unfinished.write_text(json.dumps(content) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: pathlib.Path) -> "Certificate":
        """**Raises:** `ValueError` for a file that is none."""
        try:
            content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
            ranks = {
                c: {n: [np.asarray(u, float) for u in every] for n, every in of.items()}
                for c, of in content["ranks"].items()
            }
            return cls(
                ranks, content["runs"], content["failures"], content["grown"], content["facts"]
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no certificate: {error}") from error


def certify(
    module: ModuleType,
    draws: int = 200,
    *,
    key: Array | None = None,
    seconds: float = 600.0,
    path=None,
    resume: bool = False,
    options: Mapping[str, Any] | None = None,
    engine: Mapping[str, Any] | None = None,
) -> Certificate:
    """Solve made-up data of a problem again and again, and look where the truth lies.

    Truths are drawn from the priors (of improper ones, that of `example`), data from the model at
    them; and once more with what `stress(key, truth, x) -> {name: data}` of the module adds that
    the model does not know. Where the parts of an answer may change places, `renamed(truth,
    estimate) -> truth` of the module says which is which. Of a module with `intervals(truth,
    solution) -> {name: (estimate, error, true value)}` these results are judged, and truths are
    those of `example`.

    **Arguments:**

    - `draws`: runs, of each kind of data.
    - `seconds`: after which no further run is begun.
    - `path`: of a file that is written after each run; with `resume` it is gone on with.
    - `options`, `engine`: of `problem` and `example`, and of `stages`.

    **Returns:** a `Certificate`; after Ctrl-C that of the runs so far.

    **Raises:** `ValueError` for a module whose solutions state no errors, no draws, a file that is
    the certificate of something else.
    """
    if draws < 1 or not seconds > 0:
        raise ValueError(
            f"draws = {draws}, seconds = {seconds}: at least 1, and above 0, are needed"
        )
    key = jax.random.key(0) if key is None else key
    start = module.problem(**(options or {}))
    certificate = Certificate(facts=_facts(module, key, options, engine))
    if resume and path is not None and pathlib.Path(path).exists():
        begun, certificate = certificate, Certificate.load(path)
        if begun.facts["of"] != certificate.facts.get("of"):
            raise ValueError(
                f"{path} is the certificate of {certificate.facts.get('of')}, not of "
                f"{begun.facts['of']}"
            )
    began, first = time.monotonic(), certificate.runs.get(CLEAN, 0)
    with until_interrupted(), progress("certificate", draws) as show:
        for i in range(first, draws):
            if time.monotonic() - began > seconds:
                log.warning("certificate: %d of %d runs in %.0f s", i, draws, seconds)
                break
            for condition, (truth, x, y) in _made_up(
                module, start, jax.random.fold_in(key, i), options
            ):
                certificate.add(condition, *_solved(module, start, truth, x, y, key, engine))
            if path is not None:
                certificate.save(path)
            show(i + 1)
    if not any(certificate.ranks.values()):
        raise ValueError(f"{module.__name__}: no solution of it states the errors of an unknown")
    return certificate


def _facts(module: ModuleType, key: Array, options, engine) -> dict[str, Any]:
    """Of what it is the certificate, and when and by what it was made."""
    of = {"problem": module.__name__, "key": np.ravel(jax.random.key_data(key)).tolist()}
    of |= {"options": dict(options or {}), "engine": dict(engine or {})}
    versions = {n: importlib.metadata.version(n) for n in ("micjax", "jax")}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"of": json.loads(dumps(of)), "date": now, "versions": versions}


def _made_up(module: ModuleType, start: InverseProblem, key: Array, options):
    """Truth, x and data of each condition."""
    truth, x, _ = module.example(key, **(options or {}))
    drawn = {}
    unknowns = {} if hasattr(module, "intervals") else start.unknowns()
    for i, (name, prior) in enumerate(unknowns.items()):
        value = prior_draws(prior, jax.random.fold_in(key, 2 + i))
        if value is not None:
            drawn[name] = value
    truth = truth.at(drawn)
    yield CLEAN, (truth, x, drawn_data(truth, x, jax.random.fold_in(key, 1)))
    if (stress := getattr(module, "stress", None)) is not None:
        for condition, y in stress(jax.random.fold_in(key, 0), truth, x).items():
            yield condition, (truth, x, y)


def _solved(module, start, truth, x, y, key: Array, engine) -> tuple[Ranks | None, bool]:
    """The ranks of a run, and whether errors grew for what was left of the data."""
    try:
        solution = solve(module, start, x, y, key=key, **(engine or {}))
    except (ValueError, ArithmeticError) as error:
        log.info("a run without an answer: %s", error)
        return None, False
    if (intervals := getattr(module, "intervals", None)) is not None:
        return ranks_of_results(intervals(truth, solution)), False
    renamed = getattr(module, "renamed", None)
    ranks = ranks_of(solution, truth if renamed is None else renamed(truth, solution.problem))
    laplace, arrays = solution.laplace, solution.fit.arrays if solution.fit else {}
    most = bool(np.nanmedian(arrays["grown"]) > NOTICED) if "grown" in arrays else False
    return ranks, most or bool(laplace is not None and laplace.grown)
