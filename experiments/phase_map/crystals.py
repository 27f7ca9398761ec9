"""Crystals along their axes, to choose and to test naming by.

Prototypes of structures (places rounded; free ones may be off, which does no harm here), and plane
lattices at random (`specimens`), which nothing was chosen on.
"""

from typing import NamedTuple

import numpy as np
import specimens
from ase.spacegroup import crystal

from micjax.physics.patches.polycrystal import PlaneLattice
from micjax.physics.patches.projection import ZONES, primitive, projected

ALONG = (*ZONES, (0, 1, 2), (1, 1, 2), (0, 2, 1), (1, 2, 0), (2, 1, 0))
RESOLVED_A = 1.8  # columns in rows that are closer are not seen
MOST_A2 = 400.0  # area of a cell of which a window shows more than one
PROTOTYPES = {  # elements, places, space group, (a,) or (a, b, c) or with angles
    "NaCl": ("Na Cl", [(0, 0, 0), (0.5, 0.5, 0.5)], 225, (5.64,)),
    "PbTe": ("Pb Te", [(0, 0, 0), (0.5, 0.5, 0.5)], 225, (6.46,)),
    "GaAs": ("Ga As", [(0, 0, 0), (0.25, 0.25, 0.25)], 216, (5.65,)),
    "InP": ("In P", [(0, 0, 0), (0.25, 0.25, 0.25)], 216, (5.87,)),
    "CaF2": ("Ca F", [(0, 0, 0), (0.25, 0.25, 0.25)], 225, (5.46,)),
    "UO2": ("U O", [(0, 0, 0), (0.25, 0.25, 0.25)], 225, (5.47,)),
    "BaTiO3": ("Ba Ti O", [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)], 221, (4.0,)),
    "spinel": (
        "Mg Al O",
        [(0.125, 0.125, 0.125), (0.5, 0.5, 0.5), (0.2624, 0.2624, 0.2624)],
        227,
        (8.08,),
    ),
    "pyrochlore": (
        "Gd Ti O O",
        [(0.5, 0.5, 0.5), (0, 0, 0), (0.3225, 0.125, 0.125), (0.375, 0.375, 0.375)],
        227,
        (10.18,),
    ),
    "MgCu2": ("Mg Cu", [(0.125, 0.125, 0.125), (0.5, 0.5, 0.5)], 227, (7.03,)),
    "CsCl": ("Cs Cl", [(0, 0, 0), (0.5, 0.5, 0.5)], 221, (4.12,)),
    "NiAl": ("Ni Al", [(0, 0, 0), (0.5, 0.5, 0.5)], 221, (2.89,)),
    "Cu3Au": ("Au Cu", [(0, 0, 0), (0.5, 0.5, 0)], 221, (3.75,)),
    "Nb3Sn": ("Sn Nb", [(0, 0, 0), (0.25, 0, 0.5)], 223, (5.29,)),
    "pyrite": ("Fe S", [(0, 0, 0), (0.385, 0.385, 0.385)], 205, (5.42,)),
    "CoSb3": ("Co Sb", [(0.25, 0.25, 0.25), (0, 0.335, 0.158)], 204, (9.04,)),
    "Y2O3": ("Y Y O", [(0.25, 0.25, 0.25), (0.9675, 0, 0.25), (0.391, 0.152, 0.38)], 206, (10.6,)),
    "LaB6": ("La B", [(0, 0, 0), (0.1993, 0.5, 0.5)], 221, (4.156,)),
    "garnet": (
        "Y Al Al O",
        [(0.125, 0, 0.25), (0, 0, 0), (0.375, 0, 0.25), (-0.031, 0.051, 0.15)],
        230,
        (12.0,),
    ),
    "Th6Mn23": (
        "Mn Th Mn Mn Mn",
        [
            (0.5, 0.5, 0.5),
            (0.203, 0, 0),
            (0, 0.25, 0.25),
            (0.378, 0.378, 0.378),
            (0.178, 0.178, 0.178),
        ],
        225,
        (12.5,),
    ),
    "Mg2Ni": ("Mg Ni", [(0.1667, 0.3333, 0.5), (0.5, 0, 0)], 191, (5.2, 5.2, 4.4, 90, 90, 120)),
    "WC": ("W C", [(0, 0, 0), (0.3333, 0.6667, 0.5)], 187, (2.91, 2.91, 2.84, 90, 90, 120)),
    "NiAs": ("Ni As", [(0, 0, 0), (0.3333, 0.6667, 0.25)], 194, (3.6, 3.6, 5.0, 90, 90, 120)),
    "CaCu5": (
        "Ca Cu Cu",
        [(0, 0, 0), (0.3333, 0.6667, 0), (0.5, 0, 0.5)],
        191,
        (5.09, 5.09, 4.09, 90, 90, 120),
    ),
    "Al2O3": ("Al O", [(0, 0, 0.352), (0.306, 0, 0.25)], 167, (4.76, 4.76, 12.99, 90, 90, 120)),
    "LiNbO3": (
        "Nb Li O",
        [(0, 0, 0), (0, 0, 0.28), (0.048, 0.343, 0.064)],
        161,
        (5.15, 5.15, 13.86, 90, 90, 120),
    ),
    "Bi2Te3": (
        "Bi Te Te",
        [(0, 0, 0.4), (0, 0, 0), (0, 0, 0.212)],
        166,
        (4.38, 4.38, 30.5, 90, 90, 120),
    ),
    "SnO2": ("Sn O", [(0, 0, 0), (0.307, 0.307, 0)], 136, (4.74, 4.74, 3.19)),
    "anatase": ("Ti O", [(0, 0, 0), (0, 0, 0.208)], 141, (3.785, 3.785, 9.514)),
    "CuAl2": ("Cu Al", [(0, 0, 0.25), (0.158, 0.658, 0)], 140, (6.07, 6.07, 4.88)),
    "scheelite": (
        "Ca W O",
        [(0, 0.25, 0.625), (0, 0.25, 0.125), (0.15, 0.0086, 0.211)],
        88,
        (5.24, 5.24, 11.38),
    ),
    "zircon": (
        "Zr Si O",
        [(0, 0.75, 0.125), (0, 0.25, 0.375), (0, 0.066, 0.195)],
        141,
        (6.6, 6.6, 5.98),
    ),
    "Fe3C": (
        "Fe Fe C",
        [(0.036, 0.25, 0.852), (0.186, 0.063, 0.328), (0.89, 0.25, 0.45)],
        62,
        (5.09, 6.74, 4.53),
    ),
    "GdFeO3": (
        "Gd Fe O O",
        [(0.063, 0.25, -0.016), (0, 0, 0.5), (0.467, 0.25, 0.1), (-0.304, 0.05, 0.3)],
        62,
        (5.61, 7.67, 5.35),
    ),
    "olivine": (
        "Mg Mg Si O O O",
        [
            (0, 0, 0),
            (0.2774, 0.25, 0.9915),
            (0.094, 0.25, 0.4262),
            (0.0913, 0.25, 0.7657),
            (0.4474, 0.25, 0.2215),
            (0.2774, 0.033, 0.2774),
        ],
        62,
        (10.2, 5.99, 4.76),
    ),
    "PbCl2": (
        "Pb Cl Cl",
        [(0.246, 0.25, 0.096), (0.86, 0.25, 0.07), (0.48, 0.25, 0.84)],
        62,
        (7.6, 4.53, 9.05),
    ),
    "monoclinic ZrO2": (
        "Zr O O",
        [(0.275, 0.04, 0.208), (0.07, 0.332, 0.345), (0.45, 0.757, 0.479)],
        14,
        (5.15, 5.21, 5.32, 90, 99.2, 90),
    ),
    "WO3": (
        "W W O O O O O O",
        [
            (0.25, 0.03, 0.28),
            (0.25, 0.03, 0.78),
            (0, 0.04, 0.22),
            (0, 0.46, 0.22),
            (0.28, 0.26, 0.28),
            (0.21, 0.26, 0.73),
            (0.28, 0.04, 0),
            (0.28, 0.48, 0),
        ],
        14,
        (7.3, 7.54, 7.69, 90, 90.9, 90),
    ),
    "Fe3W3C": (
        "W Fe Fe C",
        [(0.195, 0.125, 0.125), (0.5, 0.5, 0.5), (0.33, 0.33, 0.33), (0, 0, 0)],
        227,
        (11.1,),
    ),
    "CuInSe2": (
        "Cu In Se",
        [(0, 0, 0), (0, 0, 0.5), (0.224, 0.25, 0.125)],
        122,
        (5.78, 5.78, 11.6),
    ),
}


