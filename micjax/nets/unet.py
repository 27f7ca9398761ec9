"""A U-Net of residual blocks (Ronneberger 2015; He 2016)."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from micjax.nets.layers import Block, conv, doubled, folded, halved, norm, unfolded, zeroed


class UNet(nnx.Module):
    """Image -> image, seen at `depth` + 1 sizes, each half of the one before.

    **Arguments:**

    - `channels_in`, `channels_out`: of the images; `channels_out` may be several heads, which are
        returned side by side along the last axis.
    - `width`: channels at full size, a multiple of eight; twice as many at each smaller size, up to
        eight times.
    - `depth`: how often the size is halved.
    - `blocks`: residual blocks at each size, on the way down and on the way up.
    - `fold`: squares of so many pixels become channels before anything else: that many squared
        times less work.
    - `condition`: length of a vector that the blocks are told, 0: none.
    - `circular`: the image goes on at the other side.
    """

    def __init__(
        self,
        channels_in: int = 1,
        channels_out: int = 1,
        *,
        width: int = 16,
        depth: int = 3,
        blocks: int = 1,
        fold: int = 1,
        condition: int = 0,
        circular: bool = False,
        rngs: nnx.Rngs,
    ):
        if min(channels_in, channels_out, width, blocks, fold) < 1 or depth < 0:
            raise ValueError(
                f"{channels_in} to {channels_out} channels, width = {width}, blocks = {blocks}, "
                f"fold = {fold}, depth = {depth}: from 1 on, and a depth from 0 on, are needed"
            )
        widths = [width * min(2**i, 8) for i in range(depth + 1)]
        self.fold, self.depth, self.blocks = fold, depth, blocks

        def row(cin: int, cout: int):
            ins = [cin] + [cout] * (blocks - 1)
            return nnx.List([Block(c, cout, rngs, condition, circular) for c in ins])

        self.first = conv(channels_in * fold**2, width, rngs, circular=circular)
        self.down = nnx.List([row(widths[max(i - 1, 0)], widths[i]) for i in range(depth + 1)])
        self.up = nnx.List([row(widths[i] + widths[i + 1], widths[i]) for i in range(depth)])
        self.last_norm = norm(width, rngs)
        self.last = zeroed(conv(width, channels_out * fold**2, rngs, circular=circular))

    @property
    def multiple(self) -> int:
        """What the edges of an image have to be a multiple of."""
        return self.fold * 2**self.depth

    @property
    def reach(self) -> int:
        """Pixels on each side that a pixel may depend on, but for the means of the norms."""
        sizes = [self.fold * 2**level for level in range(self.depth + 1)]
        convolutions = 2 * self.blocks * (2 * sum(sizes) - sizes[-1])  # down, and up again
        return convolutions + sum(sizes[:-1]) + 3 * self.fold - 1  # resizing, folding, the ends

    def __call__(self, image: Float[Array, "*b y x c"], vector=None) -> Float[Array, "*b y x d"]:
        """**Raises:** `ValueError` for edges that are no `multiple`."""
        y, x = image.shape[-3:-1]
        if y % self.multiple or x % self.multiple:
            raise ValueError(f"{y} x {x} pixels: multiples of {self.multiple} are needed")
        h, passed = self.first(folded(image, self.fold)), []
        for level, row in enumerate(self.down):
            for block in row:
                h = block(h, vector)
            if level < self.depth:
                passed.append(h)
                h = halved(h)
        for level in reversed(range(self.depth)):
            h = jnp.concatenate([passed[level], doubled(h)], axis=-1)
            for block in self.up[level]:
                h = block(h, vector)
        last = unfolded(self.last(nnx.gelu(self.last_norm(h))), self.fold)
        return last.astype(image.dtype)
