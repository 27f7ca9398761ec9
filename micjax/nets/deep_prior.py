"""An image that is what a network makes of fixed noise (Ulyanov, Vedaldi and Lempitsky 2018).

The unknowns are the weights: what the network is slow to make, noise above all, is improbable.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpyro.distributions as dist
from flax import nnx
from jaxtyping import Array, Float

from micjax.core.names import unknown_name
from micjax.core.problem import InverseProblem, parameter
from micjax.core.tree import replace


class DeepPrior(eqx.Module):
    """A forward model of which one image is offset + scale * network(noise)."""

    model: Callable[..., Array]
    network: nnx.Module
    noise: Float[Array, "y x c"] = parameter()
    offset: Float[Array, "y x"] = parameter()
    scale: Float[Array, ""] = parameter()
    leaf: str = eqx.field(static=True)

    def __call__(self, x) -> Any:
        return replace(self.model, {self.leaf: self.image})(x)

    @property
    def image(self) -> Float[Array, "y x"]:
        return self.offset + self.scale * self.network(self.noise)[..., 0]


def deep_prior(
    problem: InverseProblem,
    name: str,
    network: nnx.Module,
    *,
    key: Array,
    scale: float,
    channels: int = 1,
    weights: dist.Distribution | None = None,
) -> InverseProblem:
    """The same problem with a network in place of an unknown image.

    Its other unknowns `forward.NAME` are then `forward.model.NAME`; the image that has been found
    is `problem.forward.image`.

    **Arguments:**

    - `name`: of the image, `forward.surface`.
    - `network`: `[y, x, channels]` -> `[y, x, 1]`. One that says nothing yet begins with the
        present value of the image.
    - `key`: of the noise that it sees.
    - `scale`: of the image, in its unit: what the network says is multiplied by it.
    - `channels`: that the network takes.
    - `weights`: the prior of each weight, standard normal by default.

    **Raises:** `ValueError` for a name that is no unknown image of the forward model.
    """
    unknowns = problem.unknowns()
    leaf = name.removeprefix("forward.")
    if name not in unknowns or leaf == name:
        raise ValueError(unknown_name("unknown of the forward model", name, unknowns))
    image = problem.values()[name]
    if image.ndim != 2:
        raise ValueError(f"{name} is of shape {image.shape}: an image is needed")
    forward = DeepPrior(
        problem.forward,
        network,
        jax.random.normal(key, (*image.shape, channels)),
        image,
        scale,
        leaf,
    )
    priors = {_moved(n): prior for n, prior in problem.priors.items() if n != name}
    priors["forward.network"] = dist.Normal(0.0, 1.0) if weights is None else weights
    return InverseProblem(forward, problem.noise, priors)


def _moved(name: str) -> str:
    part, point, rest = name.partition(".")
    return f"{part}.model{point}{rest}" if part == "forward" else name
