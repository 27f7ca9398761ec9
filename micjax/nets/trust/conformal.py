"""Split conformal prediction: intervals that cover as often as they say, whatever the network."""

import math

import numpy as np
from jaxtyping import Float


def conformal_factor(scores: Float[np.ndarray, "n"], level: float) -> float:
    """The k-th smallest of `scores`, k = ceil((n + 1) level).

    With scores |truth - estimate| / scale of examples that were not learned from, the interval
    estimate +- factor * scale of another one, exchangeable with them, holds its truth with a
    probability of at least `level`, and of at most `level` + 1 / (n + 1) if no two scores are equal
    (Vovk 2005; Lei 2018, J. Am. Stat. Assoc. 113, 1094, theorem 2.2).

    **Returns:** infinity where there are too few of them to say: n < level / (1 - level).

    **Raises:** `ValueError` for a level that is not between 0 and 1, scores that are NaN, and none.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"level = {level}: between 0 and 1 is needed")
    if scores.size == 0 or np.isnan(scores).any():
        raise ValueError(f"{np.isnan(scores).sum()} of {scores.size} scores are NaN")
    # (n + 1) level may be a whole number up to rounding
    k = math.ceil((scores.size + 1) * level - 1e-9)
    return math.inf if k > scores.size else float(np.partition(scores, k - 1)[k - 1])
