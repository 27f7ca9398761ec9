"""How far two partitions, or a partition and the truth, are the same."""

import numpy as np
import scipy.optimize
from jaxtyping import Int


def contingency(
    first: Int[np.ndarray, "*n"], second: Int[np.ndarray, "*n"]
) -> Int[np.ndarray, "a b"]:
    """How many elements each label of the one shares with each label of the other."""
    _, a = np.unique(first, return_inverse=True)
    _, b = np.unique(second, return_inverse=True)
    shape = (a.max() + 1, b.max() + 1)
    return np.bincount(a.ravel() * shape[1] + b.ravel(), minlength=np.prod(shape)).reshape(shape)


def adjusted_rand_index(first: Int[np.ndarray, "*n"], second: Int[np.ndarray, "*n"]) -> float:
    """1 for the same partition whatever its labels, 0 on average by chance (Hubert & Arabie 1985).

    One label only on either side is 0, and 1 on both.
    """
    table = contingency(first, second).astype(float)

    def pairs(n):
        return np.sum(n * (n - 1.0)) / 2.0

    together, rows, columns = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    expected = rows * columns / pairs(table.sum())
    most = 0.5 * (rows + columns)
    return float((together - expected) / (most - expected)) if most > expected else 1.0


def matched(labels: Int[np.ndarray, "*n"], truth: Int[np.ndarray, "*n"], count: int) -> dict:
    """The label of the truth for each label below `count`, such that most elements agree."""
    table = np.array(
        [[np.sum((labels == i) & (truth == j)) for j in range(count)] for i in range(count)]
    )
    return dict(zip(*scipy.optimize.linear_sum_assignment(-table), strict=True))
