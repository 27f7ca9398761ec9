"""GPax's side of `benchmarks/active.py`: the tasks fit, refit, loop and nuts.

As its README and the published notebooks do it: a new model at every step, targets scaled to
[0, 1], 250 steps of Adam at 0.05 (200 at 0.01 for deep kernels), EI, float32.
"""

import itertools
import warnings
from collections.abc import Iterator

import gpax
import jax
import numpy as np
import problems
from problems import Stopwatch

warnings.filterwarnings("ignore")
KEY, OTHER_KEY = gpax.utils.get_keys(0)
QUIET = {"progress_bar": False, "print_summary": False}


def fitted(points: np.ndarray, y: np.ndarray) -> gpax.viGP:
    model = gpax.viGP(points.shape[1], kernel="Matern", guide="delta")
    model.fit(KEY, points, y, num_steps=250, step_size=0.05, **QUIET)
    jax.block_until_ready(model.kernel_params)
    return model


def predicted(model, points: np.ndarray, noise: bool = False):
    return jax.device_get(model.predict(OTHER_KEY, points, noiseless=not noise))


def fit(count: str) -> Iterator[dict]:
    """A fit and the prediction of 2,500 points."""
    data = problems.sines(int(count))
    while True:
        with Stopwatch() as watch:
            model = fitted(data.points, data.y)
            mean, _ = predicted(model, data.grid)
        yield watch.sample(**data.scores(mean, *predicted(model, data.test_points, noise=True)))


def refit(count: str) -> Iterator[dict]:
    """A fit after one more point."""
    count, more = int(count), 100
    data = problems.sines(count, more)
    for n in range(count + 1, count + more + 1):
        with Stopwatch() as watch:
            fitted(data.points[:n], data.y[:n])
        yield watch.sample()


def ei_of_process(points, y, candidates):
    model = fitted(points, y)
    return gpax.acquisition.EI(OTHER_KEY, model, candidates, maximize=True, noiseless=True)


def ei_of_deep_kernel(points, y, candidates):
    model = gpax.viDKL(points.shape[1], 2)
    model.fit(KEY, points, y, num_steps=200, step_size=0.01, **QUIET)
    return gpax.acquisition.EI(OTHER_KEY, model, candidates, maximize=True)


def loop(kind: str, seed: str) -> Iterator[dict]:
    """One step of the loop on the map: fit, EI at the candidates left, the best one."""
    candidates = problems.CANDIDATES[kind]()
    ei = {"gp": ei_of_process, "dkl": ei_of_deep_kernel}[kind]
    chosen = candidates.start(int(seed))
    for _ in itertools.count():
        with Stopwatch() as watch:
            left = np.setdiff1d(np.arange(len(candidates.y)), chosen)
            y = candidates.y[chosen]
            y = (y - y.min()) / np.ptp(y)
            score = np.asarray(ei(candidates.points[chosen], y, candidates.points[left]))
            chosen.append(int(left[np.argmax(score)]))
        yield watch.sample(chosen=chosen[-1], nan=int(np.isnan(score).sum()))


def nuts(count: str, warmup: str = "500", samples: str = "500", file: str = "") -> Iterator[dict]:
    """A refit by NUTS; the posterior mean and deviation of the function on 20 x 20 points.

    Each repeat has its own random key. The prediction is not in the time. `file`, an .npz, keeps
    the points, mean and sd of the last repeat.
    """
    data, grid = problems.sines(int(count)), problems.square_grid(20)
    for repeat in itertools.count():
        key = jax.random.fold_in(KEY, repeat)
        with Stopwatch() as watch:
            model = gpax.ExactGP(2, kernel="Matern")
            model.fit(key, data.points, data.y, int(warmup), int(samples), **QUIET)
            jax.block_until_ready(model.get_samples())
        mean, sd = mixture(model, grid)
        if file:
            np.savez(file, points=grid, mean=mean, sd=sd)
        yield watch.sample(mean=mean.tolist(), sd=sd.tolist())


def mixture(model: gpax.ExactGP, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the function over all samples of the hyper-parameters.

    In float64: the prediction of GPax inverts matrices in float32.
    """
    with jax.enable_x64(True):
        samples = jax.tree.map(lambda a: np.asarray(a, np.float64), model.get_samples())
        model.X_train, model.y_train = np.float64(model.X_train), np.float64(model.y_train)

        def moments(sample):
            mean, covariance = model.get_mvn_posterior(points, sample, noiseless=True)
            return mean, covariance.diagonal()

        means, variances = jax.device_get(jax.lax.map(moments, samples))
    return means.mean(axis=0), np.sqrt(means.var(axis=0) + variances.mean(axis=0))


if __name__ == "__main__":
    problems.serve({"fit": fit, "refit": refit, "loop": loop, "nuts": nuts})
