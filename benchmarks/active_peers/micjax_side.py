"""Our side of `benchmarks/active.py`: the tasks fit, refit, append, loop, bayes,
regret and calibration."""

import itertools
import statistics
from collections.abc import Iterator

import jax
import numpy as np
import numpyro.distributions as dist
import problems
from flax import nnx
from problems import Stopwatch

from micjax.active import streaming
from micjax.active.acquire.scalarise import Scale, scale_of
from micjax.active.acquire.values import best_allowed, log_expected_improvement
from micjax.active.gp import deep as deep_kernel
from micjax.active.gp import process as gp
from micjax.active.gp.evidence import Evidence, fit_evidence
from micjax.active.learner.belief import plain_model
from micjax.active.learner.learner import Learner
from micjax.active.learner.space import SearchAxis, Space

compilations: list[float] = []


def _compiled(event: str, seconds: float, **_) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        compilations.append(seconds)


jax.monitoring.register_event_duration_secs_listener(_compiled)


class Watch(Stopwatch):
    """Counts the compilations as well."""

    def __enter__(self) -> "Watch":
        compilations.clear()
        return super().__enter__()

    def sample(self, **more) -> dict:
        return super().sample(compilations=len(compilations), **more)


def unit_space(axes: int, candidates: np.ndarray | None = None) -> Space:
    return Space([SearchAxis(f"x{i}") for i in range(axes)], candidates)


# --- regression ---------------------------------------------------------------------------------

# the processes among which a learner chooses
PROCESSES = dict(zip(("matern", "rbf"), plain_model(unit_space(2)).processes, strict=True))


def fitted(kernel: str, points, y, last: Evidence | None = None) -> tuple[Evidence, tuple, Scale]:
    """The process of a learner on standardised data, as BoTorch has them."""
    scale = scale_of(y, "linear")
    data = gp.buffered(points, scale.apply(y))
    return fit_evidence(PROCESSES[kernel], *data, last=last), data, scale


def fit(count: str, kernel: str = "matern") -> Iterator[dict]:
    """A cold fit and the prediction of 2,500 points."""
    data = problems.sines(int(count))
    while True:
        with Watch() as watch:
            found, buffers, scale = fitted(kernel, data.points, data.y)
            state = gp.condition(found.problem, *buffers)
            mean, _ = gp.predict(state, data.grid)
            mean = scale.invert(mean)
        test_mean, test_variance = gp.predict(state, data.test_points)
        test_variance = test_variance + float(found.problem.noise.sigma) ** 2
        scores = data.scores(mean, scale.invert(test_mean), scale.width**2 * test_variance)
        yield watch.sample(evaluations=found.evaluations, **scores)


def refit(count: str, kernel: str = "matern") -> Iterator[dict]:
    """A fit after one more point, from the last one."""
    count, more = int(count), 100
    data = problems.sines(count, more)
    last, _, _ = fitted(kernel, data.points[:count], data.y[:count])
    for n in range(count + 1, count + more + 1):
        with Watch() as watch:
            last, _, _ = fitted(kernel, data.points[:n], data.y[:n], last)
        yield watch.sample(evaluations=last.evaluations)


def append(count: str) -> Iterator[dict]:
    """One more point at the same hyper-parameters and the prediction of 2,500 points."""
    count, more = int(count), 100
    data = problems.sines(count, more)
    found, buffers, scale = fitted("matern", data.points[:count], data.y[:count])
    tracked = gp.track(gp.condition(found.problem, *buffers), data.grid)
    z = scale.apply(data.y)
    for n in range(count, count + more):
        with Watch() as watch:
            if tracked.state.count == len(tracked.state.y):
                state = gp.condition(found.problem, *gp.grown(*tracked.state[1:3]))
                tracked = gp.track(state, data.grid)
            tracked = gp.tell(tracked, data.points[n], z[n])
            jax.device_get((tracked.mean, tracked.variance))
        yield watch.sample()


# --- full Bayes ---------------------------------------------------------------------------------


def bayes(count: str, particles: str = "128") -> Iterator[dict]:
    """One datum after another up to `count`, each with the prediction of 2,500 points.

    The model is that of GPax: zero mean, and its priors written for standard deviations. The last
    step has the posterior mean and deviation of the function on 20 x 20 points.
    """
    count, begun = int(count), 10
    data, grid = problems.sines(count), problems.square_grid(20)
    halved = dist.LogNormal(0.0, 0.5)  # LogNormal(0, 1) of the variance
    priors = {
        "forward.mean.value": None,
        "forward.kernel.lengthscale": dist.LogNormal(0.0, 1.0),
        "forward.kernel.amplitude": halved,
        "noise.sigma": halved,
    }
    process = gp.process([0.0, 0.0], [1.0, 1.0], priors=priors)
    keys = jax.random.split(jax.random.key(0), count + 1)
    first = gp.buffered(data.points[:begun], data.y[:begun])
    cloud = streaming.begin(process, *first, data.grid, keys[count], particles=int(particles))
    for n in range(begun, count):
        with Watch() as watch:
            cloud = streaming.tell(cloud, data.points[n], data.y[n], keys[n])
            streaming.predict(cloud)
        last = {}
        if n == count - 1:
            mean, variance = streaming.predict(streaming.following(cloud, grid))
            last = {"mean": mean.tolist(), "sd": np.sqrt(variance).tolist()}
        yield watch.sample(**last)


