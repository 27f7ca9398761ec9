"""The plan of a fit: which problem, with which data, settings and priors."""

from typing import Any, Literal

from micjax.run.plans.base import FilePath, Plan


class SolvePlan(Plan):
    """What to solve, with which data, settings and seed; see docs/plans.md."""

    # by the signatures and priors of the problem
    CHECKED_LATER = dict.fromkeys(("options", "engine", "priors", "values"), True)
    DOTTED, OTHERS, FILES = ("priors", "values"), "options", ("file",)
    MAY_DIFFER, ANEW = ("engine",), True

    kind: Literal["solve"] = "solve"
    problem: str
    file: FilePath | None = None  # without one, the example of the problem is solved
    options: dict[str, Any] = {}
    engine: dict[str, Any] = {}
    priors: dict[str, str | None] = {}  # "LogNormal(3, 0.5)"; None: known
    values: dict[str, float | list] = {}  # where unknowns start, what the known ones are
    # float32 is what JAX and its accelerators are made for; Laplace and NUTS use float64 anyway
    precision: Literal["float32", "float64"] = "float32"
