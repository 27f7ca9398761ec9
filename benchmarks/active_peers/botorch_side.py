"""BoTorch's side of `benchmarks/active.py`: the tasks fit, refit, append, loop, regret and
calibration.

A user's way with the defaults of the library: SingleTaskGP, fit_gpytorch_mll, log-EI, float64.
"""

import itertools
import math
import statistics
import warnings
from collections.abc import Iterator

import botorch
import gpytorch
import numpy as np
import problems
import torch
from botorch.acquisition import LogExpectedImprovement
from botorch.models import SingleTaskGP
from botorch.models.transforms import Standardize
from gpytorch.mlls import ExactMarginalLogLikelihood
from problems import Stopwatch

torch.set_default_dtype(torch.double)
torch.set_num_threads(1)
warnings.filterwarnings("ignore")


def fitted(points: torch.Tensor, y: torch.Tensor, last: SingleTaskGP | None = None):
    """A process at its most probable hyper-parameters, warm from those of `last`."""
    model = SingleTaskGP(points, y[:, None], outcome_transform=Standardize(1))
    if last is not None:
        # the parameters only: the transform belongs to the new data
        model.load_state_dict(dict(last.named_parameters()), strict=False)
    botorch.fit.fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model


def predicted(model, points: torch.Tensor, noise: bool = False):
    """Mean and variance, each point by itself: up to five times faster than all of them jointly."""
    with torch.no_grad():
        found = model.posterior(points[:, None], observation_noise=noise)
        return found.mean.flatten().numpy(), found.variance.flatten().numpy()


def fit(count: str) -> Iterator[dict]:
    """A cold fit and the prediction of 2,500 points."""
    data = problems.sines(int(count))
    points, y, grid, test = map(torch.tensor, (data.points, data.y, data.grid, data.test_points))
    while True:
        with Stopwatch() as watch:
            model = fitted(points, y)
            mean, _ = predicted(model, grid)
        yield watch.sample(**data.scores(mean, *predicted(model, test, noise=True)))


def refit(count: str) -> Iterator[dict]:
    """A fit after one more point: from nothing and from the last state, whichever is faster."""
    count, more = int(count), 100
    data = problems.sines(count, more)
    points, y = torch.tensor(data.points), torch.tensor(data.y)
    last = fitted(points[:count], y[:count])
    for n in range(count + 1, count + more + 1):
        with Stopwatch() as cold:
            fitted(points[:n], y[:n])
        with Stopwatch() as warm:
            last = fitted(points[:n], y[:n], last)
        fastest = min((cold, warm), key=lambda watch: watch.cpu_s)
        yield fastest.sample(cold_cpu_s=cold.cpu_s, warm_cpu_s=warm.cpu_s)


def append(count: str) -> Iterator[dict]:
    """One more point at the same hyper-parameters and the prediction of 2,500 points."""
    count, more = int(count), 100
    data = problems.sines(count, more)
    points, y, grid = map(torch.tensor, (data.points, data.y, data.grid))
    model = fitted(points[:count], y[:count])
    predicted(model, grid)
    for n in range(count, count + more):
        with Stopwatch() as watch:
            with torch.no_grad():
                model = model.condition_on_observations(points[n : n + 1], y[n : n + 1, None])
            predicted(model, grid)
        yield watch.sample()


class DeepKernel(gpytorch.models.ExactGP):
    """A perceptron of 64-64-2 before a Matérn 5/2 kernel, as in GPax's deep kernel."""

    def __init__(self, points, y, likelihood):
        super().__init__(points, y, likelihood)
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = gpytorch.kernels.ScaleKernel(
            gpytorch.kernels.MaternKernel(2.5, ard_num_dims=2)
        )
        self.network = torch.nn.Sequential(
            torch.nn.Linear(points.shape[1], 64),
            torch.nn.ReLU(),
            torch.nn.Linear(64, 64),
            torch.nn.ReLU(),
            torch.nn.Linear(64, 2),
        )

    def forward(self, points):
        features = self.network(points)
        return gpytorch.distributions.MultivariateNormal(
            self.mean_module(features), self.covar_module(features)
        )


