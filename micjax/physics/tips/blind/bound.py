"""What no tip exceeds that can have taken the images, of whatever shape it is.

The classical bound of Villarrubia at all the points that bind, with the smallest threshold at which
noise does not cut into a tip that is known: images of an estimate with fresh noise must give a
bound above that estimate, in every one of several draws. An estimate is the bluntest of a family;
the bound holds for pyramids, ellipses and doubles as well.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from micjax.physics.tips.dilation import dilate, opening
from micjax.physics.tips.evidence import Frames, Kernel, Scalar, admissible, misfit
from micjax.physics.tips.villarrubia import villarrubia

THRESHOLDS = (3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 8.0)  # in sigma; the largest is 2 x 4 sigma of extremes
_DRAWS = 3
_ROUNDS = 8  # after which the bound moves by less than the noise
_WORK = 6e8  # sums of a round, of which it takes (pixels of the tip)^2 a point


def bound(images: Frames, size: tuple[int, int], threshold_nm: float) -> Kernel:
    """The classical bound at all points, or at the most sharply bent ones of large images."""
    most = max(500, int(_WORK / (size[0] * size[1]) ** 2))
    return villarrubia(images, size, threshold_nm, _ROUNDS, everywhere=True, most=most)[0]


def safe_threshold(images: Frames, tip: Kernel, sigma_nm: Scalar, key: Key[Array, ""]) -> float:
    """The smallest of `THRESHOLDS` at which no draw of noise pushes the bound below `tip`."""
    height = np.array(tip - jnp.max(tip))
    top = np.unravel_index(int(np.argmax(height)), height.shape)
    # the bound has its apex in the middle
    middle = [n // 2 - int(t) for n, t in zip(height.shape, top, strict=True)]
    height = np.roll(height, middle, (0, 1))
    clean = jax.vmap(lambda i: opening(i, jnp.asarray(height)))(images)
    shape, dtype = images.shape, images.dtype
    noisy = [
        clean + sigma_nm * jax.random.normal(k, shape, dtype) for k in jax.random.split(key, _DRAWS)
    ]
    reached = height > -float(jnp.max(jnp.ptp(images, axis=(1, 2)))) / 2
    for sigmas in THRESHOLDS[:-1]:
        threshold_nm = float(sigmas * sigma_nm)
        if all(
            np.all(np.asarray(bound(i, height.shape, threshold_nm) - height)[reached] >= -sigma_nm)
            for i in noisy
        ):
            return sigmas
    return THRESHOLDS[-1]


def deepened(images: Frames, tip: Kernel, sigma_nm: Scalar, key, allowance: float) -> Kernel:
    """A tip too blunt, its depths multiplied until it is admissible: by up to 100."""
    low, high = 0.0, np.log(100.0)
    for _ in range(8):
        middle = (low + high) / 2
        seen, floor, _ = misfit(images, float(np.exp(middle)) * tip, sigma_nm, key)
        low, high = (low, middle) if bool(admissible(seen, floor, allowance)) else (middle, high)
    return float(np.exp(high)) * tip


def apex_alone(image: Array, tip: Kernel, tolerance_nm: Scalar) -> Array:
    """Where the apex of every tip below `tip` has touched, and nothing else of it.

    No surface stands above the image, so that a contact at u needs I(x + u) + T(u) >= I(x). Where
    none but u = 0 can, the surface is the image. Beyond its window the tip goes on as at its edge.
    Half a window from the border the contact may lie outside.
    """
    hy, hx = (n // 2 for n in tip.shape)
    sides = [min(k // 2, (n - k) // 2) for n, k in zip(image.shape, tip.shape, strict=True)]
    wide = jnp.pad(tip, [(n, n) for n in sides], mode="edge")
    # the second largest of I(x + u) + T(u): the largest without the middle
    ky, kx = wide.shape
    without = wide.at[ky // 2, kx // 2].set(-1e9)
    alone = dilate(image, without) < image - tolerance_nm
    y, x = jnp.arange(image.shape[0])[:, None], jnp.arange(image.shape[1])[None, :]
    inside = (y >= hy) & (y < image.shape[0] - hy) & (x >= hx) & (x < image.shape[1] - hx)
    return alone & inside