# --- learners -----------------------------------------------------------------------------------


def process_loop(candidates: problems.Candidates, seed: int) -> Iterator[dict]:
    """A learner over the pixels, whose settings are their positions."""
    learner = Learner(unit_space(2, candidates.points), initial=problems.FIRST, seed=seed)
    number = {tuple(point): i for i, point in enumerate(candidates.points.tolist())}

    def measured(i: int) -> dict:
        return learner.space.settings(candidates.points[i]) | {"y": candidates.y[i]}

    learner.ingest([measured(i) for i in candidates.start(seed)])
    while True:
        with Watch() as watch:
            (suggested,) = learner.suggest(1)
            chosen = number[learner.space.numbers(suggested)]
            learner.ingest([{**measured(chosen), **suggested}])
        yield watch.sample(chosen=chosen)


SIDE, CROP = 16, slice(4, 13)  # of the patches, and of those the 9 x 9 pixels about the middle


def deep_loop(candidates: problems.Candidates, seed: int) -> Iterator[dict]:
    """Three networks, trained on a little at each step, and log-EI of their mixture."""
    patches = candidates.points.reshape(-1, SIDE, SIDE)[:, CROP, CROP]
    points = ((patches - patches.mean()) / patches.std()).reshape(len(patches), -1)
    pixels = points.shape[1]
    network = deep_kernel.Surroundings(patches.shape[1], rngs=nnx.Rngs(seed))
    process = deep_kernel.deep_process(np.zeros(pixels), np.ones(pixels), network, places=0)
    ensemble = deep_kernel.draw_ensemble(process, jax.random.key(seed))
    chosen, steps = candidates.start(seed), deep_kernel.FIRST_STEPS
    while True:
        with Watch() as watch:
            y = candidates.y[chosen]
            scale = scale_of(y, "linear")
            data = gp.buffered(points[chosen], scale.apply(y))
            ensemble = deep_kernel.train(ensemble, *data, steps)
            steps = deep_kernel.STEPS
            found = deep_kernel.predict(ensemble, *data, points)
            score = improvement(found.mean, found.variance, scale.apply(y).max())
            free = ~np.isin(np.arange(len(points)), chosen)
            chosen.append(int(best_allowed(score, free)[0]))
        yield watch.sample(chosen=chosen[-1])


def improvement(mean, variance, best) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(_improvement(mean, np.sqrt(variance), best))


_improvement = jax.jit(log_expected_improvement)


def loop(kind: str, seed: str) -> Iterator[dict]:
    """One step of the loop on the map: the suggestion, and the fit to what came back."""
    begin = {"gp": process_loop, "dkl": deep_loop}[kind]
    return begin(problems.CANDIDATES[kind](), int(seed))


def regret(name: str, seed: str) -> Iterator[dict]:
    """A whole optimisation of a test function by log-EI."""
    function = problems.FUNCTIONS[name]
    space = unit_space(function.axes)
    learner = Learner(space, initial=function.first, seed=int(seed))
    start = function.start(int(seed))
    points = [space.settings(row) for row in start]
    values, steps = function.value(start).tolist(), []
    with Watch() as watch:
        learner.ingest([p | {"y": y} for p, y in zip(points, values, strict=True)])
        for _ in range(function.total - function.first):
            with Stopwatch() as step:
                (suggested,) = learner.suggest(1)
                y = float(function.value(np.asarray(space.numbers(suggested))))
                learner.ingest([suggested | {"y": y}])
            steps.append(step.cpu_s)
    regret = function.regret(learner.data[0]).tolist()
    yield watch.sample(regret=regret, step_cpu_s=statistics.median(steps))


def calibration(name: str, design: str) -> Iterator[dict]:
    """The share of what is measured elsewhere that falls into the 90 % intervals of a learner."""
    survey = problems.SURVEYS[name]
    space = unit_space(survey.axes, survey.pixels)
    goal = "maximise" if design == "acquired" else "map"
    for seed in itertools.count():
        with Watch() as watch:
            learner = Learner(space, goal=goal, initial=survey.first, seed=seed)
            begun = survey.total if design == "spread" else survey.first
            learner.ingest(
                [
                    space.settings(p) | {"y": float(survey.value(p))}
                    for p in survey.spread(seed, begun)
                ]
            )
            while len(learner.data[1]) < survey.total:
                (point,) = learner.suggest(1)
                y = float(survey.value(np.asarray(space.numbers(point))))
                learner.ingest([point | {"y": y}])
            others = survey.others(seed, learner.data[0])
            found, truth = learner.predict(others), survey.value(others)
        covered = np.mean((found.lower <= truth) & (truth <= found.upper))
        yield watch.sample(covered=float(covered))


TASKS = {
    "fit": fit,
    "refit": refit,
    "append": append,
    "bayes": bayes,
    "loop": loop,
    "regret": regret,
    "calibration": calibration,
}

if __name__ == "__main__":
    problems.serve(TASKS)
