"""Image -> vector: residual blocks at ever smaller sizes, then the mean and the maximum."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from micjax.nets.layers import Block, conv, folded, halved, norm, zeroed


class ImageEncoder(nnx.Module):
    """What is said of a whole image, wherever in it the evidence lies.

    **Arguments:**

    - `channels_in`: of the image; `numbers_out`: of the vector.
    - `width`: channels at full size, a multiple of eight; twice as many at each smaller size, up to
        eight times.
    - `depth`: how often the size is halved.
    - `fold`: squares of so many pixels become channels before anything else.
    """

    def __init__(
        self,
        channels_in: int = 1,
        numbers_out: int = 1,
        *,
        width: int = 16,
        depth: int = 3,
        fold: int = 1,
        rngs: nnx.Rngs,
    ):
        widths = [width * min(2**i, 8) for i in range(depth + 1)]
        kind = jnp.result_type(float)
        self.fold, self.depth = fold, depth
        self.first = conv(channels_in * fold**2, width, rngs)
        self.down = nnx.List(
            [Block(widths[max(i - 1, 0)], widths[i], rngs) for i in range(depth + 1)]
        )
        self.last_norm = norm(widths[-1], rngs)
        self.hidden = nnx.Linear(2 * widths[-1], 2 * widths[-1], param_dtype=kind, rngs=rngs)
        self.last = zeroed(nnx.Linear(2 * widths[-1], numbers_out, param_dtype=kind, rngs=rngs))

    @property
    def multiple(self) -> int:
        """What the edges of an image have to be a multiple of."""
        return self.fold * 2**self.depth

    def __call__(self, image: Float[Array, "*b y x c"]) -> Float[Array, "*b d"]:
        """**Raises:** `ValueError` for edges that are no `multiple`."""
        y, x = image.shape[-3:-1]
        if y % self.multiple or x % self.multiple:
            raise ValueError(f"{y} x {x} pixels: multiples of {self.multiple} are needed")
        h = self.first(folded(image, self.fold))
        for level, block in enumerate(self.down):
            h = block(h)
            if level < self.depth:
                h = halved(h)
        h = nnx.gelu(self.last_norm(h))
        pooled = jnp.concatenate([h.mean(axis=(-3, -2)), h.max(axis=(-3, -2))], axis=-1)
        return self.last(nnx.gelu(self.hidden(pooled))).astype(image.dtype)
