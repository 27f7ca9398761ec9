"""The classical way to columns: Gaussians fitted to an annular dark-field image."""

import numpy as np
import scipy.optimize
from jaxtyping import Float

from micjax.problems.structure.model import Scan

START_WIDTH_A = 0.6


def annular(x: Scan, y, inner_mrad: float) -> Float[np.ndarray, "ny nx"]:
    """Counts beyond an angle, place by place."""
    angle = np.hypot(np.asarray(x.y_mrad)[:, None], np.asarray(x.x_mrad))
    return np.asarray(y)[..., angle > inner_mrad].sum(-1)


def peaks(
    image: Float[np.ndarray, "ny nx"],
    place_A: Float[np.ndarray, "ny nx 2"],
    columns_A: Float[np.ndarray, "columns 2"],
    kind: list[int],
    box_A: Float[np.ndarray, "2"],
) -> Float[np.ndarray, "columns 2"]:
    """Places (y, x) of the Gaussians that explain an image, each near one of `columns_A`; all of a
    kind have one width, each has a height of its own, below them is a constant."""
    sorts = sorted(set(kind))
    which = np.array([sorts.index(k) for k in kind])
    n, level = len(columns_A), float(image.min())

    def model(values):
        place, height = values[: 2 * n].reshape(n, 2), values[2 * n : 3 * n]
        width = values[3 * n : -1][which]
        apart = place_A[:, :, None] - place
        apart -= box_A * np.round(apart / box_A)
        bumps = np.exp(-0.5 * (apart**2).sum(-1) / width**2)
        return bumps @ height + values[-1]

    start = np.concatenate(
        [
            columns_A.ravel(),
            np.full(n, float(np.ptp(image)) / 2.0),
            np.full(len(sorts), START_WIDTH_A),
            [level],
        ]
    )
    noise = np.sqrt(np.maximum(image, 1.0))
    fit = scipy.optimize.least_squares(
        lambda v: ((model(v) - image) / noise).ravel(), start, max_nfev=200
    )
    return fit.x[: 2 * n].reshape(n, 2)