class Axis(NamedTuple):
    """A crystal along an axis."""

    crystal: str
    lattice: PlaneLattice
    uniform: PlaneLattice  # whose atoms are all of one brightness


def prototypes() -> list[Axis]:
    """All that are resolved, one of each kind of axis."""
    axes = []
    for name, (symbols, places, group, edges) in PROTOTYPES.items():
        cell = edges if len(edges) == 6 else (*(3 * edges)[:3], 90, 90, 90)
        atoms = crystal(symbols.split(), places, spacegroup=group, cellpar=cell)
        kinds = set()
        for zone in ALONG:
            where = np.asarray(atoms.cell), atoms.get_scaled_positions()
            lattice = projected(*where, atoms.numbers, zone)
            uniform = projected(*where, np.ones(len(atoms), int), zone)
            area_A2 = abs(np.linalg.det(lattice.vectors_A))
            kind = round(area_A2, 2), len(lattice.basis), round(float(lattice.weight.sum()), 1)
            nearest = np.linalg.norm(primitive(lattice), axis=1).min()
            if kind in kinds or area_A2 > MOST_A2 or nearest < RESOLVED_A:
                continue
            kinds.add(kind)
            axes.append(Axis(name, lattice, uniform))
    return axes


def random_lattices(rng: np.random.Generator, count: int) -> list[Axis]:
    lattices = [specimens.random_lattice(rng) for _ in range(count)]
    return [
        Axis(f"random {i}", v, v._replace(weight=np.ones(len(v.weight))))
        for i, v in enumerate(lattices)
    ]
