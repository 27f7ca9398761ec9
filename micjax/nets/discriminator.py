"""Which of two images is measured and which one is made up, patch by patch (Isola 2017)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from micjax.nets.layers import Block, conv, halved, norm, zeroed


class PatchDiscriminator(nnx.Module):
    """A pair of images -> how real each of its patches looks, 1 for measured and 0 for made up.

    **Arguments:**

    - `channels`: of what was given and of what was made of it, together.
    - `width`: channels at full size, twice as many at each smaller one.
    - `depth`: how often the size is halved; a patch grows with it.
    """

    def __init__(self, channels: int = 2, *, width: int = 16, depth: int = 3, rngs: nnx.Rngs):
        widths = [width * 2**level for level in range(depth + 1)]
        self.first = conv(channels, width, rngs)
        self.down = nnx.List([Block(a, b, rngs) for a, b in zip(widths, widths[1:], strict=False)])
        self.last_norm = norm(widths[-1], rngs)
        self.last = zeroed(conv(widths[-1], 1, rngs, size=1))

    def __call__(self, pair: Float[Array, "*b y x c"]) -> Float[Array, "*b v u 1"]:
        h = self.first(pair)
        for block in self.down:
            h = halved(block(h))
        return self.last(nnx.gelu(self.last_norm(h))).astype(pair.dtype)


class Adversaries(nnx.Module):
    """A network that makes images, and one that tells them from measured ones."""

    def __init__(self, maker: nnx.Module, judge: PatchDiscriminator):
        self.maker, self.judge = maker, judge


def adversarial(
    pair: Adversaries,
    given: Float[Array, "b y x c"],
    made: Float[Array, "b y x d"],
    measured: Float[Array, "b y x d"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """What the maker loses where the judge sees through it, and what the judge loses where it errs:
    least squares (Mao 2017). Each is felt by one of both networks only, so that their sum can be
    lowered with one optimiser.

    **Arguments:**

    - `made`: by the maker, of `given`.
    """

    def felt_by_none(network: nnx.Module) -> nnx.Module:
        graph, state = nnx.split(network)
        return nnx.merge(graph, jax.lax.stop_gradient(state))

    def seen(judge: Callable[[Array], Array], image):
        return judge(jnp.concatenate([given, image], axis=-1))

    of_maker = jnp.mean((seen(felt_by_none(pair.judge), made) - 1.0) ** 2)
    real, false = seen(pair.judge, measured), seen(pair.judge, jax.lax.stop_gradient(made))
    return of_maker, 0.5 * (jnp.mean((real - 1.0) ** 2) + jnp.mean(false**2))
