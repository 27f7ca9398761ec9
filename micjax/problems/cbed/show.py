"""What `micjax.problems.cbed` shows of a solution."""

from typing import Any

import numpy as np

from micjax.core.problem import InverseProblem
from micjax.inference.solution import Solution
from micjax.report.figures import captioned, image_row


def compare(solution: Solution, x, y, truth: InverseProblem) -> list[dict[str, Any]]:
    """Each unknown against the truth."""
    true, best = truth.values(), solution.problem.values()
    sd = {} if solution.laplace is None else solution.laplace.sd()
    return [
        {
            "quantity": n.partition(".")[2],
            "truth": [float(v) for v in np.ravel(true[n])],
            "estimate": [float(v) for v in np.ravel(best[n])],
            "sd": [float(v) for v in np.ravel(sd.get(n, np.nan))],
        }
        for n in best
    ]


def figures(solution: Solution, x, y, truth: InverseProblem | None = None) -> dict[str, Any]:
    """Counts, model, and what is left in units of its noise."""
    rate = np.asarray(solution.problem.noise(solution.problem.forward(x)).rate)
    on, counts = np.asarray(x.efficiency) > 0, np.asarray(y)

    def pattern():
        row = {"measured": np.sqrt(counts), "model": np.sqrt(rate)}
        row["residual / noise"] = np.where(on, (counts - rate) / np.sqrt(rate), np.nan)
        figure = image_row(row, residuals=["residual / noise"])
        return captioned(figure, "Square roots of the counts, and what the model leaves of them.")

    return {"Pattern": pattern}
