"""An image of any size through a network, tile by tile, where tiles overlap and fade over."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, PyTree

from micjax.core.progress import progress


def tiled(
    function: Callable[..., ArrayLike],
    weights: PyTree,
    image: Float[np.ndarray, "y x c"],
    multiple: int,
    tile: int = 256,
    overlap: int = 32,
) -> Float[np.ndarray, "y x d"]:
    """function(weights, tile) of a whole image, which is mirrored at its edges.

    **Arguments:**

    - `function`: jitted, of a tile of one shape.
    - `multiple`: what the edges of a tile have to be a multiple of.
    - `tile`: edge of a tile. An image no larger is one tile.
    - `overlap`: pixels over which a tile fades into its neighbour.

    **Raises:** `ValueError` for tiles that do not fit, and images no larger than half of
        `multiple`.
    """
    if tile % multiple or not 0 <= overlap < tile // 2:
        raise ValueError(
            f"tiles of {tile} that overlap by {overlap} pixels: a multiple of {multiple}, and less "
            "than half of it, are needed"
        )
    size = image.shape[:2]
    edges = [min(tile, -(-n // multiple) * multiple) for n in size]
    if any(edge - n >= n for n, edge in zip(size, edges, strict=True)):
        least = multiple // 2 + 1  # what is missing of a tile is a mirror of the image
        raise ValueError(f"{size[0]} x {size[1]} pixels: the network needs at least {least}")
    corners = [_corners(n, edge, overlap) for n, edge in zip(size, edges, strict=True)]
    whole = [c[-1] + edge for c, edge in zip(corners, edges, strict=True)]
    padded = np.pad(
        image,
        [*((0, w - n) for w, n in zip(whole, size, strict=True)), (0, 0)],
        mode="reflect",
    )
    fade = _fade(edges[0], overlap)[:, None, None] * _fade(edges[1], overlap)[None, :, None]
    total, weight, done = 0.0, np.zeros((*whole, 1), np.float32), 0
    with progress("tiles", len(corners[0]) * len(corners[1])) as show:
        for y in corners[0]:
            for x in corners[1]:
                here = slice(y, y + edges[0]), slice(x, x + edges[1])
                part = np.asarray(function(weights, jnp.asarray(padded[here])))
                if done == 0:
                    total = np.zeros((*whole, part.shape[-1]), part.dtype)
                total[here] += fade * part
                weight[here] += fade
                show(done := done + 1)
    return (total / weight)[: size[0], : size[1]]


def _corners(length: int, edge: int, overlap: int) -> list[int]:
    """Where tiles begin, the last one where no pixel is left."""
    if length <= edge:
        return [0]
    count = -(-(length - overlap) // (edge - overlap))
    return [i * (edge - overlap) for i in range(count)]


def _fade(edge: int, overlap: int) -> Float[np.ndarray, "edge"]:
    """Up from an end over the overlap; two neighbours add up to one."""
    inside = np.minimum(np.arange(edge), np.arange(edge)[::-1]) + 0.5
    return np.minimum(1.0, inside / max(overlap, 0.5)).astype(np.float32)
