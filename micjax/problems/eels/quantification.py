"""How many atoms: areal density and composition from the amounts of edges."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Array

from micjax.core.problem import InverseProblem
from micjax.inference.maps.each import one_pixel
from micjax.io import Field
from micjax.problems.eels.model import CoreLoss
from micjax.problems.eels.setting import Energies
from micjax.problems.shared.map_conclusion import Quantity

BARN_PER_NM2 = 1e10
DENSITY, PERCENT = "areal_density", "atomic_percent"
# no solid is denser than diamond, with 176 atoms per nm^3; mean free paths are below 200 nm
MOST_PER_NM2 = 176.0 * 200.0  # of one mean free path
# of hydrogenic cross-sections themselves, one standard deviation (Egerton 2011, secs. 3.6.1 and
# 4.5: 10 % for K, 15 % for L edges)
CROSS_SECTION_ERRORS = {"K": 0.10, "L": 0.15}


def first_edges(names: Iterable[str]) -> dict[str, str]:
    """By element its first edge, `{"O": "O_K"}`: two edges of an element are one amount, twice."""
    out: dict[str, str] = {}
    for name in names:
        out.setdefault(name.partition("_")[0], name)
    return out


def atomic_percent(model: CoreLoss) -> dict[str, Array]:
    """Of each element with an edge, of all of these; nothing for a single one."""
    edges = first_edges(model.edges.parts)
    if len(edges) < 2:
        return {}
    amounts = {symbol: model.edges.parts[name].amount for symbol, name in edges.items()}
    total = sum(amounts.values())
    return {f"{symbol}.{PERCENT}": 100.0 * a / total for symbol, a in amounts.items()}


def areal_densities(
    problem: InverseProblem, x: Energies, every: Mapping[str, Quantity]
) -> dict[str, Quantity]:
    """Atoms per nm^2 of each edge, N = amount / (I0 step) (Egerton 2011, eq. 4.65): I0 is all of
    the low loss at a pixel in the exposure of its edges, step the width of a channel. Nothing
    without a low loss."""
    pixel, known = one_pixel(problem)
    cube = np.asarray(known.get("forward.low_loss", np.zeros((0,))), float)
    if not cube.size:
        return {}
    incident = float(pixel.forward.exposure_ratio) * cube.sum(axis=-1)
    per_amount = BARN_PER_NM2 / (incident * float(np.median(np.diff(np.asarray(x)))))
    out = {}
    for name in pixel.forward.edges.parts:
        amount = every[f"edges.{name}.amount"]
        out[f"{name}.{DENSITY}"] = Quantity(
            amount.value * per_amount, amount.sd * per_amount, "1/nm^2"
        )
    return out


def statements(edges: Sequence[str], every: Mapping[str, Quantity]) -> Iterator[str]:
    """What errors the cross-sections have, which are the same way in all pixels."""
    kinds = sorted({name.partition("_")[2] for name in edges})
    own = " and ".join(f"{100.0 * CROSS_SECTION_ERRORS[k]:.0f} % for {k} edges" for k in kinds)
    first = first_edges(edges)
    errors = {s: CROSS_SECTION_ERRORS[n.partition("_")[2]] for s, n in first.items()}
    shares_of = {s: every[f"{s}.{PERCENT}"].value for s in first if f"{s}.{PERCENT}" in every}
    told = ""
    if shares_of and all(np.isfinite(v).any() for v in shares_of.values()):
        share = {s: float(np.nanmedian(v)) / 100.0 for s, v in shares_of.items()}
        every_part = np.sqrt(sum((share[s] * errors[s]) ** 2 for s in share))
        # d x_i = x_i (e_i - sum_j x_j e_j)
        sd = {
            s: f * np.sqrt(every_part**2 + (1.0 - 2.0 * f) * errors[s] ** 2)
            for s, f in share.items()
        }
        medians = (f"{s} {100 * share[s]:.3g} +- {100 * sd[s]:.2g} at. %" for s in share)
        told = f": {', '.join(medians)} at the median"
    elif not any(n.endswith(DENSITY) for n in every):
        return
    yield (
        f"Errors of the maps are those of counting. Hydrogenic cross-sections have errors of their "
        f"own, about {own} (Egerton 2011), the same in all pixels{told}."
    )


def too_many(
    edges: Sequence[str], every: Mapping[str, Quantity], thickness: Field
) -> Iterator[str]:
    """That there are more atoms than any solid of the thickness has: then the low loss was exposed
    otherwise than it is said."""
    names = [f"{name}.{DENSITY}" for name in first_edges(edges).values()]
    total = sum(every[n].value for n in names)
    ratio = float(np.nanmedian(total / (MOST_PER_NM2 * np.maximum(thickness.data, 1e-3))))
    if ratio > 1.0:
        yield (
            f"The areal densities are wrong: {np.nanmedian(total):.3g} atoms per nm^2 are "
            f"{ratio:.3g} times as many as any solid of this thickness can have. The low loss was "
            "exposed more shortly than the files say: set exposure_ratio."
        )
