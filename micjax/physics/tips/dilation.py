"""Contact imaging with a tip: grey dilation, its adjoint, what a scan certifies, and soft variants.

The image is the surface dilated by the tip (Villarrubia 1997, J. Res. NIST 102, 425, eq. 2),

    I(x) = max_u [ S(x + u) + T(u) ],      T(u) = -(height of the tip surface above its apex) <= 0,

"the tip drawn apex up", with the lateral origin at the centre pixel, n // 2, of an odd n x m array.
The best surface estimate is the erosion by the same tip, its exact adjoint (eq. 9):

    E(y) = min_u [ I(y - u) - T(u) ],      D(S) <= I  <=>  S <= E(I).

All lengths are nm. NaN is not propagated: `where(w > o, w, o)` is twice as fast as `maximum`, so
images are checked for NaN once, where they are read.
"""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

Image = Float[Array, "ny nx"]
Kernel = Float[Array, "ky kx"]  # heights of a tip, odd sizes
Edge = Literal["open", "replicate"]  # outside the scan: nothing is known | the border pixel goes on

# XLA for CPU keeps the accumulator in registers over 16 or more unrolled columns; fewer are five
# times slower, and under vmap they do not even compile (jaxlib 0.10.1)
_BLOCK = 16


def _check_sizes(shape: tuple[int, ...], tip_shape: tuple[int, ...]) -> None:
    if tip_shape[0] % 2 == 0 or tip_shape[1] % 2 == 0:
        raise ValueError(
            f"tip of {tip_shape[0]} x {tip_shape[1]} pixels: sizes must be odd, "
            "so that the centre is a pixel and erosion is the adjoint of dilation"
        )
    if tip_shape[0] > shape[0] or tip_shape[1] > shape[1]:
        raise ValueError(f"tip of {tip_shape} pixels is larger than the image of {shape}")


