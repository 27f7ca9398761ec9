"""A solved inverse problem: what the solver of a problem module gives back."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from micjax.core.problem import InverseProblem
from micjax.inference.errors.laplace import Laplace
from micjax.inference.errors.nuts import Posterior
from micjax.inference.solve import Fit


@dataclasses.dataclass(frozen=True)
class Solution:
    """The estimate, how certain it is, and what of it a reader is to see.

    **Arguments:**

    - `problem`: at the estimate.
    - `results`: maps for the result file by name, each with `data, axes, unit, name, metadata` as
        `micjax.io.Field` has them. The first is what viewers open; `metadata["errors"]` are
        standard deviations.
    - `metrics`: numbers by name.
    - `table`: rows for the report and the terminal, `{column: number or text}`.
    - `comparison`: more such rows, against the truth of a made-up example.
    - `statements`: plain sentences, `"The half-angle is not identified by this scan."`
    - `converged`: whether the fit has, None where that is not known.
    - `extra`: anything else `figures` wants to draw.
    """

    problem: InverseProblem
    fit: Fit | None = None
    posterior: Posterior | None = None
    laplace: Laplace | None = None
    results: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    table: Sequence[Mapping[str, Any]] = ()
    comparison: Sequence[Mapping[str, Any]] = ()
    statements: Sequence[str] = ()
    converged: bool | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
