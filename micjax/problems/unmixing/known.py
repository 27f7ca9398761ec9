"""Spectra of end members that are known, on the channels of a spectrum image."""

import os

import numpy as np
from jaxtyping import Float

from micjax.io import Field, FieldAxis, channels, read
from micjax.io.fields import PIXELS


def known_spectra(file: str | os.PathLike, axis: FieldAxis) -> Float[np.ndarray, "m f"]:
    """One spectrum [channel] or several [k, channel], each to add up to one on `axis`.

    Spectra of another step are shared out among the channels, so that nothing is lost. A file that
    does not say where its channels are has to have as many as the spectrum image. Of several arrays
    in a file the one with the name `spectrum` is taken: the result of a run can be used again.

    **Raises:** `ValueError` for other shapes and units, values that are not finite or below zero, a
    spectrum of zeros, two that are the same, and an axis that does not reach over all channels.
    """
    field = read(file, "spectrum" if "spectrum" in channels(file) else None)
    spectra, own = _checked(field, file), field.axes[-1]
    placed = _rebinned(spectra, np.asarray(own.values, float), axis, own.unit, file)
    total = placed.sum(axis=1)
    if (total <= 0.0).any():
        raise ValueError(f"{file}: spectrum {int(np.argmin(total))} has nothing in these channels")
    placed = placed / total[:, None]
    if np.linalg.matrix_rank(placed, 1e-6 * np.linalg.norm(placed, 2)) < len(placed):
        raise ValueError(f"{file}: of {len(placed)} known spectra some are the same or mixtures")
    return placed


def _checked(field: Field, file) -> Float[np.ndarray, "m f"]:
    data = np.atleast_2d(field.data)
    if data.dtype.kind == "c" or data.ndim != 2 or data.shape[1] < 2:
        raise ValueError(
            f"{file}: {field.data.dtype} of shape {field.data.shape}; known spectra are [channel] "
            "or [k, channel]"
        )
    data = data.astype(float)
    if bad := int(np.sum(~np.isfinite(data))):
        raise ValueError(f"{file}: {bad} values of the known spectra are not finite")
    if (data < 0.0).any():
        raise ValueError(
            f"{file}: values of the known spectra down to {data.min():.4g}; none may be below zero"
        )
    return data


def _rebinned(spectra, values, axis: FieldAxis, unit: str, file) -> Float[np.ndarray, "m f"]:
    """What falls into each channel of `axis`."""
    to = np.asarray(axis.values, float)
    if unit != axis.unit:
        if unit in ("", PIXELS) and spectra.shape[1] == len(to):
            return spectra
        raise ValueError(
            f"{file}: {spectra.shape[1]} channels in {unit or 'no unit'}; the spectrum image has "
            f"{len(to)} in {axis.unit or 'no unit'}"
        )
    order = np.argsort(values)
    values, spectra = values[order], spectra[:, order]
    edges, wanted = _edges(values), _edges(to)
    slack = 0.5 * (wanted[1] - wanted[0])
    if edges[0] > wanted[0] + slack or edges[-1] < wanted[-1] - slack:
        raise ValueError(
            f"{file}: from {values[0]:.6g} to {values[-1]:.6g} {unit}, which does not reach over "
            f"the channels from {to[0]:.6g} to {to[-1]:.6g} {axis.unit}"
        )
    below = np.pad(np.cumsum(spectra, axis=1), ((0, 0), (1, 0)))
    return np.diff([np.interp(wanted, edges, part) for part in below], axis=1)


def _edges(centres) -> np.ndarray:
    """Of channels, half way between their centres."""
    middle = 0.5 * (centres[1:] + centres[:-1])
    return np.concatenate(
        [[1.5 * centres[0] - 0.5 * centres[1]], middle, [1.5 * centres[-1] - 0.5 * centres[-2]]]
    )
