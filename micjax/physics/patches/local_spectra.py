"""Spectra of overlapping patches of an image, at spatial frequencies that one chooses.

    F_p(k) = sum_r w(r) m(p + r) [I(p + r) - I_p] exp(-2 pi i k r) / W_p
    W_p = sum_r w(r) m(p + r),    I_p = sum_r w(r) m(p + r) I(p + r) / W_p

with a window w that is a product of one along y and one along x, and m = 0 where nothing was
measured. A wave A cos(2 pi k r + phi) has |F| = A / 2 whatever the window. The transform is two
products of real matrices, the first of which neighbouring patches share; the mean of a patch, which
says nothing of its lattice, is taken off exactly.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jaxtyping import Array, Bool, Float, Real

from micjax.physics.patches.windows import Window

COLUMNS = 128  # of a strip that are in one compiled program


class Spectra(NamedTuple):
    """What the patches of an image say; the first two axes are those of the patches."""

    power: Float[Array, "ny nx ky kx"]  # |F|^2, in squared units of the image
    noise: Float[Array, "ny nx"]  # its mean where the image is noise of variance 1
    mean: Float[Array, "ny nx"]  # I_p
    filled: Float[Array, "ny nx"]  # the part of the window in which something was measured


class LocalSpectra(eqx.Module):
    """image -> `Spectra` at ky = -k_max .. k_max and kx = 0 .. k_max, evenly spaced.

    The other half is the same: an image is real.

    **Arguments:**

    - `size`, `step`: edge of a patch, and distance of neighbouring ones, in pixels.
    - `sampling_A`: edge of a pixel.
    - `k_max_perA`: the highest frequency; half a cycle a pixel if that is lower.
    - `oversampling`: frequencies for each that a patch of this size resolves.
    """

    window: Window
    size: int = eqx.field(static=True)
    step: int = eqx.field(static=True)
    sampling_A: float = eqx.field(static=True)
    k_max_perA: float = eqx.field(static=True)
    oversampling: int = eqx.field(static=True, default=2)

    def __check_init__(self):
        if self.size < 4 or self.step < 1 or self.oversampling < 1:
            raise ValueError(
                f"a patch has 4 pixels or more along an edge, its step and its oversampling are 1 "
                f"or more; here {self.size}, {self.step}, {self.oversampling}"
            )
        if not (self.sampling_A > 0.0 and self.k_max_perA > 0.0):
            raise ValueError(
                "sampling_A and k_max_perA are above 0, here "
                f"{self.sampling_A:g} and {self.k_max_perA:g}"
            )

    @property
    def spacing_perA(self) -> float:
        """Between neighbouring frequencies."""
        return 1.0 / (self.size * self.oversampling * self.sampling_A)

    @property
    def cycles(self) -> tuple[np.ndarray, np.ndarray]:
        """ky and kx in cycles a pixel."""
        most = min(self.k_max_perA * self.sampling_A, 0.5) * self.size * self.oversampling
        kx = np.arange(1 + int(np.floor(most * (1.0 + 1e-9)))) / (self.size * self.oversampling)
        return np.concatenate([-kx[:0:-1], kx]), kx

    @property
    def frequencies_perA(self) -> tuple[np.ndarray, np.ndarray]:
        ky, kx = self.cycles
        return ky / self.sampling_A, kx / self.sampling_A

    def corners(self, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """First row and first column of the patches of an image.

        **Raises:** `ValueError` for no image, and where not even one patch fits.
        """
        if len(shape) != 2:
            raise ValueError(f"an image has two axes, (y, x); here {len(shape)}")
        if self.size > min(shape):
            raise ValueError(
                f"a patch of {self.size} pixels does not fit into an image of "
                f"{shape[0]} x {shape[1]}"
            )
        y, x = (np.arange(0, n - self.size + 1, self.step) for n in shape)
        return y, x

    def centres(self, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Where the middles of the patches lie, in pixels (0 is the middle of the first one)."""
        y, x = self.corners(shape)
        return y + 0.5 * (self.size - 1), x + 0.5 * (self.size - 1)

    def weights(self) -> Float[Array, "size"]:
        """The window along an axis, at the middles of the pixels of a patch."""
        return self.window((jnp.arange(self.size) + 0.5) * 2.0 / self.size - 1.0)

    def __call__(
        self, image: Real[Array, "h w"], measured: Real[Array, "h w"] | None = None
    ) -> Spectra:
        """Of an image; `measured` is 0 in its holes, whose values are not looked at."""
        weights = self.weights()
        # counts of a camera are whole numbers, a window is not
        image = image.astype(jnp.result_type(float, image.dtype))
        if measured is None:
            level = jnp.mean(image)
            fields = (image - level)[None]
        else:
            measured = measured.astype(image.dtype)
            level = jnp.sum(jnp.where(measured > 0, image, 0.0) * measured)
            level = level / jnp.maximum(jnp.sum(measured), 1.0)
            held = jnp.where(measured > 0, image - level, 0.0) * measured
            fields = jnp.stack([held, measured])
        return _spectra(self, fields, weights.astype(image.dtype), level)