def _padded(surface: Image, tip_shape: tuple[int, ...], edge: Edge, fill: float) -> Array:
    width = [(n // 2, n // 2) for n in tip_shape]
    if edge == "replicate":
        return jnp.pad(surface, width, mode="edge")
    if edge == "open":
        return jnp.pad(surface, width, constant_values=fill)
    raise ValueError(f"edge {edge!r}: allowed are 'open' and 'replicate'")


def _widened(padded: Array, tip: Kernel) -> tuple[Array, Array]:
    """Both with columns added that touch nothing, if the tip has less than a block of them."""
    missing = ((0, 0), (0, max(0, _BLOCK - tip.shape[1])))
    return jnp.pad(padded, missing), jnp.pad(tip, missing, constant_values=-jnp.inf)


def _over_offsets(body, carry, padded: Array, tip: Kernel, width: int):
    """Fold `body(carry, shifted surface, tip height, flat offset index)` over all tip pixels.

    Only the row offset is dynamic; column offsets are static slices, hence contiguous loads.
    """
    ky, kx = tip.shape
    ny = padded.shape[0] - ky + 1
    padded, tip = _widened(padded, tip)
    blocks = tip.shape[1] // _BLOCK  # of _BLOCK to 2 _BLOCK - 1 columns
    for n in range(blocks):
        columns = range(n * tip.shape[1] // blocks, (n + 1) * tip.shape[1] // blocks)

        def row(carry, x, columns=columns):
            i, heights = x
            rows = lax.dynamic_slice_in_dim(padded, i, ny)
            for j in columns:
                carry = body(carry, rows[:, j : j + width], heights[j], i * kx + j)
            return carry, None

        carry, _ = lax.scan(row, carry, (jnp.arange(ky, dtype=jnp.int32), tip))
    return carry


def _maximum(padded: Array, tip: Kernel, width: int) -> Array:
    def body(best, shifted, height, _):
        w = shifted + height
        return jnp.where(w > best, w, best)

    start = jnp.full((padded.shape[0] - tip.shape[0] + 1, width), -jnp.inf, padded.dtype)
    return _over_offsets(body, start, padded, tip, width)


def _argmax(padded: Array, tip: Kernel, width: int) -> tuple[Array, Int[Array, "ny nx"]]:
    def body(carry, shifted, height, k):
        best, where = carry
        w = shifted + height
        better = w > best
        return jnp.where(better, w, best), jnp.where(better, k, where)

    shape = (padded.shape[0] - tip.shape[0] + 1, width)
    start = jnp.full(shape, -jnp.inf, padded.dtype), jnp.zeros(shape, jnp.int32)
    return _over_offsets(body, start, padded, tip, width)


def _touched(contact: Int[Array, "ny nx"], tip_width: int, padded_width: int) -> Array:
    """Flat index into the padded surface of the point touched from each image pixel."""
    y = lax.broadcasted_iota(jnp.int32, contact.shape, 0)
    x = lax.broadcasted_iota(jnp.int32, contact.shape, 1)
    return (y + contact // tip_width) * padded_width + x + contact % tip_width


# The derivative of a maximum is the derivative of its winner, so the tangent is a gather at the
# argmax: linear, hence transposable (the gradient is a scatter-add) and differentiable again.
@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _dilate(padded: Array, tip: Kernel, width: int) -> Array:
    return _maximum(padded, tip, width)


@_dilate.defjvp
def _dilate_jvp(width, primals, tangents):
    padded, tip = primals
    image, contact = _argmax(padded, tip, width)
    touched = _touched(contact, tip.shape[1], padded.shape[1])
    d_padded, d_tip = tangents
    return image, d_padded.reshape(-1)[touched] + d_tip.reshape(-1)[contact]


def dilate(surface: Image, tip: Kernel, edge: Edge = "open") -> Image:
    """The image of `surface` taken with `tip`: max_u S(x + u) + T(u).

    **Arguments:**

    - `surface`: heights (nm), `[iy, ix]`.
    - `tip`: T(u) (nm), odd sizes, centre pixel = lateral origin.
    - `edge`: `"open"`: nothing outside the scan is touched (-inf). `"replicate"` continues the
        border pixels, which invents contacts; it is there to agree with Gwyddion and SciPy.

    **Returns:** the image (nm), of the surface's shape. Differentiable, forward and reverse, in
    both arguments; where several points touch at once, the first in row order takes the
    derivative, an element of the Clarke subdifferential.

    **Raises:** `ValueError` for a tip of even size or larger than the surface.
    """
    _check_sizes(surface.shape, tip.shape)
    dtype = jnp.result_type(surface, tip)
    padded = _padded(surface.astype(dtype), tip.shape, edge, -jnp.inf)
    return _dilate(padded, tip.astype(dtype), surface.shape[1])


def erode(image: Image, tip: Kernel, edge: Edge = "open") -> Image:
    """The highest surface that `tip` could have imaged as `image`: min_u I(y - u) - T(u).

    Without noise an upper bound of the true surface, equal to it where the tip touched. The exact
    adjoint of `dilate`; arguments as there.
    """
    return -dilate(-image, tip[::-1, ::-1], edge)


def opening(image: Image, tip: Kernel, edge: Edge = "open") -> Image:
    """dilate(erode(image)): `image` itself if `tip` can have taken it, below it elsewhere."""
    return dilate(erode(image, tip, edge), tip, edge)


def contacts(
    image: Image, surface: Image, tip: Kernel, tolerance_nm: Float[Array, "..."] | float
) -> tuple[Int[Array, "ny nx"], Int[Array, "ny nx"]]:
    """How many surface points `tip` touches at each image pixel, and which tip pixel is the last.

    **Arguments:**

    - `image`, `surface`, `tip`: I, S, T (nm) with I = dilate(S, T) up to rounding or noise.
    - `tolerance_nm`: u touches where S(x + u) + T(u) >= I(x) - tolerance.

    **Returns:** `(multiplicity, contact)`; `contact` is the flat index i * kx + j of a touching tip
    pixel (the only one where the multiplicity is 1).
    """
    _check_sizes(image.shape, tip.shape)

    def body(carry, shifted, height, k):
        count, where = carry
        touches = shifted + height >= image - tolerance_nm
        return count + touches, jnp.where(touches, k, where)

    padded = _padded(surface, tip.shape, "open", -jnp.inf)
    start = jnp.zeros(image.shape, jnp.int32), jnp.zeros(image.shape, jnp.int32)
    return _over_offsets(body, start, padded, tip, image.shape[1])


def certain(
    image: Image, tip: Kernel, tolerance_nm: Float[Array, "..."] | float | None = None
) -> tuple[Bool[Array, "ny nx"], Int[Array, "ny nx"]]:
    """Which points of `erode(image, tip)` are measured, and the contact multiplicity of the image.

    Where the tip touches the reconstruction at one point only, that point is the surface
    (Villarrubia 1997, sec. 6). Image pixels within half a tip of the border prove nothing: the
    contact may lie outside the scan. Exact in floating point: Gwyddion's integer heights call
    wrong points certain.

    **Arguments:**

    - `tolerance_nm`: heights nearer than this count as touching, so that a larger tolerance
        certifies less: rounding by default; a few sigma for a noisy image.

    **Returns:** `(mask of certain surface points, multiplicity of each image pixel)`.
    """
    ky, kx = tip.shape
    ny, nx = image.shape
    surface = erode(image, tip)
    if tolerance_nm is None:
        # not the depth of the tip: "no tip here" (-1e9) would make every height touch
        known = jnp.where(jnp.isfinite(surface), surface, 0.0)
        scale = jnp.maximum(jnp.max(jnp.abs(image)), jnp.max(jnp.abs(known)))
        tolerance_nm = 32 * jnp.finfo(image.dtype).eps * scale
    multiplicity, contact = contacts(image, surface, tip, tolerance_nm)
    y = lax.broadcasted_iota(jnp.int32, image.shape, 0)
    x = lax.broadcasted_iota(jnp.int32, image.shape, 1)
    inside = (y >= ky // 2) & (y < ny - ky // 2) & (x >= kx // 2) & (x < nx - kx // 2)
    proves = inside & (multiplicity == 1)
    touched_y = jnp.clip(y + contact // kx - ky // 2, 0, ny - 1)
    touched_x = jnp.clip(x + contact % kx - kx // 2, 0, nx - 1)
    return jnp.zeros(image.shape, bool).at[touched_y, touched_x].max(proves), multiplicity


def contact_pixel(image: Image, tip: Kernel) -> Int[Array, "ny nx"]:
    """Flat index i * kx + j of the tip pixel that touches `erode(image, tip)` at each image pixel
    (the first one where several do)."""
    surface = _padded(erode(image, tip), tip.shape, "open", -jnp.inf)
    return _argmax(surface, tip, image.shape[1])[1]


def touching_tip_pixels(image: Image, tip: Kernel) -> Bool[Array, "ky kx"]:
    """Tip pixels that touch `erode(image, tip)` somewhere; the others are not determined by it."""
    contact = contact_pixel(image, tip)
    return jnp.zeros(tip.size, bool).at[contact.reshape(-1)].set(True).reshape(tip.shape)


# --- soft variants: every tip pixel has a gradient ------------------------------------------------


@jax.custom_jvp
def _soft_dilate(padded: Array, tip: Kernel, tau: Array) -> Array:
    return _soft_parts(padded, tip, tau)[0]


def _exponential(height: Array, image: Array, tau: Array) -> tuple[Array, Array]:
    """a = (height - image) / tau and exp(a); 0 and 0 at -inf, which would make derivatives NaN."""
    there = height > -jnp.inf
    a = jnp.where(there, height - image, 0.0) / tau
    return a, jnp.where(there, jnp.exp(a), 0.0)


def _soft_parts(padded: Array, tip: Kernel, tau: Array) -> tuple[Array, Array]:
    """tau log sum_u exp((S + T) / tau) in two passes (no overflow), and its derivative in tau."""
    width = padded.shape[1] - tip.shape[1] + 1
    hard = _maximum(padded, tip, width)

    def body(carry, shifted, height, _):
        total, entropy = carry
        a, w = _exponential(shifted + height, hard, tau)
        return total + w, entropy + w * a

    zeros = jnp.zeros_like(hard)
    total, weighted = _over_offsets(body, (zeros, zeros), padded, tip, width)
    return hard + tau * jnp.log(total), jnp.log(total) - weighted / total


@_soft_dilate.defjvp
def _soft_dilate_jvp(primals, tangents):
    padded, tip, tau = primals
    d_padded, d_tip, d_tau = tangents
    width = padded.shape[1] - tip.shape[1] + 1
    image, d_image_d_tau = _soft_parts(padded, tip, tau)

    # the weights are computed anew in the transposed pass; storing them would take ky * kx images
    @jax.checkpoint
    def row(d_image, x):
        i, heights, d_heights = x
        rows, d_rows = (lax.dynamic_slice_in_dim(a, i, image.shape[0]) for a in (padded, d_padded))
        for j in range(tip.shape[1]):
            _, w = _exponential(rows[:, j : j + width] + heights[j], image, tau)
            d_image = d_image + w * (d_rows[:, j : j + width] + d_heights[j])
        return d_image, None

    offsets = jnp.arange(tip.shape[0], dtype=jnp.int32)
    d_image, _ = lax.scan(row, jnp.zeros_like(image), (offsets, tip, d_tip))
    return image, d_image + d_image_d_tau * d_tau


def soft_dilate(
    surface: Image, tip: Kernel, temperature_nm: Float[Array, ""] | float, edge: Edge = "open"
) -> Image:
    """Log-sum-exp dilation tau log sum_u exp[(S(x + u) + T(u)) / tau], tau = `temperature_nm`.

    Above the exact dilation by at most `soft_bias_nm(tip, tau)`, and by tau ln(k) where k points
    touch, so it is for finding gradients (anneal tau to 0), not for comparing heights. It is the
    exact image of a tunnelling microscope whose tip atoms add their currents, with
    tau = 1 / (2 kappa), about 0.05 nm.
    """
    _check_sizes(surface.shape, tip.shape)
    dtype = jnp.result_type(surface, tip)
    padded = _padded(surface.astype(dtype), tip.shape, edge, -jnp.inf)
    padded, tip = _widened(padded, tip.astype(dtype))
    return _soft_dilate(padded, tip, jnp.asarray(temperature_nm, dtype))


def soft_erode(
    image: Image, tip: Kernel, temperature_nm: Float[Array, ""] | float, edge: Edge = "open"
) -> Image:
    """The soft minimum that belongs to `soft_dilate`; below `erode` by at most the same bias."""
    return -soft_dilate(-image, tip[::-1, ::-1], temperature_nm, edge)


def soft_bias_nm(tip: Kernel, temperature_nm: float) -> float:
    """Bound of 0 <= soft_dilate - dilate: tau ln(number of tip pixels)."""
    return temperature_nm * math.log(tip.size)
