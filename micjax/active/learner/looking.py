"""A learner that looks: a deep kernel over an image of the sample that was taken before.

At each setting the process sees the place and the patch of the image around it. Networks are
trained on from where they were when data come in; several of them are equally likely beliefs.
"""

import dataclasses
import functools
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Float

from micjax.active.acquire.scalarise import Scale, scale_of, spread
from micjax.active.gp import deep as deep_kernel
from micjax.active.gp import process as gp
from micjax.active.gp.mixture import of_states
from micjax.active.learner.belief import Belief, Outcomes, Points
from micjax.active.learner.predictive import Part, over_draws
from micjax.active.learner.space import Space
from micjax.core.problem import InverseProblem

SIDE = 9  # pixels along a side of a patch


class Patches(eqx.Module):
    """Places in the unit square, and the patch of an image around the pixel nearest to each."""

    padded: Float[Array, "rows columns"]
    side: int = eqx.field(static=True)

    def __call__(self, places: Float[Array, "n 2"]) -> Float[Array, "n axes"]:
        size = jnp.asarray(self.padded.shape) - self.side  # one less than the pixels of the image
        corner = jnp.clip(jnp.round(places * size).astype(int), 0, size)
        window = jnp.arange(self.side)
        rows, columns = corner[:, 0, None] + window, corner[:, 1, None] + window
        patches = self.padded[rows[:, :, None], columns[:, None, :]]
        return jnp.concatenate([places, patches.reshape(len(places), -1)], axis=1)


def looking_model(
    space: Space,
    image: Float[ArrayLike, "ny nx"],
    *,
    side: int = SIDE,
    members: int = 1,
    network: Callable[[nnx.Rngs], nnx.Module] | None = None,
    scale: str = "likeliest",
    seed: int = 0,
) -> "Looking":
    """A deep kernel over the two axes of `space` and an image of what lies there.

    **Arguments:**

    - `image`: over the whole space, its first pixel at the lower ends of both axes, its last one at
        the upper ends. In any unit, and better in logarithms if it spans decades.
    - `side`: of the patches, in pixels of the image, odd. At the borders the image is mirrored.
    - `members`: how many networks, each from a start of its own.
    - `network`: makes one that maps patches `[n, side^2]`, of the image at mean 0 and standard
        deviation 1, to features; by default `deep_kernel.Surroundings`.
    - `scale`: of the outcomes, see `scale_of`.

    **Raises:** `ValueError` for a space without two ordered axes, an image that is too small, not
    finite or the same everywhere, or an even side.
    """
    image = np.asarray(image, float)
    if side < 1 or side % 2 == 0:
        raise ValueError(f"a patch of side {side} has no middle pixel; it has to be odd")
    if len(space.axes) != 2 or space.categorical:
        raise ValueError(f"an image has two axes; the space has {space.names}")
    if image.ndim != 2 or min(image.shape) <= side // 2:
        raise ValueError(f"the image of shape {image.shape} is too small for patches of {side}")
    if not np.isfinite(image).all():
        raise ValueError(f"{int(np.sum(~np.isfinite(image)))} pixels of the image are not finite")
    if not spread(image) > 0.0:
        raise ValueError("the image is the same everywhere: there is nothing to look at")
    # of the whole image, not of each patch
    standard = np.pad((image - image.mean()) / spread(image), side // 2, mode="reflect")
    rngs = nnx.Rngs(seed)
    process = deep_kernel.deep_process(
        space.lower,
        space.upper,
        deep_kernel.Surroundings(side, rngs=rngs) if network is None else network(rngs),
        sees=Patches(jnp.asarray(standard), side),
    )
    return Looking(process, members, scale)


@dataclasses.dataclass(frozen=True)
class Looking:
    """The model of `looking_model`: an ensemble of most probable networks."""

    process: InverseProblem
    members: int
    scale: str

    def __call__(
        self,
        points: Points,
        y: Outcomes,
        last: Belief | None,
        key: Array,
        y_sd: Outcomes | None = None,
    ) -> Belief:
        scale = scale_of(y, self.scale)
        observed, z = gp.buffered(points, scale.apply(y), scale.noise_ratios(y, y_sd))
        if last is None:
            ensemble = deep_kernel.draw_ensemble(self.process, key, self.members)
            steps = deep_kernel.FIRST_STEPS
        else:
            ensemble = last.memory
            steps = deep_kernel.STEPS * (len(y) - last.states[0].count)
        ensemble = deep_kernel.train(ensemble, observed, z, steps)
        states = deep_kernel.conditioned(ensemble, observed, z)
        predicts = functools.partial(_predict, ensemble, scale, observed, z)
        return Belief(states, of_states(states), scale, ensemble, predicts)


def _predict(ensemble: deep_kernel.Ensemble, scale: Scale, observed, z, points) -> list[Part]:
    draws = deep_kernel.values(ensemble)
    predicted = over_draws(draws, ensemble.problem, observed, z, points)
    return [Part(scale, np.zeros(len(predicted[0])), *predicted)]
