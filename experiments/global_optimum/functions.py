"""Functions of several optima on the unit cube, each of them to be maximised; NumPy alone."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Function(NamedTuple):
    """A function, its highest value, and the one that only its highest peak exceeds."""

    value: Callable[[np.ndarray], np.ndarray]  # [n, d] -> [n]
    axes: int
    top: float
    second: float  # of the highest other local optimum
    total: int  # measurements, the first ones included
    noise_sd: float = 0.0

    def measured(self, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.value(points) + self.noise_sd * rng.normal(size=len(points))


def bumps(centres, heights, widths) -> Callable[[np.ndarray], np.ndarray]:
    """A sum of Gaussian peaks."""
    centres, heights, widths = map(np.asarray, (centres, heights, widths))

    def value(points: np.ndarray) -> np.ndarray:
        squares = np.sum((points[:, None] - centres) ** 2, axis=-1)
        return np.exp(-squares / (2.0 * widths**2)) @ heights

    return value


def camel(points):
    x, y = 4.0 * points[:, 0] - 2.0, 2.0 * points[:, 1] - 1.0
    return -((4.0 - 2.1 * x**2 + x**4 / 3.0) * x**2 + x * y + (4.0 * y**2 - 4.0) * y**2)


def branin(points):
    """With a slope, so that one of its three optima is the best (Forrester et al. 2008)."""
    x, y = 15.0 * points[:, 0] - 5.0, 15.0 * points[:, 1]
    square = (y - 5.1 / (4.0 * np.pi**2) * x**2 + 5.0 / np.pi * x - 6.0) ** 2
    return -(square + 10.0 * (1.0 - 1.0 / (8.0 * np.pi)) * np.cos(x) + 10.0 + 5.0 * x)


def rastrigin(points):
    x = 3.0 * (points - 0.37)
    return -np.sum(x**2 + 1.0 - np.cos(2.0 * np.pi * x), axis=1)


def schwefel(points):
    """Its second best optimum is far from the best one."""
    x = 1000.0 * points - 500.0
    return np.sum(x * np.sin(np.sqrt(np.abs(x))), axis=1) / 418.9829


SHEKEL = np.array([[4, 4, 4, 4], [1, 1, 1, 1], [8, 8, 8, 8], [6, 6, 6, 6], [3, 7, 3, 7]], float)


def shekel(points):
    apart = np.sum((10.0 * points[:, None] - SHEKEL) ** 2, axis=-1)
    return np.sum(1.0 / (apart + [0.1, 0.2, 0.2, 0.4, 0.4]), axis=1)


ALPHA = np.array([1.0, 1.2, 3.0, 3.2])
A3 = np.array([[3, 10, 30], [0.1, 10, 35], [3, 10, 30], [0.1, 10, 35]])
P3 = 1e-4 * np.array(
    [[3689, 1170, 2673], [4699, 4387, 7470], [1091, 8732, 5547], [381, 5743, 8828]]
)
A6 = np.array(
    [
        [10, 3, 17, 3.5, 1.7, 8],
        [0.05, 10, 17, 0.1, 8, 14],
        [3, 3.5, 1.7, 10, 17, 8],
        [17, 8, 0.05, 10, 0.1, 14],
    ]
)
P6 = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


def hartmann(a, p):
    def value(points):
        return np.exp(-np.sum(a * (points[:, None] - p) ** 2, axis=-1)) @ ALPHA

    return value


LINE = bumps([[0.17], [0.62], [0.9]], [1.0, 0.7, 0.5], [0.04, 0.12, 0.05])
TWO = bumps([[0.71, 0.69], [0.25, 0.25]], [1.0, 0.6], [0.125, 0.0875])
NEEDLE = bumps([[0.8, 0.3], [0.35, 0.6]], [1.5, 1.0], [0.035, 0.25])
FIVE = bumps([[0.2, 0.3, 0.7, 0.6, 0.4], [0.75, 0.7, 0.3, 0.25, 0.6]], [1.0, 0.7], [0.25, 0.25])


def heavy(points):
    """Two peaks whose logarithms are as in `two-peaks`: six decades."""
    return np.exp(14.0 * TWO(points))


# tops and seconds by climbing from 500 of 4,000 random points
FUNCTIONS = {
    "line": Function(LINE, 1, 1.000619, 0.70001, 20),
    "two-peaks": Function(TWO, 2, 1.0, 0.60001, 35, 0.01),
    "camel": Function(camel, 2, 1.031628, 0.21547, 30),
    "branin": Function(branin, 2, 16.64402, -14.7718, 35),
    "rastrigin": Function(rastrigin, 2, 0.0, -0.95142, 40),
    "schwefel": Function(schwefel, 2, 2.0, 1.71732, 50),
    "heavy-tailed": Function(heavy, 2, float(np.exp(14.0)), 4447.3, 35),
    "needle": Function(NEEDLE, 2, 1.596613, 1.00001, 45),
    "noisy-hartmann": Function(hartmann(A3, P3), 3, 3.86278, 3.08977, 40, 0.2),
    "shekel": Function(shekel, 4, 10.1532, 5.10078, 60),
    "five-axes": Function(FIVE, 5, 1.001322, 0.70191, 45),
    "hartmann": Function(hartmann(A6, P6), 6, 3.322368, 3.20317, 50),
}
