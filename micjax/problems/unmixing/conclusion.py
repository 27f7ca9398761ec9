"""What is told of an unmixing: maps and spectra with errors, how many, and how sure they are."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int

from micjax.inference.solution import Solution
from micjax.io import Field, FieldAxis
from micjax.io.fields import PIXELS
from micjax.physics.patches.unmixing.corners import SEEN
from micjax.physics.patches.unmixing.laws import HeldOut
from micjax.problems.unmixing.model import MixedSpectra
from micjax.problems.unmixing.stages import law_of

VAGUE = np.deg2rad(10.0)  # of a spectrum to the true one


def conclude(solution: Solution, x: Int[Array, "n"], y: Float[Array, "n f"]) -> Solution:
    """With the maps, spectra, numbers and sentences of the end members."""
    forward, arrays = solution.problem.forward, solution.fit.arrays
    if "abundance" not in arrays:
        return solution  # interrupted before
    count, pixel = int(arrays["components"]), np.asarray(x)
    w = np.asarray(forward.abundance, float)[pixel, :count]
    h = np.asarray(forward.spectrum, float)[:count]
    law = law_of(solution.problem, x, y)
    axes = _grid_axes(forward)
    members = FieldAxis("component", np.arange(count), "")
    signal = FieldAxis(forward.signal_name, forward.signal, forward.signal_unit)
    surprise = law.surprise(w, h)[:, None]
    results = {
        "abundance": Field(
            _mapped(w, pixel, forward),
            (members, *axes),
            "",
            "abundance",
            {"errors": _mapped(arrays["abundance_sd"], pixel, forward)},
        ),
        "spectrum": Field(h, (members, signal), "", "spectrum", {"errors": arrays["spectrum_sd"]}),
        "surprise": Field(_mapped(surprise, pixel, forward)[0], axes, "", "surprise"),
    }
    total = w.sum(axis=0)
    tried = [HeldOut(int(t[0]), *map(float, t[1:])) for t in arrays.get("tried", ())]
    return dataclasses.replace(
        solution,
        results=results,
        metrics=dict(solution.metrics) | {"components": float(count)},
        table=[_row(k, total, h, forward, arrays) for k in range(count)],
        statements=[
            *_statements(count, tried, arrays, len(forward.known)),
            *solution.statements,
        ],
        extra={"tried": tried},
    )


def _grid_axes(forward: MixedSpectra) -> tuple[FieldAxis, ...]:
    step, unit = (1.0, PIXELS) if forward.pixel_nm is None else (forward.pixel_nm, "nm")
    return tuple(
        FieldAxis(n, step * np.arange(k), unit) for n, k in zip("yx", forward.grid, strict=True)
    )


def _mapped(values, pixel, forward: MixedSpectra) -> Float[np.ndarray, "k y x"]:
    """One map for each column, NaN where there are no data."""
    full = np.full((int(np.prod(forward.grid)), values.shape[1]), np.nan)
    full[pixel] = values
    return full.T.reshape(-1, *forward.grid)


def _row(k: int, total, h, forward: MixedSpectra, arrays) -> dict[str, Any]:
    highest = forward.signal[np.argsort(-h[k])[:1]]
    return {
        "component": k,
        "share of all (%)": 100.0 * float(total[k] / total.sum()),
        "error of an abundance (%)": 100.0
        * float(
            np.median(arrays["abundance_sd"][:, k])
            / max(total[k] / len(arrays["abundance_sd"]), 1e-30)
        ),
        f"strongest at ({forward.signal_unit or forward.signal_name})": float(highest[0]),
        "error of its direction (deg)": float(np.rad2deg(arrays["spectrum_angle_rad"][k])),
    }


def _statements(count: int, tried: list[HeldOut], arrays, known: int):
    if not tried:
        yield f"{count} end member{'s' * (count > 1)}, as was asked for."
    elif count == tried[-1].count:
        yield f"{count} end members were found, as many as were allowed: there may be more."
    else:
        more = next(t for t in tried if t.count == count + 1)
        yield (
            f"{count} end member{'s' * (count > 1)}: one more changes what they predict of data "
            f"that were held out by {more.gain:+.3g} nats (standard error {more.error:.2g})."
        )
    if known:
        names = ", ".join(map(str, range(known)))
        yield f"Known, and not changed: component{'s' * (known > 1)} {names}."
    angles = arrays["spectrum_angle_rad"]
    for k in np.flatnonzero(angles > VAGUE):
        yield (
            f"NOT IDENTIFIED: the spectrum of component {k} may be {np.rad2deg(angles[k]):.0f} deg "
            "away from the true one."
        )
    for k in np.flatnonzero(np.asarray(arrays["alone"]) <= SEEN):
        yield (
            f"No pixel shows component {k} alone for sure: how much of what surrounds it is in its "
            "spectrum is a guess between the purest pixels and the first channel below zero."
        )
