"""Autofocus: which setting next, when to stop, and a record that replays to the same decisions."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence

import equinox as eqx
import h5py
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from micjax.core.foreign.hdf5 import opened
from micjax.core.problem import InverseProblem
from micjax.core.ranges import positive
from micjax.physics.electrons.phase_diversity import ProbeSeries, evidence, information
from micjax.problems.autofocus.posterior import (
    NAMES,
    PosteriorMode,
    Setting,
    in_prior,
    modes,
    series,
)

Image = Float[np.ndarray, "ny nx"]

BORDER = 1 / 8  # of the shorter side, over which the blur of an image that counts may reach
ENOUGH = 3  # so many of them, and the others are left out
CENTRES, DRAWS = 3, 8  # modes that are corrected for, and draws over which information is averaged
FIRST_MOVES_A = np.array([[c, 0.0, 0.0] for c in (-800, -600, -400, 400, 600, 800)])
# a setting corrects for a mode and adds one of these
OFFSETS_A = np.array(
    [[c, 0.0, 0.0] for c in (-400, -200, -100, 0, 100, 200, 400)]
    + [[0.0, a, b] for a, b in ((-100, 0), (100, 0), (0, -100), (0, 100))]
)


@dataclasses.dataclass(frozen=True)
class Rules:
    """What an autofocus must reach, and the bounds that it keeps.

    **Arguments:**

    - `C10_A`, `C12_A`: the largest defocus and astigmatism that may be left.
    - `deviations`: so many standard deviations must fit into that: of the model, which is never
        quite right.
    - `images`: how many at most.
    - `C10_limit_A`, `C12_limit_A`: largest settings of either sign.
    - `C10_step_A`, `C12_step_A`: largest changes from one image to the next.

    **Raises:** `ValueError` for numbers that are not positive.
    """

    C10_A: float = 50.0
    C12_A: float = 30.0
    deviations: float = 5.0
    images: int = 8
    C10_limit_A: float = 3000.0
    C12_limit_A: float = 1000.0
    C10_step_A: float = 2500.0
    C12_step_A: float = 800.0

    def __post_init__(self):
        positive(**dataclasses.asdict(self))

    def within(self, wanted_A: Setting, last_A: Setting) -> Setting:
        """The nearest setting to `wanted_A` that may follow on `last_A`."""
        step = np.array([self.C10_step_A, self.C12_step_A, self.C12_step_A])
        limit = np.array([self.C10_limit_A, self.C12_limit_A, self.C12_limit_A])
        return np.clip(np.clip(wanted_A, last_A - step, last_A + step), -limit, limit)

    def met(self, left_A: Setting) -> bool:
        """Whether these aberrations may be left."""
        return bool(abs(left_A[0]) <= self.C10_A and np.hypot(*left_A[1:]) <= self.C12_A)


@dataclasses.dataclass(frozen=True)
class Decision:
    """What follows from the images so far."""

    step: int  # so many images there were
    setting_A: list[float]  # of the next image; when `done`, the corrected one
    done: bool
    reason: str
    estimate_A: list[float]  # of the aberrations as found: of the heaviest mode
    covariance_A2: list[list[float]]
    modes_A: list[list[float]]  # means of all modes
    weights: list[float]


def decide(
    problem: InverseProblem,
    settings_A: Sequence[Setting] | np.ndarray,
    images: Sequence[Image],
    previous: Decision | None,
    seed: int,
    rules: Rules,
) -> Decision:
    """The next setting, or the last one: a pure function of its arguments.

    The next image is the one of the largest expected log det of the Fisher information about the
    aberrations, together with the images so far, averaged over draws from the posterior. Images far
    from focus, whose blur reaches over the borders, are left out when there are enough others. It
    stops when the posterior has one mode, so narrow that the corrected microscope is within the
    tolerance, and the last image has moved the estimate by less than half of that.
    """
    problem = problem.at({"noise.mean_counts": images[0].mean()})
    x, y = series(settings_A, images)
    # each image may be the one in focus
    starts_A = [-np.asarray(s, float) for s in settings_A]
    starts_A += [np.array(m) for m in previous.modes_A] if previous else []
    posterior, counted_A = modes(problem, x, y, starts_A), np.asarray(settings_A, float)
    complete = _whole(posterior[0], counted_A)
    if ENOUGH <= complete.sum() < len(images):
        counted_A = counted_A[complete]
        x, y = series(counted_A, [image for image, w in zip(images, complete, strict=True) if w])
        posterior = modes(problem, x, y, [mode.mean_A for mode in posterior])
    best, last_A = posterior[0], np.asarray(settings_A[-1], float)
    done, reason = _done(posterior, previous, len(images), rules)
    if done:
        setting_A = rules.within(-best.mean_A, last_A)
    else:
        setting_A, reason = _planned(posterior, counted_A, len(images), last_A, seed, rules)
    return Decision(
        step=len(images),
        setting_A=setting_A.tolist(),
        done=done,
        reason=reason,
        estimate_A=best.mean_A.tolist(),
        covariance_A2=best.covariance_A2.tolist(),
        modes_A=[mode.mean_A.tolist() for mode in posterior],
        weights=[mode.weight for mode in posterior],
    )


def _whole(mode: PosteriorMode, settings_A: Float[np.ndarray, "n 3"]) -> np.ndarray:
    """Which images hold all of what they show: in the others the blur reaches over the borders, of
    which the model knows to first order only; once there are better ones they would mislead."""
    probes = mode.problem.forward
    left_A = np.asarray(settings_A, float) + mode.mean_A
    blur_A = (
        1e-3
        * float(probes.semiangle_mrad)
        * (np.abs(left_A[:, 0]) + np.hypot(left_A[:, 1], left_A[:, 2]))
    )
    return blur_A <= BORDER * float(probes.sampling_A) * min(probes.shape)


def _done(
    posterior: list[PosteriorMode], previous: Decision | None, n: int, rules: Rules
) -> tuple[bool, str]:
    best = posterior[0]
    sd = np.sqrt(np.diag(best.covariance_A2))
    sure = rules.met(rules.deviations * sd)
    moved = best.mean_A - np.array(previous.estimate_A) if previous else np.full(3, np.inf)
    if len(posterior) == 1 and sure and rules.met(2 * moved):
        return True, f"sure: sd {sd[0]:.1f}, {sd[1]:.1f}, {sd[2]:.1f} Å, and the estimate stays"
    if n >= rules.images:
        return True, f"the {rules.images} images are spent"
    return False, ""


# --- planning -----------------------------------------------------------------------------------


def _planned(
    posterior: list[PosteriorMode], counted_A, images: int, last_A: Setting, seed: int, rules: Rules
) -> tuple[Setting, str]:
    """The candidate of the most information beside the images that count, and why."""
    x, _ = series(counted_A, np.zeros((len(counted_A), 1, 1)))
    if images == 1:
        # what one image seems to tell rests on what the object is taken for: plan for the prior
        problem = posterior[0].problem
        believed = [(problem, draw_A) for draw_A in in_prior(problem, DRAWS)]
        wanted_A = last_A + FIRST_MOVES_A
    else:
        believed = _drawn(posterior, np.random.default_rng([seed, images]))
        # as many centres for one mode as for three, so that nothing is compiled anew
        centres = [posterior[min(i, len(posterior) - 1)] for i in range(CENTRES)]
        wanted_A = np.concatenate([OFFSETS_A - mode.mean_A for mode in centres])
    candidates_A = np.stack([rules.within(w, last_A) for w in wanted_A])
    gains = np.mean(
        [
            _log_determinants(
                problem.at(dict(zip(NAMES, draw_A, strict=True))),
                x,
                jnp.asarray(candidates_A, dtype=float),
            )
            for problem, draw_A in believed
        ],
        axis=0,
    )
    best = int(np.argmax(gains))
    return candidates_A[best], f"the most informative of {len(gains)}: {gains[best]:.2f} nats"


def _drawn(posterior: list[PosteriorMode], rng) -> list[tuple[InverseProblem, Setting]]:
    """Draws from the posterior, shared out among its modes by weight."""
    shares = np.cumsum([mode.weight for mode in posterior])[:-1]
    which = [posterior[np.searchsorted(shares, (i + 0.5) / DRAWS)] for i in range(DRAWS)]
    return [(m.problem, rng.multivariate_normal(m.mean_A, m.covariance_A2)) for m in which]


@eqx.filter_jit
def _log_determinants(
    problem: InverseProblem, x: ProbeSeries, candidates_A: Float[Array, "n 3"]
) -> Float[Array, " n"]:
    """1/2 log det of the information, in units of the prior, with each candidate measured too."""
    prior = jnp.stack([problem.priors[n].variance for n in NAMES])
    so_far = evidence(problem.forward, problem.noise, x)

    def of_candidate(candidate_A):
        further = ProbeSeries(candidate_A[None], jnp.ones(1))
        added = evidence(problem.forward, problem.noise, further)
        both = jax.tree.map(jnp.add, so_far, added)
        fisher = information(problem.forward, problem.noise, both)
        scale = jnp.sqrt(prior)
        return 0.5 * jnp.linalg.slogdet(jnp.eye(3) + scale[:, None] * fisher * scale)[1]

    return jax.lax.map(of_candidate, candidates_A)


# --- the loop and its record --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class AutofocusRecord:
    """All that was measured and decided."""

    seed: int
    rules: Rules
    settings_A: list[Setting]
    images: list[Image]
    decisions: list[Decision]

    def save(self, path) -> None:
        """As HDF5: `settings_A`, `images`, and one line of JSON for each decision."""
        with h5py.File(path, "w") as file:
            file["settings_A"] = np.array(self.settings_A)
            file.create_dataset("images", data=np.array(self.images), compression="gzip")
            file["decisions"] = [json.dumps(dataclasses.asdict(d)) for d in self.decisions]
            file.attrs["seed"] = self.seed
            file.attrs["rules"] = json.dumps(dataclasses.asdict(self.rules))

    @classmethod
    def load(cls, path) -> "AutofocusRecord":
        if not pathlib.Path(path).is_file():
            raise FileNotFoundError(f"no record at {path}")
        try:
            with opened(path) as file:
                return cls(
                    int(file.root.attrs["seed"]),
                    Rules(**json.loads(file.root.attrs["rules"])),
                    list(file.array("settings_A")),
                    list(file.array("images")),
                    [Decision(**json.loads(line)) for line in file.read(file.get("decisions"))],
                )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is no record: {error}") from error

    def replayed(self, problem: InverseProblem) -> list[Decision]:
        """The decisions made again from the images and what was decided before them."""
        before = [None, *self.decisions]
        return [
            decide(
                problem, self.settings_A[:n], self.images[:n], before[n - 1], self.seed, self.rules
            )
            for n in range(1, len(self.images) + 1)
        ]


def autofocus(
    measure: Callable[[Setting], Image],
    problem: InverseProblem,
    seed: int = 0,
    rules: Rules | None = None,
    start_A: Setting | None = None,
) -> AutofocusRecord:
    """Takes images until the posterior is sure or the rules' number of images is spent.

    **Arguments:**

    - `measure`: sets the lenses (C10, C12a, C12b in Å) and returns the counts of an image.
    - `problem`: of `micjax.problems.autofocus.problem`.
    - `seed`: of the draws from the posterior.
    - `start_A`: setting of the first image; zero if not given.

    **Returns:** the record; the setting of its last decision is the corrected one.

    **Raises:** `ValueError` for an image of another shape, with NaN, or without counts.
    """
    rules = rules or Rules()
    setting_A = np.zeros(3) if start_A is None else np.asarray(start_A, float)
    record = AutofocusRecord(seed, rules, [], [], [])
    while True:
        record.settings_A.append(setting_A)
        record.images.append(_checked(measure(setting_A), problem.forward.shape))
        previous = record.decisions[-1] if record.decisions else None
        decision = decide(problem, record.settings_A, record.images, previous, seed, rules)
        record.decisions.append(decision)
        if decision.done:
            return record
        setting_A = np.array(decision.setting_A)


def _checked(image, shape: tuple[int, int]) -> Image:
    image = np.asarray(image, float)
    if image.shape != shape:
        raise ValueError(f"the image has {image.shape} pixels, the problem {shape}")
    if not np.isfinite(image).all():
        raise ValueError(f"{np.sum(~np.isfinite(image))} pixels of the image are not finite")
    if not image.mean() > 0:
        raise ValueError(f"the image holds {image.mean():.3g} counts a pixel: must be positive")
    return image
