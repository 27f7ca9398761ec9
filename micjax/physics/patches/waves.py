"""A grain as a sum of waves: measured in the patches that it fills, carried on around them.

    I(r) = I_0(r) + 2 Re sum_j C_j(r) exp(2 pi i k_j r)

Only patches that show the grain alone are looked at, and the work for each pixel is that of the two
by two patches around it: within a step of the patches, where the amplitudes change linearly, the
waves of all reflections are one matrix product.
"""

from typing import NamedTuple

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Complex, Float, Int

AT_ONCE = 500  # patches in memory


class Waves(NamedTuple):
    """Amplitudes at the middles of patches; the first one, of k = 0, is half of the level."""

    cycles: Float[np.ndarray, "j 2"]  # (ky, kx) in cycles a pixel
    amplitude: Complex[np.ndarray, "j ny nx"]  # phases are those at the first pixel of the image
    near: Bool[np.ndarray, "ny nx"]  # whether a patch that was measured is near


def cut(
    image: Float[np.ndarray, "h w"], corners: Int[np.ndarray, "n 2"], size: int
) -> Float[np.ndarray, "n size size"]:
    """The patches that begin there."""
    windows = np.lib.stride_tricks.sliding_window_view(image, (size, size))
    return windows[corners[:, 0], corners[:, 1]]


def amplitudes(
    image: Float[np.ndarray, "h w"],
    corners: Int[np.ndarray, "n 2"],
    cycles: Float[np.ndarray, "j 2"],
    window: Float[np.ndarray, "size"],
) -> tuple[Float[np.ndarray, "n"], Complex[np.ndarray, "n j"]]:
    """I_0 and C_j of each patch."""
    along = np.arange(len(window))
    with_mean = np.concatenate([np.zeros((1, 2)), cycles])
    down, across = (
        np.exp(-2j * np.pi * np.outer(k, along)) * window / window.sum() for k in with_mean.T
    )
    parts = np.concatenate([across.real, across.imag]).T.astype(image.dtype)
    columns = down.T.astype(np.result_type(image.dtype, np.complex64))
    values = np.empty((len(corners), len(with_mean)), complex)
    for start in range(0, len(corners), AT_ONCE):
        of = slice(start, start + AT_ONCE)
        lines = cut(image, corners[of], len(window)) @ parts
        real, imaginary = np.split(lines, 2, axis=-1)
        values[of] = np.sum((real + 1j * imaginary) * columns, axis=1)
    mean = values[:, 0].real
    # of a constant, which is taken off with the mean
    leak = down.sum(axis=1) * across.sum(axis=1)
    turn = np.exp(-2j * np.pi * corners @ cycles.T)
    return mean, (values[:, 1:] - np.outer(mean, leak[1:])) * turn


def of_grain(
    image: Float[np.ndarray, "h w"],
    starts: list[Int[np.ndarray, "_"]],
    cycles: Float[np.ndarray, "j 2"],
    window: Float[np.ndarray, "size"],
    trust: Float[np.ndarray, "ny nx"],
    spread: float,
) -> Waves:
    """Measured in the patches that begin at `starts` (rows and columns), as far as each is trusted.

    `spread`: standard deviation of the mean over neighbouring patches, in steps.
    """
    places = np.argwhere(trust > 0.0)
    corners = np.stack([s[i] for s, i in zip(starts, places.T, strict=True)], axis=1)
    mean, of_waves = amplitudes(image, corners, cycles, window)
    values = np.zeros((1 + len(cycles), *trust.shape), complex)
    values[:, *places.T] = np.concatenate([0.5 * mean[:, None], of_waves], axis=1).T

    def smooth(v):
        return scipy.ndimage.gaussian_filter(v, spread, mode="constant", axes=(-2, -1), truncate=6)

    total = smooth(trust)
    least = np.finfo(np.float64).tiny
    smoothed = smooth(values.real * trust) + 1j * smooth(values.imag * trust)
    with_level = np.concatenate([np.zeros((1, 2)), cycles])
    return Waves(with_level, smoothed / np.maximum(total, least), total > least)


def predicted(
    waves: Waves,
    centres: list[Float[np.ndarray, "_"]],
    step: int,
    shape: tuple[int, int],
    dtype: np.dtype,
) -> tuple[Float[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """The image, and where patches that were measured are near.

    Amplitudes are linear between the middles of the patches, `step` pixels apart, and constant
    beyond the last ones.
    """
    ky, kx = waves.cycles.T
    y, x = (np.arange(n) for n in shape)
    below, part = _between(y, centres[0], step)
    above = np.minimum(below + 1, len(centres[0]) - 1)
    real = np.dtype(dtype)
    whole = np.result_type(real, np.complex64)
    # (nx, h, j), real and imaginary parts in turns: a matrix for each column of patches
    columns = np.ascontiguousarray(waves.amplitude.transpose(2, 1, 0), whole)
    weight = part[:, None].astype(real)
    turn = np.exp(2j * np.pi * np.outer(y, ky)).astype(whole)
    lines = np.take(columns, below, axis=1) * ((1 - weight) * turn)
    lines += np.take(columns, above, axis=1) * (weight * turn)
    lines = lines.view(real)
    # blocks of `step` pixels that lie between the same two columns
    origin = int(np.ceil(centres[1][0]))
    begin = origin % step - step * (origin % step > 0)
    blocks = -(-(shape[1] - begin) // step)
    pixels = begin + np.arange(blocks * step).reshape(blocks, step)
    left, part = _between(pixels, centres[1], step)
    left = left[:, 0]
    right = np.minimum(left + 1, len(centres[1]) - 1)
    turn = 2.0 * np.exp(2j * np.pi * kx[:, None] * pixels[:, None])  # (blocks, j, step)
    image = sum(
        np.matmul(lines[of], _in_turns(share[:, None] * turn).astype(real))
        for of, share in ((left, 1.0 - part), (right, part))
    )
    image = image.transpose(1, 0, 2).reshape(shape[0], -1)[:, -begin : shape[1] - begin]
    down, across = (
        _interpolation(pixels, c, step) for pixels, c in zip((y, x), centres, strict=True)
    )
    return image, down @ waves.near.astype(np.float32) @ across.T > 0.5


def _in_turns(waves: Complex[np.ndarray, "b j s"]) -> Float[np.ndarray, "b j2 s"]:
    """Rows that make the real part of a product of rows of real and imaginary parts in turns."""
    rows = np.stack([waves.real, -waves.imag], axis=2)
    return rows.reshape(len(waves), -1, waves.shape[-1])


def _between(pixels, centres, step: int):
    """The centre below each pixel, and how far the pixel is from it to the next, 0 to 1."""
    at = np.clip((pixels - centres[0]) / step, 0.0, len(centres) - 1.0)
    below = np.minimum(np.floor(at).astype(int), max(len(centres) - 2, 0))
    return below, at - below


def _interpolation(pixels, centres, step: int) -> Float[np.ndarray, "n c"]:
    below, part = _between(pixels, centres, step)
    matrix = np.zeros((len(pixels), len(centres)), np.float32)
    rows = np.arange(len(pixels))
    matrix[rows, below] = 1.0 - part
    matrix[rows, np.minimum(below + 1, len(centres) - 1)] += part
    return matrix
