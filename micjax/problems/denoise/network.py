"""What the network does for `micjax.problems.denoise`, and what it learns from.

It sees data whose noise has about one standard deviation everywhere (Anscombe 1948), and adds what
it makes of them. It learns from noise alone: the quanta of an image are dealt out at random in two
parts (binomial thinning), it is given one of them and told the likelihood of the other, which rises
by what both have in common and by nothing else. Values with normal noise are taken apart likewise
(Pang 2021).
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from flax import nnx
from jax.scipy.special import gammaln, xlogy
from jaxtyping import Array, Bool, Float

from micjax.core.problem import parameter
from micjax.core.ranges import check_ranges
from micjax.nets.train import Training
from micjax.nets.unet import UNet
from micjax.problems.denoise.scenes import EDGE_PX, scene

HANDS = 20  # parts that the quanta of an image are dealt out in
DOSES = (0.3, 100.0)  # counts a pixel, of made-up images
DARKEST = 0.05  # of an image as the network sees it: no logarithm of nothing


def held_out_of(hands: int) -> int:
    """How many of the parts are not learned from."""
    return max(1, hands // 5)


class NoiseLaw(eqx.Module):
    """Counts, or values with normal noise of one standard deviation."""

    sigma: Float[Array, "*b"] = parameter(default=1.0)
    counted: bool = eqx.field(static=True, default=True)

    def seen(self, y: Float[Array, "*b y x"]) -> Float[Array, "*b y x"]:
        """Data with a noise of about one standard deviation."""
        return 2.0 * jnp.sqrt(y + 0.375) if self.counted else y / self.sigma[..., None, None]

    def mean(self, seen: Float[Array, "*b y x"]) -> Float[Array, "*b y x"]:
        """Of the data, from what the network says of them as it sees them."""
        if not self.counted:
            return seen * self.sigma[..., None, None]
        return 0.25 * jnp.square(jnp.maximum(seen, DARKEST))

    def log_prob(self, y: Float[Array, "*b y x"], mean: Float[Array, "*b y x"]):
        if self.counted:  # also of what is no whole number, as the truth
            return xlogy(y, mean) - mean - gammaln(y + 1.0)
        return dist.Normal(mean, self.sigma[..., None, None]).log_prob(y)

    def dealt(
        self, rng: np.random.Generator, y: Float[np.ndarray, "y x"]
    ) -> Float[np.ndarray, "h y x"]:
        """The data as the sum (of values: the mean) of parts that are independent of each other."""
        if self.counted:
            left, hands = y.astype(np.int64), []
            for others in range(HANDS - 1, -1, -1):
                hands.append(rng.binomial(left, 1.0 / (1 + others)))
                left = left - hands[-1]
            return np.array(hands, np.float32)
        noise = rng.standard_normal((HANDS, *y.shape))
        noise = float(self.sigma) * np.sqrt(HANDS) * (noise - noise.mean(axis=0))
        return (y + noise).astype(np.float32)

    def taken(self, hands: Float[Array, "*b h y x"], which: Bool[Array, "*b h"]):
        """Some of the parts as data, and their law."""
        which = which.astype(hands.dtype)
        total = (hands * which[..., None, None]).sum(axis=-3)
        count = which.sum(axis=-1)
        if self.counted:
            return total, NoiseLaw(jnp.ones_like(count), True)
        sigma = self.sigma * jnp.sqrt(hands.shape[-3] / count)
        return total / count[..., None, None], NoiseLaw(sigma, False)


class Pair(NamedTuple):
    """What the network is given, and what is held against it."""

    kept: Float[Array, "*b y x"]
    other: Float[Array, "*b y x"]
    law: NoiseLaw
    law_of_other: NoiseLaw
    ratio: Float[Array, "*b"]  # of the mean of the other to that of the kept


def paired(
    law: NoiseLaw,
    hands: Float[Array, "*b h y x"],
    kept: Bool[Array, "*b h"],
    other: Bool[Array, "*b h"],
) -> Pair:
    (a, law_a), (b, law_b) = law.taken(hands, kept), law.taken(hands, other)
    ratio = other.sum(axis=-1) / kept.sum(axis=-1)
    return Pair(a, b, law_a, law_b, ratio if law.counted else jnp.ones_like(ratio))


def denoised(
    network: Callable[[Array], Array], law: NoiseLaw, y: Float[Array, "*b y x"]
) -> Float[Array, "*b y x"]:
    """The mean of the data, as the network has it."""
    seen = law.seen(y)
    level = seen.mean(axis=(-2, -1), keepdims=True)
    return law.mean(seen + network((seen - level)[..., None])[..., 0])


def loss(network: Callable[[Array], Array], pair: Pair) -> Float[Array, ""]:
    """Minus the log-likelihood of a pixel of the other part (nats)."""
    mean = denoised(network, pair.law, pair.kept) * pair.ratio[..., None, None]
    return -pair.law_of_other.log_prob(pair.other, mean).mean()


def training(
    examples: int = 16, edge_px: int = 64, width: int = 16, depth: int = 3, fold: int = 2
) -> Training:
    """Made-up crystals and their counts; what is held against the network is the truth.

    **Arguments:**

    - `examples`: images of a batch. `edge_px`: of each.
    - `width`, `depth`, `fold`: of the network, see `micjax.nets.unet.UNet`.

    **Raises:** `ValueError` for no examples, and an edge that the network cannot halve as often.
    """
    check_ranges("training", {"examples": examples, "edge_px": edge_px})
    options = {"width": width, "depth": depth, "fold": fold}
    network = UNet(**options, rngs=nnx.Rngs(0))
    if edge_px % network.multiple:
        raise ValueError(f"edge_px = {edge_px}: a multiple of {network.multiple} is needed")

    def draw(key, data):
        of_image, of_dose, of_counts = jax.random.split(key, 3)
        images = jax.vmap(lambda k: scene(k, edge_px))(jax.random.split(of_image, examples))
        low, high = map(jnp.log, DOSES)
        dose = jnp.exp(jax.random.uniform(of_dose, (examples, 1, 1), minval=low, maxval=high))
        truth = dose * images
        law = NoiseLaw(jnp.ones(examples))
        counts = jax.random.poisson(of_counts, truth).astype(truth.dtype)
        return Pair(counts, truth, law, law, jnp.ones(examples))

    facts = {"edge_of_cells_px": list(EDGE_PX), "counts_per_pixel": list(DOSES)}
    return Training(network, draw, loss, options=options, facts=facts)


def from_thinning(
    network: nnx.Module,
    law: NoiseLaw,
    hands: Float[np.ndarray, "h y x"],
    examples: int = 4,
    edge: int = 128,
) -> Training:
    """One image in independent parts: the last ones are held out, the others are learned from.

    **Arguments:**

    - `hands`: parts of an image (`NoiseLaw.dealt`), or frames of it; at least three.
    - `edge`: of the crops; those of smaller images are as large as the image.
    """
    shape = hands.shape[1:]
    size = tuple(min(edge, n - n % network.multiple) for n in shape)
    room = jnp.array(shape) - jnp.array(size) + 1
    number = len(hands)
    most = number - held_out_of(number)
    learned = jnp.arange(number) < most

    def cropped(key, hands):
        corners = jax.random.randint(key, (examples, 2), 0, room)
        start = jnp.pad(corners, ((0, 0), (1, 0)))
        return jax.vmap(lambda c: jax.lax.dynamic_slice(hands, c, (number, *size)))(start)

    def draw(key, data):
        where, how_many, which = jax.random.split(key, 3)
        count = jax.random.randint(how_many, (examples, 1), max(1, most // 2), most)
        chance = jnp.where(learned, jax.random.uniform(which, (examples, number)), 2.0)
        kept = jnp.argsort(jnp.argsort(chance, axis=1), axis=1) < count
        return paired(data[0], cropped(where, data[1]), kept, learned & ~kept)

    def held_out(key, data):
        kept = jnp.broadcast_to(learned, (examples, number))
        return paired(data[0], cropped(key, data[1]), kept, ~kept)

    return Training(network, draw, loss, (law, jnp.asarray(hands)), held_out)
