"""What an algorithm is made of: stages of fits, searches before them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np
import optax
import optimistix
from jaxtyping import ArrayLike

from micjax.core.problem import InverseProblem
from micjax.inference.solvers.driver import Solver
from micjax.inference.solvers.first_order import Adam, Optax, Optimistix

AnySolver = Solver | optax.GradientTransformation | optimistix.AbstractMinimiser
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One round of fits.

    **Arguments:**

    - `solver`: a `Solver`, an optax transformation or a minimiser of optimistix.
    - `steps`: at most, of each fit. `chunk`: how many in one compiled call, after which there is a
        checkpoint.
    - `starts`: `starts(problem, x, y, candidates, key) -> [{name: value}, ...]`; names left out
        have their value in the best candidate of the stage before. Without one, the fits go on from
        those candidates, the first stage from the current values of the problem.
    - `free`: the unknowns that are fitted, the others are held; all of them if not given.
    - `given`: another problem for this stage, with the same names: `given(problem) -> problem`.
    - `local`: names whose values belong to this stage alone: it starts from those of its own
        problem, and the problem's own are kept.
    - `keep`: how many of the best go on to the next stage.
    - `together`: all starts in one compiled program, rather than one after the other.
    - `tolerance`, `patience`: stop when the best loss fell by less than `tolerance` (nats) in the
        last `patience` steps (default `chunk`); looked at after each chunk. 0 never stops.

    **Raises:** `ValueError` for numbers that are none of these.
    """

    solver: AnySolver = dataclasses.field(default_factory=Adam)
    steps: int = 1000
    chunk: int = 100
    starts: Callable[..., Sequence[Mapping[str, ArrayLike]]] | None = None
    free: Sequence[str] | None = None
    given: Callable[[InverseProblem], InverseProblem] | None = None
    local: tuple[str, ...] = ()
    keep: int = 1
    together: bool = False
    tolerance: float = 0.0
    patience: int | None = None

    def __post_init__(self):
        for name in ("steps", "chunk", "keep", "patience"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | np.integer) and value >= 1):
                raise ValueError(f"{name} is {value}: a whole number from 1 on is needed")
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance is {self.tolerance}: nats, not below 0, are needed")

    def of(self, problem: InverseProblem) -> InverseProblem:
        """The problem of this stage.

        **Raises:** `ValueError` for a `free` name that is no unknown of it.
        """
        problem = problem if self.given is None else self.given(problem)
        if self.free is None:
            return problem
        if strange := sorted(set(self.free) - set(problem.priors)):
            raise ValueError(f"free has {strange}; the unknowns are {sorted(problem.priors)}")
        return problem.given({n: None for n in problem.priors if n not in self.free})


@dataclasses.dataclass(frozen=True)
class Search:
    """Work that is no descent, which the stages after it begin with; it stands in the checkpoint.

    **Arguments:**

    - `work`: `work(problem, x, y, key, report) -> {name: array}`; `key` is that of the run, and
        `report(share, text)` shows how far it is.
    - `apply`: `apply(problem, arrays) -> problem` for the stages after it, with the same names of
        unknowns; the same problem if not given.
    - `title`: of its progress.
    - `goes_on`: `work(problem, x, y, key, report, before)` yields its arrays as often as they are
        worth keeping, the last ones are its result. `before` has those that it yielded before it
        was broken off.
    - `by_rows`: whether `y` may also be a map whose rows are read when it is indexed.
    """

    work: Callable[..., Mapping[str, ArrayLike]]
    apply: Callable[[InverseProblem, Arrays], InverseProblem] = lambda problem, arrays: problem
    title: str = "search"
    goes_on: bool = False
    by_rows: bool = False

    keep: ClassVar[int] = 1


def as_solver(solver: AnySolver) -> Solver:
    """`solver` as one of ours."""
    if isinstance(solver, optimistix.AbstractMinimiser):
        return Optimistix(solver)
    return Optax(solver) if isinstance(solver, optax.GradientTransformation) else solver
