"""Tables of atoms: where ionisation edges begin, and their X-ray lines."""

import functools
import importlib.resources
from typing import NamedTuple

from micjax.core.names import listed, unknown_name


class XRayLine(NamedTuple):
    """A line, its family (K, L or M), and its share of the photons of that family."""

    name: str
    family: str
    energy_keV: float
    share: float


@functools.cache
def _rows(name: str) -> tuple[list[str], ...]:
    file = importlib.resources.files("micjax.physics") / "tables" / f"{name}.csv"
    lines = file.read_text(encoding="utf-8").splitlines()
    head = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return tuple(line.split(",") for line in lines[head + 1 :])


@functools.cache
def edge_energies_eV(symbol: str) -> dict[str, float]:
    """The binding energies of an element by shell, `{"L3": 706.8, ...}`: K, L1 to L3, M4 and M5
    above 30 eV (Elam, Ravel & Sieber 2002; N, O, F in solids: Bearden & Burr 1967). Edges of
    electron energy loss begin there to within some eV, by the bonds.

    **Raises:** `ValueError` for an element that is not in the table.
    """
    shells = {row[2]: float(row[3]) for row in _rows("edges") if row[1] == symbol}
    if not shells:
        raise ValueError(
            unknown_name("element", symbol, dict.fromkeys(r[1] for r in _rows("edges")))
        )
    return shells


def edge_energy_eV(symbol: str, shell: str) -> float:
    """Of one shell. **Raises:** `ValueError` for one that is not in the table."""
    shells = edge_energies_eV(symbol)
    if shell not in shells:
        raise ValueError(f"{symbol} has no edge {shell!r} in the table; there are {listed(shells)}")
    return shells[shell]


@functools.cache
def atomic_number(symbol: str) -> int:
    """**Raises:** `ValueError` for an element that is not in the table (lithium to uranium)."""
    edge_energies_eV(symbol)
    return next(int(row[0]) for row in _rows("edges") if row[1] == symbol)


@functools.cache
def atomic_mass_u(symbol: str) -> float:
    """The standard atomic weight (Prohaska et al. 2022).

    **Raises:** `ValueError` for an element that is not in the table of edges.
    """
    Z = atomic_number(symbol)
    return next(float(row[1]) for row in _rows("masses") if int(row[0]) == Z)


@functools.cache
def x_ray_lines(symbol: str) -> tuple[XRayLine, ...]:
    """The K, L and M lines of an element from 0.1 to 40 keV, in the order of their energies.

    Energies are differences of binding energies, right to some eV. The shares within K are those of
    Elam, Ravel & Sieber (2002); in L and M the subshells are weighted by their electrons and
    fluorescence yields over binding energies, without Coster-Kronig transitions: an estimate.

    **Raises:** `ValueError` for an element without lines in the table (beryllium to uranium).
    """
    rows = [row for row in _rows("x_ray_lines") if row[1] == symbol]
    if not rows:
        names = dict.fromkeys(row[1] for row in _rows("x_ray_lines"))
        raise ValueError(unknown_name("element with X-ray lines", symbol, names))
    lines = [XRayLine(row[2], row[3], float(row[4]), float(row[5])) for row in rows]
    return tuple(sorted(lines, key=lambda line: line.energy_keV))


def families_near(energy_keV: float, within_keV: float) -> list[str]:
    """Families such as `Cu_K` whose strongest line is there, the nearest first."""
    strongest: dict[str, XRayLine] = {}
    for row in _rows("x_ray_lines"):
        line = XRayLine(row[2], row[3], float(row[4]), float(row[5]))
        name = f"{row[1]}_{line.family}"
        if name not in strongest or line.share > strongest[name].share:
            strongest[name] = line
    off = {n: abs(line.energy_keV - energy_keV) for n, line in strongest.items()}
    return sorted((n for n in off if off[n] < within_keV), key=off.__getitem__)
