"""What `micjax.problems.structure` shows of a solution."""

from typing import Any

import numpy as np

from micjax.core.problem import InverseProblem
from micjax.inference.solution import Solution
from micjax.problems.structure.model import Scan, Series, first_atoms
from micjax.problems.structure.peaks import annular, peaks
from micjax.report.figures import captioned, image_row


def compare(solution: Solution, x, y, truth: InverseProblem) -> list[dict[str, Any]]:
    """Each unknown against the truth; positions also as a peak fit and the start have them."""
    true, best = truth.values(), solution.problem.values()
    sd = {} if solution.laplace is None else solution.laplace.sd()
    rows = []
    for n in (n for n in best if n in true):
        wrong = np.abs(np.asarray(best[n]) - np.asarray(true[n]))
        row = {
            "quantity": n.rpartition(".")[2],
            "median |error|": float(np.median(wrong)),
            "worst": float(wrong.max()),
        }
        if n in sd:
            row["median sd"] = float(np.median(sd[n]))
            row["errors / sd (rms)"] = float(np.sqrt(np.mean((wrong / sd[n]) ** 2)))
        rows.append(row)
    moved = np.asarray(truth.forward.crystal.shift_A)
    others = {"shift_A, the start": moved}
    if isinstance(x, Scan):
        others["shift_A, peaks of the dark-field image"] = peak_shifts(truth, x, y) - moved
    for n, wrong in others.items():
        size = np.abs(wrong)
        rows.append(
            {"quantity": n, "median |error|": float(np.median(size)), "worst": float(size.max())}
        )
    return rows


def peak_shifts(problem: InverseProblem, x: Scan, y, inner_mrad: float | None = None):
    """`shift_A` as Gaussians fitted to the annular dark-field image have it."""
    forward = problem.forward
    crystal, first = forward.crystal, first_atoms(forward.crystal.column)
    start = np.asarray(crystal.position_A)[first, 1::-1]
    inner = 1.5 * float(forward.semiangle_mrad) if inner_mrad is None else inner_mrad
    fitted = peaks(
        annular(x, y, inner),
        np.asarray(x.position_A),
        start,
        [crystal.numbers[i] for i in first],
        np.asarray(crystal.box_A)[1::-1],
    )
    return (fitted - start)[:, ::-1]


def figures(solution: Solution, x, y, truth: InverseProblem | None = None) -> dict[str, Any]:
    """Mean pattern and dark-field image, or the first image: measured, model, what is left."""
    rate, counts = (
        np.asarray(a) for a in (solution.problem.noise(solution.problem.forward(x)).rate, y)
    )

    def row(reduce, text, power=1.0):
        seen, model = reduce(counts), reduce(rate)
        left = (seen - model) / np.sqrt(np.maximum(model, 1e-6))
        panels = {"measured": seen**power, "model": model**power, "residual / noise": left}
        return captioned(image_row(panels, residuals=["residual / noise"]), text)

    if isinstance(x, Series):
        return {
            f"Image {i + 1}": lambda i=i: row(lambda a: a[i], f"Defocus {x.defocus_A[i]:.4g} Å.")
            for i in range(len(counts))
        }
    inner = 1.5 * float(solution.problem.forward.semiangle_mrad)
    return {
        "Pattern": lambda: row(lambda a: a.sum((0, 1)), "Square roots of the sum of all.", 0.5),
        "Dark field": lambda: row(
            lambda a: annular(x, a, inner), f"Counts beyond {inner:.4g} mrad, place by place."
        ),
    }
