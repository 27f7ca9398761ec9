"""The highest point of an acquisition in a box: multi-start L-BFGS in one compiled call."""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Bool, Float

from micjax.core.precision import double

Score = Callable[..., Float[Array, "m"]]
RISE = 1e-7  # of a score, relatively, below which a climb is over
STEP_SIZES = 2.0 ** -np.arange(10)  # of a line search, tried side by side


class Box(eqx.Module):
    """A box of the axes, some of which hold whole numbers only (integers, categories)."""

    lower: Float[Array, "d"]
    upper: Float[Array, "d"]
    whole: Bool[Array, "d"]

    def __init__(
        self,
        lower: ArrayLike | Sequence[float | int],
        upper: ArrayLike | Sequence[float | int],
        whole: ArrayLike | Sequence[bool] = False,
    ):
        lower, upper = np.asarray(lower, float), np.asarray(upper, float)
        if lower.ndim != 1 or lower.shape != upper.shape or not np.all(lower <= upper):
            raise ValueError(f"the box from {lower.tolist()} to {upper.tolist()} is empty")
        with jax.enable_x64(True):  # in float32 a bound would move
            self.lower, self.upper = jnp.asarray(lower), jnp.asarray(upper)
            self.whole = jnp.broadcast_to(jnp.asarray(np.asarray(whole)), lower.shape)

    def uniform(self, u: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """Points of the unit cube carried into the box; every whole number gets an equal share."""
        width = self.upper - self.lower + self.whole
        points = self.lower + u * width
        return jnp.where(self.whole, jnp.clip(jnp.floor(points), max=self.upper), points)


@double
@eqx.filter_jit
def maximise(
    score: Score,
    box: Box,
    key: Array,
    arguments: tuple = (),
    near: Float[Array, "k d"] | None = None,
    *,
    samples: int = 1024,
    starts: int = 8,
    steps: int = 40,
) -> tuple[Float[Array, "d"], Float[Array, ""]]:
    """The point of the box where `score(points, *arguments)` is highest, and its score.

    Uniform samples and a cloud about `near` are ranked, and the best of them climb by L-BFGS with
    projection to the box. Axes of whole numbers are chosen by the ranking and stay.

    **Arguments:**

    - `score`: `[m, d]` -> `[m]`, each point by itself; compiled once for each function. What
        changes from call to call belongs into `arguments`.
    - `steps`: the most that a climb may take.
    - `near`: points about which to look closely, such as the best ones so far.
    """
    first, second = jax.random.split(key)
    pool = box.uniform(jax.random.uniform(first, (samples, box.lower.size)))
    if near is not None:
        pool = jnp.concatenate([pool, _cloud(second, box, near, samples // 4)])
    values = _safe(score(pool, *arguments))
    values, best = jax.lax.top_k(values, starts)
    points = pool[best]
    solver = optax.scale_by_lbfgs(memory_size=8)
    free = (~box.whole & (box.upper > box.lower)).astype(points.dtype)
    width = jnp.where(box.upper > box.lower, box.upper - box.lower, 1.0)

    def place(z):  # from the unit cube, where one step suits all axes; rounding leaves the box
        points = jnp.clip(box.lower + z * width, box.lower, box.upper)
        return jnp.where(box.whole, jnp.round(points), points)

    def height(z):
        return score(place(z), *arguments)

    def slope(z):
        uphill = jax.grad(lambda z: jnp.sum(height(z)))(z) * free
        outward = ((z <= 0.0) & (uphill < 0.0)) | ((z >= 1.0) & (uphill > 0.0))
        return jnp.where(jnp.isfinite(uphill) & ~outward, uphill, 0.0)

    def rising(carry):
        taken, rise, *_ = carry
        return (taken < steps) & jnp.any(rise > RISE * (1.0 + jnp.abs(carry[3])))

    def step(carry):
        taken, _, z, value, state = carry
        gradient = slope(z)
        downhill, state = jax.vmap(solver.update)(-gradient, state, z)
        tries = z + STEP_SIZES[:, None, None] * jnp.stack([-downhill, gradient])[:, None]
        tries = jnp.clip(tries.reshape(-1, *z.shape), 0.0, 1.0)
        heights = _safe(height(tries.reshape(-1, z.shape[1]))).reshape(tries.shape[:2])
        best = jnp.argmax(heights, axis=0)
        every = jnp.arange(starts)
        better = heights[best, every] > value
        z = jnp.where(better[:, None], tries[best, every], z)
        higher = jnp.where(better, heights[best, every], value)
        rise = jnp.where(better, higher - value, 0.0)
        return taken + 1, rise, z, higher, state

    z = jnp.clip((points - box.lower) / width, 0.0, 1.0)
    start = (0, jnp.full_like(values, jnp.inf), z, values, jax.vmap(solver.init)(z))
    _, _, z, values, _ = jax.lax.while_loop(rising, step, start)
    winner = jnp.argmax(values)
    return place(z[winner]), values[winner]


def _cloud(key: Array, box: Box, near: Float[Array, "k d"], count: int) -> Float[Array, "count d"]:
    which, size, shift, keep = jax.random.split(key, 4)
    centre = near[jax.random.randint(which, (count,), 0, near.shape[0])]
    radius = 10.0 ** jax.random.uniform(size, (count, 1), minval=-3.0, maxval=-0.5)
    step = radius * (box.upper - box.lower) * jax.random.normal(shift, centre.shape)
    # a whole number is kept mostly: a small step never leaves it
    redrawn = box.uniform(jax.random.uniform(shift, centre.shape))
    kept = jax.random.uniform(keep, centre.shape) < 0.8
    other = jnp.where(kept, centre, redrawn)
    return jnp.where(box.whole, other, jnp.clip(centre + step, box.lower, box.upper))


def _safe(values: Float[Array, "m"]) -> Float[Array, "m"]:
    return jnp.where(jnp.isnan(values), -jnp.inf, values)
