"""Electron scattering factors of neutral atoms, from three published tables.

k is 1/d in 1/Å, twice sin(theta)/lambda. At high k they fall off as Z / k^2 (Mott–Bethe); the value
at 0 decides the mean inner potential.
"""

import functools
import importlib.resources
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from micjax.physics.electrons.optics import E, H, M

TABLES = ("lobato", "kirkland", "peng")

# h^2 / (2 pi m e): the potential of an atom is this times the transform of its factor
VOLT_A2 = H**2 / (2.0 * np.pi * M * E) * 1e20


@functools.cache
def table(name: str) -> Float[np.ndarray, "elements numbers"]:
    """The coefficients of all elements, the first row those of hydrogen.

    **Raises:** `ValueError` for another table.
    """
    if name not in TABLES:
        raise ValueError(f"table {name!r} of scattering factors; there are {', '.join(TABLES)}")
    file = importlib.resources.files("micjax.physics") / "tables" / f"{name}.csv"
    with file.open(encoding="utf-8") as lines:
        return np.loadtxt(lines, delimiter=",", skiprows=3)[:, 1:]


def scattering_factors_A(
    numbers: Sequence[int], k_squared: Float[Array, "..."], name: str = "lobato"
) -> Float[Array, "elements ..."]:
    """f(k) in Å of each element.

    **Arguments:**

    - `numbers`: atomic numbers. `k_squared`: 1/Å^2.
    - `name`: "lobato" (Lobato & Van Dyck 2014), "kirkland" (Kirkland 2010) or "peng" (Peng et al.
        1996, up to k = 12 1/Å).

    **Raises:** `ValueError` for an element that is not in the table.
    """
    rows = table(name)
    for number in numbers:
        if not 1 <= number <= len(rows):
            raise ValueError(f"Z = {number}: the table {name!r} goes from 1 to {len(rows)}")
    return _factors(name, rows[np.array(numbers, int) - 1], k_squared)


@functools.partial(jax.jit, static_argnums=0)
def _factors(name, rows, k_squared):
    return jnp.stack([FACTORS[name](row, k_squared) for row in rows])


def _lobato(row, k2):
    a, b = np.split(row, 2)
    return sum(a * (2.0 + b * k2) / (1.0 + b * k2) ** 2 for a, b in zip(a, b, strict=True))


def _kirkland(row, k2):
    a, b, c, d = np.split(row, 4)
    lorentzians = sum(a / (k2 + b) for a, b in zip(a, b, strict=True))
    return lorentzians + sum(c * jnp.exp(-d * k2) for c, d in zip(c, d, strict=True))


def _peng(row, k2):
    a, b = np.split(row, 2)
    return sum(a * jnp.exp(-b * k2 / 4.0) for a, b in zip(a, b, strict=True))


FACTORS = {"lobato": _lobato, "kirkland": _kirkland, "peng": _peng}
