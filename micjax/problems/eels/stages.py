"""How `micjax.problems.eels` is solved: all spectra at once."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from micjax.core.problem import InverseProblem
from micjax.inference.maps.stage import fit_each_pixel
from micjax.physics.spectra import guesses
from micjax.problems.eels.model import LEdge
from micjax.problems.eels.setting import Energies

MARGIN_EV = 5.0  # before an onset, which may lie lower than the table has it
NEAR_EV = 6.0  # of the L3 line, and of a step, to its place in the table
BEHIND_EV = 20.0  # where the fine structure ends, about


def stages(
    problem: InverseProblem,
    x: Energies,
    y: Any,
    *,
    steps: int = 200,
    neighbours: int = 1,
    smooth: Sequence[str] = (),
    shared: Mapping[str, str] | None = None,
) -> list:
    """All spectra at once, each until it has converged.

    **Arguments:**

    - `steps`: of Gauss-Newton, at most.
    - `neighbours`: how often each pixel begins again from its best neighbour.
    - `smooth`: unknowns of which neighbouring pixels are alike, as far as the data show it.
    - `shared`: unknowns that are the same for the `map`, each `row` or each `column`, by name.
    """
    return [
        fit_each_pixel(starts, steps=steps, neighbours=neighbours, smooth=smooth, shared=shared)
    ]


def starts(pixel: InverseProblem, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """The background from before the first edge, and each edge from what is above it; the places
    of white lines from their maxima."""
    background, edges = pixel.forward.background, pixel.forward.edges.parts
    x, y = np.asarray(x, float), np.asarray(y, float)
    onsets = {n: float(e.onset_eV) for n, e in edges.items()}
    window = (float(x[0]), min(onsets.values()) - MARGIN_EV)
    guess = guesses.power_law(x, y, window, float(background.reference))
    out = {f"forward.background.{n}": v for n, v in guess.items()}
    reference = float(background.reference)
    smooth = guess["level"][..., None] * (x / reference) ** -guess["exponent"][..., None]
    rest = np.nan_to_num(y - smooth)
    size = np.abs(np.nan_to_num(y)).max(axis=-1) + 1e-30
    for name in sorted(edges, key=onsets.__getitem__):
        edge, of = edges[name], f"forward.edges.{name}"
        sigma = np.asarray(edge.cross_section_barn_per_eV)
        after = sorted(o for o in onsets.values() if o > onsets[name])
        end = min(after[0] - MARGIN_EV if after else np.inf, onsets[name] + 100.0)
        behind = (x > onsets[name] + BEHIND_EV) & (x < end)
        behind = behind if behind.any() else x > onsets[name]
        near = np.abs(x - onsets[name]) < max(NEAR_EV, 1.5 * (x[1] - x[0]))
        if not isinstance(edge, LEdge):
            out[f"{of}.onset_eV"] = x[near][_step(rest, x, near, onsets[name] + BEHIND_EV)]
        amount = np.maximum(
            rest[..., behind].mean(-1) / sigma[behind].mean(), 1e-3 * size / sigma.max()
        )
        out[f"{of}.amount"] = amount
        rest = rest - amount[..., None] * sigma * (x >= onsets[name])
        if isinstance(edge, LEdge):
            line = rest[..., near]
            out[f"{of}.onset_eV"] = x[near][line.argmax(axis=-1)]
            out[f"{of}.height"] = np.maximum(1.5 * line.max(axis=-1), 1e-3 * size)
    return {n: v for n, v in out.items() if n in pixel.priors}


def _step(rest: np.ndarray, x: np.ndarray, near: np.ndarray, end: float) -> np.ndarray:
    """At which of the channels `near` a step up lies: where least is left of all, if that is zero
    before the step and constant from there to `end`."""
    until = np.where(x < end, rest, 0.0)
    sums = np.cumsum(until[..., ::-1], axis=-1)[..., ::-1][..., near]
    channels = np.cumsum((x < end)[::-1])[::-1][near]
    return (np.maximum(sums, 0.0) ** 2 / channels).argmax(axis=-1)
