"""What both sides of `benchmarks/multislice.py` see: SrTiO3 along [001]. NumPy only."""

import contextlib
import ctypes

import numpy as np

EDGE_A, ENERGY_KEV, SEMIANGLE_MRAD = 3.905, 200.0, 21.4
HAADF_MRAD = (60.0, 120.0)
SLICE_A = EDGE_A / 2.0  # with the atoms in the middle of the slices
NUMBERS = (38, 22, 8, 8, 8)
FRACTIONS = np.array(
    [(0, 0, 0.25), (0.5, 0.5, 0.75), (0.5, 0.5, 0.25), (0.5, 0, 0.75), (0, 0.5, 0.75)]
)
STEM = {"pixels": 256, "cells": 3, "thick": 26}  # 26 cells are 101.5 Å


def cells_across(pixels: int) -> int:
    """So many that a pixel is about 0.05 Å."""
    return max(1, round(0.05 * pixels / EDGE_A))


def scan_A(side: int) -> np.ndarray:
    """Places along one edge of a cell."""
    return np.arange(side) * EDGE_A / side


def beam_starts_A(count: int, cells: int) -> np.ndarray:
    """Places of probes, at random."""
    return np.random.default_rng(0).uniform(0.0, cells * EDGE_A, (count, 2))


def keep_memory() -> None:
    """Freed memory stays with the process, where the C library is glibc.

    Otherwise it depends on what was freed before whether each call asks the system for its pages
    again, which took up to as long as all of its transforms.
    """
    trim_threshold, mmap_threshold, most = -1, -3, 2**25
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, most)
        mallopt(trim_threshold, 2**30)