def log_ei_of_process(points, y, candidates, last=None):
    model = fitted(points, y, last)
    acquisition = LogExpectedImprovement(model, best_f=y.max())
    with torch.no_grad():
        return acquisition(candidates[:, None]).numpy(), model


def log_ei_cold(points, y, candidates, _):
    return log_ei_of_process(points, y, candidates)


def log_ei_of_deep_kernel(points, y, candidates, _):
    """200 steps of Adam at 0.01 from new weights, the settings of GPax's examples."""
    y = (y - y.mean()) / y.std()
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    model = DeepKernel(points, y, likelihood)
    network = set(model.network.parameters())
    optimiser = torch.optim.Adam(
        [
            {"params": list(network), "weight_decay": 1e-2},
            {"params": [p for p in model.parameters() if p not in network]},
        ],
        lr=0.01,
    )
    evidence = ExactMarginalLogLikelihood(likelihood, model)
    model.train()
    for _ in range(200):
        optimiser.zero_grad()
        loss = -evidence(model(points), y)
        loss.backward()
        optimiser.step()
    model.eval()
    with torch.no_grad(), gpytorch.settings.fast_pred_var():
        found = model(candidates)
        sd = found.variance.clamp_min(1e-12).sqrt()
        u = (found.mean - y.max()) / sd
        return (torch.log(sd) + botorch.acquisition.analytic._log_ei_helper(u)).numpy(), model


def loop(kind: str, seed: str, start: str = "cold") -> Iterator[dict]:
    """One step of the loop on the map: fit, log-EI at all candidates, the best one.

    `start` is where the fits of "gp" begin: "cold", or "warm" from the last step.
    """
    candidates = problems.CANDIDATES[kind]()
    processes = {"cold": log_ei_cold, "warm": log_ei_of_process}
    log_ei = log_ei_of_deep_kernel if kind == "dkl" else processes[start]
    everywhere = candidates.points - (candidates.points.mean() if kind == "dkl" else 0.0)
    everywhere, y = torch.tensor(everywhere), torch.tensor(candidates.y)
    chosen, model = candidates.start(int(seed)), None
    for step in itertools.count():
        torch.manual_seed(1000 * int(seed) + step)
        with Stopwatch() as watch:
            score, model = log_ei(everywhere[chosen], y[chosen], everywhere, model)
            score = np.where(np.isin(np.arange(len(y)), chosen), -math.inf, score)
            chosen.append(int(np.argmax(score)))
        yield watch.sample(chosen=chosen[-1])


def regret(name: str, seed: str) -> Iterator[dict]:
    """A whole optimisation of a test function by log-EI."""
    function = problems.FUNCTIONS[name]
    bounds = torch.tensor([[0.0] * function.axes, [1.0] * function.axes])
    torch.manual_seed(int(seed))
    points, steps = function.start(int(seed)), []
    with Stopwatch() as watch:
        while len(points) < function.total:
            with Stopwatch() as step:
                y = torch.tensor(function.value(points))
                model = fitted(torch.tensor(points), y)
                acquisition = LogExpectedImprovement(model, best_f=y.max())
                found, _ = botorch.optim.optimize_acqf(
                    acquisition, bounds, q=1, num_restarts=8, raw_samples=256
                )
            steps.append(step.cpu_s)
            points = np.concatenate([points, found.numpy()])
    regret = function.regret(points).tolist()
    yield watch.sample(regret=regret, step_cpu_s=statistics.median(steps))


def calibration(name: str, design: str) -> Iterator[dict]:
    """The share of what is measured elsewhere that falls into the 90 % intervals."""
    survey = problems.SURVEYS[name]
    for seed in itertools.count():
        points = survey.spread(seed, survey.total)
        others = survey.others(seed, points)
        with Stopwatch() as watch:
            model = fitted(torch.tensor(points), torch.tensor(survey.value(points)))
            mean, variance = predicted(model, torch.tensor(others), noise=True)
        wide = 1.6448536 * np.sqrt(variance)
        covered = np.mean(np.abs(survey.value(others) - mean) <= wide)
        yield watch.sample(covered=float(covered))


TASKS = {
    "fit": fit,
    "refit": refit,
    "append": append,
    "loop": loop,
    "regret": regret,
    "calibration": calibration,
}

if __name__ == "__main__":
    problems.serve(TASKS)
