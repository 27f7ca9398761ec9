"""The classical blind estimate of a tip, as the baseline, a fallback without noise, and a guide."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from micjax.physics.tips.evidence import Frames, Kernel


def villarrubia(
    images: Frames,
    size: tuple[int, int],
    threshold_nm: float,
    rounds: int = 30,
    everywhere: bool = False,
    most: int | None = None,
) -> tuple[Kernel, int]:
    """The classical blind estimate (Villarrubia 1997, sec. 7), at the local maxima of the images.

    Every image point x was touched by some tip pixel d, so no tip pixel u stands higher than

        max over possible d of  I(x + d - u) - I(x) + T(d)     (up to the threshold),

    d being possible where the apex itself stays out of the surface. Repeated from a flat tip until
    nothing changes.

    `everywhere` takes all image points, or the `most` of them where the image is bent downwards
    most, which bound a tip most. Each point takes 4 * tip.size numbers of memory.

    **Returns:** `(tip in the frame of T, rounds used)`.
    """
    ky, kx = size
    hy, hx = ky // 2, kx // 2
    patches = _patches(images, ky, kx, everywhere, most)
    tip = jnp.zeros(size, images.dtype)
    done = 0
    while done < rounds:
        done += 1
        lower = _villarrubia_round(tip, patches, hy, hx, threshold_nm)
        settled = float(jnp.max(tip - lower)) <= 1e-9 * max(1.0, abs(float(jnp.min(lower))))
        tip = lower
        if settled:
            break
    return tip - jnp.max(tip), done


def _patches(
    images: Frames, ky: int, kx: int, everywhere: bool, most: int | None
) -> Float[Array, "n py px"]:
    """Patches of 2k - 1 pixels round the local maxima, or round all pixels or `most` of them, that
    lie a tip away from the border."""
    frames, ny, nx = images.shape
    others = jnp.stack(
        [
            jnp.roll(images, (dy, dx), (1, 2))
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if (dy, dx) != (0, 0)
        ]
    )
    around = others.max(0)
    y, x = jnp.arange(ny)[:, None], jnp.arange(nx)[None, :]
    inside = (y >= ky - 1) & (y <= ny - ky) & (x >= kx - 1) & (x <= nx - kx)
    points = ((images >= around) | everywhere) & inside
    if most is not None and most < points.size:
        bent = jnp.where(points, images - others.mean(0), -jnp.inf)
        points = points & (bent > jnp.sort(bent.reshape(-1))[-most - 1])
    frame, iy, ix = jnp.nonzero(points)
    wy, wx = jnp.arange(1 - ky, ky), jnp.arange(1 - kx, kx)
    return images[
        frame[:, None, None], iy[:, None, None] + wy[:, None], ix[:, None, None] + wx[None, :]
    ]


@functools.partial(jax.jit, static_argnums=(2, 3))
def _villarrubia_round(tip, patches, hy, hx, threshold_nm):
    ky, kx = tip.shape
    centre = patches[:, ky - 1, kx - 1]  # I(x)

    def body(best, d):
        i, j = d // kx, d % kx
        # I(x + d - u) for all u: the patch shifted by d, read backwards
        shifted = lax.dynamic_slice(patches, (jnp.zeros_like(i), i, j), (patches.shape[0], ky, kx))[
            :, ::-1, ::-1
        ]
        rise = shifted - centre[:, None, None] + tip[i, j]
        possible = rise[:, hy, hx] >= -threshold_nm
        return jnp.maximum(best, jnp.where(possible[:, None, None], rise, -jnp.inf)), None

    start = jnp.full((patches.shape[0], ky, kx), -jnp.inf, patches.dtype)
    bound, _ = lax.scan(body, start, jnp.arange(ky * kx, dtype=jnp.int32))
    return jnp.minimum(tip, jnp.min(bound, axis=0, initial=jnp.inf) + threshold_nm)