def _spectra(local: LocalSpectra, fields, weights, level) -> Spectra:
    """`fields`: the image off `level`, and what was measured, unless that is all of it."""
    size, (ky, kx) = local.size, local.cycles
    corners = local.corners(fields.shape[1:])
    along = np.arange(size) - 0.5 * (size - 1)
    across, down = (_waves(along, k) * weights for k in (kx, ky))
    columns = corners[1][:, None] + np.arange(size)
    # of each line of the image, and of each patch along it
    lines = jnp.einsum("fhxs,ks->hfxk", fields[:, :, columns], across)
    masked = len(fields) == 2
    if masked:
        squared = jnp.einsum("hxs,s->hx", fields[1][:, columns] ** 2, weights**2)
    else:
        whole = _product((down.sum(1)[:, None] * across.sum(1))[None], len(ky), len(kx))

    def row(first):
        both = jnp.einsum("ks,sfxl->fxkl", down, jax.lax.dynamic_slice_in_dim(lines, first, size))
        real, imaginary = _product(both, len(ky), len(kx))
        of_one = (real[1], imaginary[1]) if masked else whole
        total = of_one[0][:, len(ky) // 2, 0]  # at frequency 0
        safe = jnp.where(total > 0.0, total, 1.0)
        mean = real[0][:, len(ky) // 2, 0] / safe
        re, im = (
            f[0] - mean[:, None, None] * constant
            for f, constant in zip((real, imaginary), of_one, strict=True)
        )
        if masked:
            noise = weights**2 @ jax.lax.dynamic_slice_in_dim(squared, first, size)
        else:
            noise = jnp.broadcast_to(jnp.sum(weights**2) ** 2, mean.shape)
        return Spectra(
            (re**2 + im**2) / safe[:, None, None] ** 2,
            noise / safe**2,
            mean + level,
            jnp.broadcast_to(total / jnp.sum(weights) ** 2, mean.shape),
        )

    return jax.lax.map(row, jnp.asarray(corners[0]))


def _waves(along, cycles) -> np.ndarray:
    """Real and imaginary parts of exp(-2 pi i k r), one below the other."""
    phase = -2.0 * np.pi * np.outer(cycles, along)
    return np.concatenate([np.cos(phase), np.sin(phase)])


def _product(both: Float[Array, "*n k l"], ky: int, kx: int) -> tuple[Array, Array]:
    """Real and imaginary part of a product of waves along y and along x."""
    ac, ad = both[..., :ky, :kx], both[..., :ky, kx:]
    bc, bd = both[..., ky:, :kx], both[..., ky:, kx:]
    return ac - bd, ad + bc


def noise_variance(spectra: Spectra, share: float = 0.1) -> Float[Array, "ny nx"]:
    """The variance of a pixel's noise in each patch, from its highest frequencies.

    They hold no reflections where `k_max_perA` lies beyond them. The power of noise is
    exponentially distributed, so that its median is log(2) of its mean, and reflections that stand
    out change it little. `share`: of the frequencies along an axis, the outer ones.
    """
    most = spectra.power.shape[-1]
    rim = max(1, round(share * most))
    outer = spectra.power[:, :, :, most - rim :].reshape(*spectra.noise.shape, -1)
    return jnp.median(outer, axis=-1) / (np.log(2.0) * spectra.noise)


def window_means(
    values: Real[np.ndarray, "h w"] | Bool[np.ndarray, "h w"],
    measured: Real[np.ndarray, "h w"] | Bool[np.ndarray, "h w"],
    local: LocalSpectra,
) -> Float[np.ndarray, "ny nx"]:
    """Means over the window of each patch, NaN where nothing of it was measured."""
    total = _window_sums(measured, local)
    held = _window_sums(np.asarray(values, np.float64) * measured, local)
    return held / np.where(total > 0.0, total, np.nan)


def _window_sums(values, local: LocalSpectra) -> np.ndarray:
    """Of the values times the window."""
    along = np.asarray(local.weights(), np.float64)
    down, across = (
        _placed(along, starts, n)
        for starts, n in zip(local.corners(values.shape), values.shape, strict=True)
    )
    return (across @ (down @ np.asarray(values, np.float64)).T).T


def _placed(window, starts, n: int) -> scipy.sparse.csr_array:
    """A row for each start, with the window there."""
    columns = np.asarray(starts)[:, None] + np.arange(len(window))
    ends = len(window) * np.arange(len(starts) + 1)
    return scipy.sparse.csr_array(
        (np.tile(window, len(starts)), columns.ravel(), ends), shape=(len(starts), n)
    )


def strips(
    local: LocalSpectra,
    image: np.ndarray,
    measured: np.ndarray | None,
    rows: int,
    columns: int = COLUMNS,
) -> Iterator[tuple[tuple[slice, slice], Array, Array | None]]:
    """An image in strips of `rows` rows of patches, `columns` at a time, all of one shape.

    One compiled program serves all of them, and its memory is the same for images of any size.
    Yields where the patches are with their pixels. The last ones overlap those before, where the
    number of patches is no multiple.

    **Raises:** `ValueError` for pixels that are not finite and were said to be measured, and for a
    mask of another shape.
    """
    first = local.corners(image.shape)
    if measured is not None and np.shape(measured) != image.shape:
        raise ValueError(
            f"what was measured is of shape {np.shape(measured)}, the image of {image.shape}"
        )
    there = np.isfinite(image) if measured is None else np.isfinite(image) | (measured == 0)
    if not there.all():
        raise ValueError(
            f"{int(np.sum(~there))} of {image.size} pixels are not finite: `measured` is 0 in holes"
        )
    along = [_starts(len(f), most) for f, most in zip(first, (rows, columns), strict=True)]
    for y in along[0]:
        for x in along[1]:
            part = tuple(
                slice(f[i.start], f[i.stop - 1] + local.size)
                for f, i in zip(first, (y, x), strict=True)
            )
            known = None if measured is None else jnp.asarray(measured[part])
            yield (y, x), jnp.asarray(image[part]), known


def _starts(count: int, most: int) -> list[slice]:
    size = min(most, count)
    return [slice(i, i + size) for i in (*range(0, count - size, size), count - size)]


@eqx.filter_jit
def _reduced(reduce, local: LocalSpectra, image, measured):
    return reduce(local(image, measured))


def power_of(spectra: Spectra) -> Float[Array, "ny nx ky kx"]:
    """For `over_strips`, which compiles each function once."""
    return spectra.power


def over_strips(
    local: LocalSpectra,
    image: np.ndarray,
    measured: np.ndarray | None,
    reduce: Callable[[Spectra], Array],
    rows: int = 8,
) -> np.ndarray:
    """`reduce(spectra)` of all patches, while only the spectra of a strip are in memory."""
    grid = tuple(map(len, local.corners(image.shape)))
    every: np.ndarray | None = None
    for at, part, known in strips(local, image, measured, rows):
        values = np.asarray(_reduced(reduce, local, part, known))
        every = np.empty((*grid, *values.shape[2:]), values.dtype) if every is None else every
        every[at] = values
    return every
