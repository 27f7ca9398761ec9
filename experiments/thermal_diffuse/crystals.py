"""The crystals of the data set: each is drawn from the seed and its number alone.

Cubic perovskite cells, A at the corner, B in the middle, X on the faces. The split is a function of
the composition: a set of three elements belongs to training, validation or test whatever else is
drawn, and a tenth of the elements belongs to test alone.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

ELEMENTS = range(3, 99)
HELD_OUT = 10  # of them
U_A2 = (0.003, 0.02)
EDGE_A = (3.75, 4.05)
SPLITS = ("train", "validation", "test")
OF_TEN = [SPLITS[i] for i in (0, 0, 2, 0, 1, 0, 0, 2, 0, 0)]  # crystals one after the other
VALIDATION, TEST = 0.1, 0.25  # of the sets of three elements of which none is held out


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that decides what the file of patterns holds, but for the number of crystals."""

    seed: int = 0
    configurations: int = 64
    places: int = 4  # of the probe, in each crystal
    thicknesses: int = 3  # of each crystal
    fewest_cells: int = 8
    most_cells: int = 24
    across: int = 4  # cells of the periodic box
    pixels: int = 192  # of the box
    only: str = ""  # one of SPLITS: the crystals of it, which are those of a file that has all

    def __post_init__(self):
        if self.only not in ("", *SPLITS):
            raise ValueError(f"only = {self.only!r}: one of {', '.join(SPLITS)} is needed")
        if self.configurations < 2 or self.configurations % 2:
            raise ValueError(f"{self.configurations} configurations have no two halves")
        if not 1 <= self.thicknesses <= self.most_cells - self.fewest_cells + 1:
            raise ValueError(
                f"{self.thicknesses} thicknesses between {self.fewest_cells} and {self.most_cells}"
                " cells: each is another, and there is at least one"
            )


class Crystal(NamedTuple):
    elements: Int[Array | np.ndarray, "3"]  # A, B, X
    u_A2: Float[Array | np.ndarray, "3"]  # mean square displacement along an axis, of each
    edge_A: Float[Array | np.ndarray, ""]
    cells: Int[Array | np.ndarray, "thicknesses"]  # that the beam has gone through, growing
    place_A: Float[Array | np.ndarray, "places 2"]  # (y, x) of the probe in a cell


def held_out(seed: int) -> set[int]:
    """The elements which the test set alone has."""
    return set(np.random.default_rng([0, seed]).choice(ELEMENTS, HELD_OUT, replace=False).tolist())


def split_of(elements, seed: int) -> str:
    """Where a set of elements belongs, in whatever order they stand."""
    elements = sorted(int(z) for z in elements)
    if held_out(seed) & set(elements):
        return "test"
    share = np.random.default_rng([1, seed, *elements]).random()
    return "validation" if share < VALIDATION else "test" if share < VALIDATION + TEST else "train"


def number_of(settings: Settings, index: int) -> int:
    """The number of the crystal that stands in a file at `index`."""
    if not settings.only:
        return index
    wanted = [i for i, split in enumerate(OF_TEN) if split == settings.only]
    tens, rest = divmod(index, len(wanted))
    return 10 * tens + wanted[rest]


def drawn(settings: Settings, number: int) -> Crystal:
    rng = np.random.default_rng([2, settings.seed, number])
    wanted = OF_TEN[number % 10]
    while split_of(elements := rng.choice(ELEMENTS, 3, replace=False), settings.seed) != wanted:
        pass
    cells = np.arange(settings.fewest_cells, settings.most_cells + 1)
    edge = rng.uniform(*EDGE_A)
    return Crystal(
        elements,
        rng.uniform(*U_A2, 3),
        np.asarray(edge),
        np.sort(rng.choice(cells, settings.thicknesses, replace=False)),
        edge * rng.uniform(size=(settings.places, 2)),
    )
