"""The plan of a fit: which problem, with which data, settings and priors."""

from typing import Any, Literal

from micjax.run.plans.base import FilePath, Name, Plan, Section


class PartPlan(Section):
    """A data set of a joint problem."""

    problem: str
    file: FilePath | None = None  # without one, the example of the problem
    options: dict[str, Any] = {}
    priors: dict[str, str | None] = {}
    values: dict[str, float | list] = {}


class SolvePlan(Plan):
    """What to solve, with which data, settings and seed; see docs/plans.md."""

    # by the signatures and priors of the problem
    CHECKED_LATER = dict.fromkeys(("options", "engine", "priors", "values", "parts"), True)
    DOTTED, OTHERS, FILES = ("priors", "values"), "options", ("file", "parts.*.file")
    MAY_DIFFER, ANEW = ("engine",), True

    kind: Literal["solve"] = "solve"
    problem: str
    file: FilePath | None = None  # without one, the example of the problem is solved
    options: dict[str, Any] = {}
    engine: dict[str, Any] = {}
    priors: dict[str, str | None] = {}  # "LogNormal(3, 0.5)"; None: known
    values: dict[str, float | list] = {}  # where unknowns start, what the known ones are
    # of `problem: joint`: its data sets, and what is one unknown in several of them
    parts: dict[Name, PartPlan] = {}
    shared: dict[Name, list[str]] = {}
    # of a map: whether its rows are read when they are fitted; null: if the file is large
    streamed: bool | None = None
    # float32 is what JAX and its accelerators are made for; Laplace and NUTS use float64 anyway
    precision: Literal["float32", "float64"] = "float32"

    @property
    def data(self) -> str:
        """Which data are solved, for a reader."""
        if self.parts:
            return ", ".join(f"{n}: {p.file or 'made-up example'}" for n, p in self.parts.items())
        return self.file or f"made-up example, seed {self.seed}"
