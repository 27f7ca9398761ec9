"""How far the maps and spectra of a solution are from those that are known."""

import numpy as np
import scipy.optimize

from micjax.core.problem import InverseProblem
from micjax.inference.solution import Solution


def intervals(truth: InverseProblem, solution: Solution) -> dict[str, tuple]:
    """Estimates, errors and true values, each end member beside that whose spectrum is most alike;
    none where there are more or fewer of them than in truth."""
    if not {"abundance", "spectrum"} <= solution.results.keys():
        return {}
    w, h = (solution.results[n] for n in ("abundance", "spectrum"))
    true = np.asarray(truth.forward.spectrum, float)
    if len(h.data) != len(true):
        return {}
    alike = _unit(true) @ _unit(np.asarray(h.data)).T
    order = scipy.optimize.linear_sum_assignment(-alike)[1]
    maps = np.asarray(truth.forward.abundance, float).T.reshape(w.data.shape)
    return {
        "abundance": (w.data[order], w.metadata["errors"][order], maps),
        "spectrum": (h.data[order], h.metadata["errors"][order], true),
    }


def _unit(a: np.ndarray) -> np.ndarray:
    return a / np.linalg.norm(a, axis=1, keepdims=True)
