"""How good a denoised image is, from quanta of the same image that the network never saw.

Their likelihood says whether the network foretells them better than a smooth image does. And the
square of what they are off by, less what their own noise adds to it, is the error of the image.
"""

import jax.numpy as jnp
import numpy as np
import scipy.ndimage
import scipy.optimize
from jaxtyping import Float

from micjax.problems.denoise.network import Pair

WIDTHS_PX = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 8.0)  # of Gaussian filters, the rival
BLOCK_PX = 16  # what lies in different ones is about independent
SMOOTH_PX = 2.0  # of the error that is told


def looked_up(
    foretold: Float[np.ndarray, "y x"], spread: Float[np.ndarray, "y x"], whole: Pair
) -> dict[str, np.ndarray]:
    """What was held out against what is foretold of it.

    **Arguments:**

    - `foretold`: the mean of the kept part, of the network that was given that part.
    - `spread`: standard deviation between images of several thinnings, of the whole.

    **Returns:** `sd`, the error of the image of all quanta; `filters`, `[f, 3]`: width (px), nats
    by which the network foretells more than that filter, and its standard error.
    """
    kept, ratio = np.asarray(whole.kept, float), float(whole.ratio)

    def nats(mean):
        mean = jnp.asarray(ratio * mean)
        if whole.law.counted:
            mean = jnp.maximum(mean, 1e-6)  # a filter may find nothing
        return np.asarray(whole.law_of_other.log_prob(whole.other, mean))

    own, rows = nats(foretold), []
    for width in WIDTHS_PX:
        gain = _blocks(own - nats(scipy.ndimage.gaussian_filter(kept, width)))
        rows.append((width, gain.sum(), np.sqrt(gain.size) * gain.std()))
    return {"sd": _error(foretold, spread, whole), "filters": np.array(rows)}


def _blocks(values: Float[np.ndarray, "y x"]) -> Float[np.ndarray, "b"]:
    """Sums over squares; what is left at the edges goes with the last ones."""
    starts = [np.arange(0, max(1, n - BLOCK_PX + 1), BLOCK_PX) for n in values.shape]
    return np.add.reduceat(np.add.reduceat(values, starts[0], 0), starts[1], 1).ravel()


def _error(foretold, spread, whole: Pair) -> Float[np.ndarray, "y x"]:
    """sd^2 = a spread^2 + b mean, with a and b from what is held out."""
    other, ratio = np.asarray(whole.other, float), float(whole.ratio)
    if whole.law.counted:
        scale = 1.0 + ratio  # the whole over the kept part
        squares = (other / ratio - foretold) ** 2 - other / ratio**2
        level = foretold * scale
    else:
        scale = 1.0
        squares = (other - foretold) ** 2 - float(whole.law_of_other.sigma) ** 2
        level = np.full_like(foretold, float(whole.law.sigma) ** 2)
    smooth = scipy.ndimage.gaussian_filter(spread**2, SMOOTH_PX)
    parts = np.stack([smooth.ravel(), level.ravel()], axis=1)
    weight = 1.0 / (level + level.mean()).ravel()
    unit = parts.mean(axis=0) + 1e-300
    shares, _ = scipy.optimize.nnls(
        parts / unit * weight[:, None], scale**2 * squares.ravel() * weight
    )
    return np.sqrt(parts / unit @ shares).reshape(foretold.shape)
