"""The problems, scores and clock of `benchmarks/active.py`, for every side of the comparison.

NumPy, SciPy and h5py only: each peer imports this in its own interpreter. Everything is maximised.
A side is a program `python SIDE.py TASK [ARGUMENT ...]` which measures once for every line on its
standard input and answers with one JSON object a line:

    seq 5 | python benchmarks/active_peers/botorch_side.py fit 100
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from scipy.stats import qmc

BEPS = pathlib.Path(__file__).parents[3] / "shared/data/afm/BEPS_PTO_50x50.h5"
FIRST, STEPS = 10, 50  # of the loops on the map: random points, then acquired ones
NOISE = 0.1  # standard deviation of the noise on the sines

# --- test functions on the unit cube ------------------------------------------------------------


def branin(u: np.ndarray) -> np.ndarray:
    """Minus the function of Branin (1972) on [-5, 10] x [0, 15]."""
    x, y = 15.0 * u[..., 0] - 5.0, 15.0 * u[..., 1]
    valley = y - 5.1 * (x / (2.0 * np.pi)) ** 2 + 5.0 * x / np.pi - 6.0
    return -(valley**2 + 10.0 * (1.0 - 1.0 / (8.0 * np.pi)) * np.cos(x) + 10.0)


HARTMANN_HEIGHTS = np.array([1.0, 1.2, 3.0, 3.2])
HARTMANN_WIDTHS = np.array(
    [
        [10.0, 3.0, 17.0, 3.5, 1.7, 8.0],
        [0.05, 10.0, 17.0, 0.1, 8.0, 14.0],
        [3.0, 3.5, 1.7, 10.0, 17.0, 8.0],
        [17.0, 8.0, 0.05, 10.0, 0.1, 14.0],
    ]
)
HARTMANN_CENTRES = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


def hartmann6(u: np.ndarray) -> np.ndarray:
    """Four Gaussian hills in six dimensions (Hartman 1973)."""
    distance = np.sum(HARTMANN_WIDTHS * (u[..., None, :] - HARTMANN_CENTRES) ** 2, axis=-1)
    return np.exp(-distance) @ HARTMANN_HEIGHTS


def ackley5(u: np.ndarray) -> np.ndarray:
    """Minus the function of Ackley (1987) on [-32.768, 32.768]^5."""
    x = 32.768 * (2.0 * u - 1.0)
    far = 20.0 * np.exp(-0.2 * np.sqrt(np.mean(x**2, axis=-1)))
    return far + np.exp(np.mean(np.cos(2.0 * np.pi * x), axis=-1)) - 20.0 - np.e


@dataclasses.dataclass(frozen=True)
class Function:
    """A function with its dimensions, highest value and budget."""

    value: Callable[[np.ndarray], np.ndarray]
    axes: int
    best: float
    first: int  # points of a Sobol sequence to begin with
    total: int

    def start(self, seed: int) -> np.ndarray:
        with warnings.catch_warnings(action="ignore"):  # not a power of two: as it is used
            return qmc.Sobol(self.axes, seed=seed).random(self.first)

    def regret(self, points: np.ndarray) -> np.ndarray:
        """Simple regret after each point."""
        return self.best - np.maximum.accumulate(self.value(np.asarray(points)))


FUNCTIONS = {
    "branin": Function(branin, 2, -0.39788735772973816, 5, 30),
    "hartmann6": Function(hartmann6, 6, 3.322368011415515, 12, 60),
    "ackley5": Function(ackley5, 5, 0.0, 10, 60),
}

# --- regression: noisy sines --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Regression:
    """Data to fit, a grid with the truth, and held-out noisy data."""

    points: np.ndarray
    y: np.ndarray
    grid: np.ndarray
    truth: np.ndarray
    test_points: np.ndarray
    test_y: np.ndarray

    def scores(self, grid_mean, test_mean, test_variance) -> dict[str, float | None]:
        """RMSE to the truth on the grid and mean NLPD (nats) of the held-out data.

        `test_variance` is that of data, with noise. The NLPD is None where it is not positive.
        """
        mean, variance = np.asarray(test_mean, float), np.asarray(test_variance, float)
        nlpd = None
        if np.all(variance > 0.0):
            surprise = (self.test_y - mean) ** 2 / variance + np.log(2.0 * np.pi * variance)
            nlpd = float(0.5 * np.mean(surprise))
        rmse = float(np.sqrt(np.mean((np.asarray(grid_mean, float) - self.truth) ** 2)))
        return {"rmse": rmse, "nlpd": nlpd}


def square_grid(side: int) -> np.ndarray:
    axis = np.linspace(0.0, 1.0, side)
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)


def sines(count: int, more: int = 0) -> Regression:
    """sin(6 a) + sin(6 b) with noise of 0.1 at `count` uniform points, then at `more` of them."""

    def wave(points):
        return np.sin(6.0 * points).sum(axis=-1)

    def noisy(generator, size):
        points = generator.uniform(size=(size, 2))
        return points, wave(points) + NOISE * generator.normal(size=size)

    generator = np.random.default_rng(count)
    parts = [noisy(generator, count), noisy(generator, more)]
    points, y = (np.concatenate(part) for part in zip(*parts, strict=True))
    grid = square_grid(50)
    return Regression(points, y, grid, wave(grid), *noisy(np.random.default_rng(10**6), 500))


# --- a measured map of piezoresponse loops ------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Candidates:
    """A finite set from which points are chosen, and what is found there."""

    points: np.ndarray
    y: np.ndarray

    def start(self, seed: int) -> list[int]:
        return np.random.default_rng(seed).choice(len(self.y), FIRST, replace=False).tolist()

    def regret(self, chosen: Sequence[int]) -> np.ndarray:
        """Simple regret after each point, in units of the range of y."""
        best = np.maximum.accumulate(self.y[np.asarray(chosen)])
        return (self.y.max() - best) / np.ptp(self.y)

    def top(self, chosen: Sequence[int], count: int) -> int:
        """How many of the `count` highest were found."""
        return len(set(np.argsort(-self.y)[:count].tolist()) & set(chosen))


def beps_file() -> pathlib.Path:
    return pathlib.Path(os.environ.get("BEPS_H5") or BEPS)


def _beps() -> tuple[np.ndarray, np.ndarray]:
    """Response `[50, 50, 64]` and bias `[64]` (V) of band-excitation loops on lead titanate."""
    import h5py  # here, so that the rest runs without the file

    with h5py.File(beps_file()) as file:
        group = file["Channel_000/generic"]
        return group["generic"][:], group["Voltage"][:]


def _smooth_log_area(response: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """log10 of the area inside each loop (shoelace formula), mean over 3 x 3 pixels."""
    ahead = np.roll(response, -1, axis=-1)
    area = 0.5 * np.abs(np.sum(bias * ahead - np.roll(bias, -1) * response, axis=-1))
    padded = np.pad(np.log10(area), 1, mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).mean(axis=(-2, -1))


def _standard(y: np.ndarray) -> np.ndarray:
    return (y - y.mean()) / y.std()


def loop_map() -> Candidates:
    """Every pixel of the map: its position in the unit square and its loop area."""
    return Candidates(square_grid(50), _standard(_smooth_log_area(*_beps()).ravel()))


def loop_patches(width: int = 16) -> Candidates:
    """Patches of a picture at low bias and the loop area at their centres.

    The picture is log10 of the root mean square response below 1.1 V: 8 of the 64 steps.
    """
    response, bias = _beps()
    quiet = response[..., np.abs(bias) < 1.1]
    picture = np.log10(np.sqrt(np.mean(quiet**2, axis=-1)) + 1e-6)
    picture = (picture - picture.min()) / np.ptp(picture)
    patches = np.lib.stride_tricks.sliding_window_view(picture, (width, width))
    rows, columns = patches.shape[:2]
    area = _smooth_log_area(response, bias)
    centres = area[width // 2 :, width // 2 :][:rows, :columns]
    return Candidates(patches.reshape(rows * columns, -1), _standard(centres.ravel()))


CANDIDATES = {"gp": loop_map, "dkl": loop_patches}

# --- what is to be predicted --------------------------------------------------------------------

DESIGNS = ("spread", "acquired", "mapped")  # evenly, by log-EI, by the largest uncertainty


@dataclasses.dataclass(frozen=True)
class Survey:
    """Something to measure at some points and to predict at others."""

    axes: int
    first: int
    total: int
    value: Callable[[np.ndarray], np.ndarray]
    pixels: np.ndarray | None = None  # if only these can be measured

    def spread(self, seed: int, count: int) -> np.ndarray:
        """A Sobol sequence, or pixels at random."""
        if self.pixels is not None:
            return self.pixels[np.random.default_rng(seed).permutation(len(self.pixels))[:count]]
        with warnings.catch_warnings(action="ignore"):
            return qmc.Sobol(self.axes, seed=seed).random(count)

    def others(self, seed: int, measured: np.ndarray) -> np.ndarray:
        """1,000 uniform points, or all pixels but the measured ones."""
        if self.pixels is None:
            return np.random.default_rng(10**6 + seed).uniform(size=(1000, self.axes))
        taken = {tuple(p) for p in measured.tolist()}
        return np.array([p for p in self.pixels.tolist() if tuple(p) not in taken])


def _loop_areas() -> Survey:
    """The loop area of every pixel as it is: heavy tails, neighbours hardly alike."""
    response, bias = _beps()
    ahead = np.roll(response, -1, axis=-1)
    area = 0.5 * np.abs(np.sum(bias * ahead - np.roll(bias, -1) * response, axis=-1))
    pixels = square_grid(50)

    def value(points: np.ndarray) -> np.ndarray:
        rows = np.rint(49.0 * np.atleast_2d(points)).astype(int)
        return area[rows[:, 0], rows[:, 1]].reshape(np.shape(points)[:-1])

    return Survey(2, FIRST, 60, value, pixels)


SURVEYS = {n: Survey(f.axes, f.first, f.total, f.value) for n, f in FUNCTIONS.items()}
if beps_file().exists():
    SURVEYS["loop areas"] = _loop_areas()

# --- the clock, and the loop that a side runs ---------------------------------------------------


class Stopwatch:
    """Wall and CPU seconds of a `with` block."""

    def __enter__(self) -> "Stopwatch":
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_) -> None:
        self.wall_s = time.perf_counter() - self._wall
        self.cpu_s = time.process_time() - self._cpu

    def sample(self, **more) -> dict:
        return {"wall_s": self.wall_s, "cpu_s": self.cpu_s, **more}


def serve(tasks: Mapping[str, Callable[..., Iterator[dict]]]) -> None:
    """Runs the task that the command line names, one measurement for each line of input."""
    name, *arguments = sys.argv[1:] or [""]
    if name not in tasks:
        raise SystemExit(f"no task {name!r}; there are {', '.join(tasks)}")
    samples = tasks[name](*arguments)
    for _ in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):  # what libraries print is no answer
            sample = next(samples, None)
        if sample is None:
            return
        print(json.dumps(sample), flush=True)
