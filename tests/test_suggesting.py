"""Where a learner measures next: two peaks, equal outcomes, failures, settings that are seen."""

import jax
import numpy as np
import pytest
from scipy.special import logsumexp

from micjax.active.acquire.values import log_expected_improvement, sd_of_next_mean
from micjax.active.gp import draws, mixture
from micjax.active.gp import process as gp
from micjax.active.gp.evidence import fit_evidence
from micjax.active.learner.belief import plain_model
from micjax.active.learner.learner import Learner
from micjax.active.learner.scores import SCORES, scores
from micjax.active.learner.space import SearchAxis, Space
from micjax.inference.errors.smc import from_priors

BOX = Space([SearchAxis("u", 0.0, 16.0), SearchAxis("v", 0.0, 16.0)])
LINE = Space([SearchAxis("u", 0.0, 1.0)])


def measured(learner, count, outcome):
    for _ in range(count):
        point = learner.suggest()[0]
        learner.ingest([{**point, "y": outcome(point)}])
    return learner.data[0]


def two_peaks(points):
    top, low = np.square(points - [11.5, 11.0]).sum(-1), np.square(points - [4.0, 4.0]).sum(-1)
    return np.exp(-top / 8.0) + 0.6 * np.exp(-low / (2.0 * 1.4**2))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 4])
def test_the_lower_of_two_peaks_is_left(seed):
    rng = np.random.default_rng([7, seed])
    learner = Learner(BOX, seed=seed)

    def outcome(point):
        at = np.array([point["u"], point["v"]])
        at = np.array([15.5, 15.0]) - at if seed == 4 else at  # the other way round
        return float(two_peaks(at) + 0.01 * rng.normal())

    points = measured(learner, 35, outcome)
    assert max(learner.data[1]) > 0.9
    apart = np.linalg.norm(points[:, None] - points, axis=-1)
    assert (apart < 0.2).sum(axis=1).max() < 20


def test_equal_outcomes_fill_the_largest_gap():
    learner = Learner(LINE, initial=3)
    points = measured(learner, 9, lambda point: 2.5)[:, 0]
    for count in range(3, 9):
        known = np.sort(points[:count])
        along = np.linspace(0.0, 1.0, 1001)
        gaps = np.abs(along[:, None] - known).min(axis=1)
        assert np.abs(points[count] - known).min() == pytest.approx(gaps.max(), abs=2e-3)


def test_what_failed_is_never_suggested_again():
    learner = Learner(LINE, initial=3)
    measured(learner, 3, lambda point: 1.0 - point["u"])
    failed = []
    for _ in range(5):
        point = learner.suggest()[0]
        assert all(abs(point["u"] - other) > 0.005 for other in failed)
        learner.register_failures([point])
        failed.append(point["u"])


def test_settings_that_can_be_counted_are_measured_once():
    axes = [SearchAxis("n", 0, 3, whole=True), SearchAxis("mode", categories=("a", "b"))]
    learner = Learner(Space(axes), initial=3)
    points = measured(learner, 8, lambda point: float(point["n"]) - (point["mode"] == "a"))
    assert len({tuple(point) for point in points.tolist()}) == 8
    assert learner.should_stop() == (True, "every candidate has been measured")


def test_nor_are_those_of_which_there_are_many_repeated():
    space = Space([SearchAxis("n", 0, 9999, whole=True)])
    assert space.candidates is None and space.countable
    learner = Learner(space, initial=3)
    learner.ingest([{"n": n, "y": -abs(n - 2.0)} for n in (0, 1, 2, 3, 4, 5, 9999)])
    points = measured(learner, 4, lambda point: -abs(point["n"] - 2.0))
    assert len(set(points[:, 0].tolist())) == len(points)


def test_a_point_without_an_id_is_that_of_its_settings():
    learner = Learner(BOX, initial=20)
    first, second, third, fourth = learner.suggest(4)
    learner.ingest([{"u": first["u"], "v": float(np.float32(first["v"])), "y": 1.0}])
    assert learner.get_best_points()[0][0] == first["_id"]
    assert list(learner._pending) == [1, 2, 3]
    learner.register_failures([{"u": second["u"], "v": second["v"]}])
    assert list(learner._pending) == [2, 3]
    learner.ingest([{"u": 3.0, "v": 3.0, "y": 0.0}])  # somebody else's
    assert list(learner._pending) == [2, 3]
    learner.register_suggestions([{"u": 5.0, "v": 5.0}, {"u": 5.0, "v": 5.0}])
    learner.ingest([{"u": 5.0, "v": 5.0, "y": 0.0}] * 2)
    assert list(learner._pending) == [2, 3]


# --- what suggests ------------------------------------------------------------------------------


def known(count=12):
    rng = np.random.default_rng(0)
    points = rng.uniform(0.0, 16.0, (count, 2))
    return points, two_peaks(points) + 0.01 * rng.normal(size=count)


def test_an_improvement_counts_as_far_as_noise_lets_it_be_told():
    np.testing.assert_allclose(sd_of_next_mean(0.3, 0.0), 0.3)
    np.testing.assert_allclose(sd_of_next_mean(0.03, 0.16), 0.03**2 / np.hypot(0.03, 0.4))
    assert float(sd_of_next_mean(1e-200, 1.0)) == 0.0
    # what the posterior mean will be after a datum, by drawing data
    points, y = known()
    process = gp.process([0.0, 0.0], [16.0, 16.0])
    state, where = gp.condition(process, *gp.buffered(points, y)), np.array([[7.0, 7.0]])
    mean, variance = (v[0] for v in gp.predict(state, where))
    noise = float(process.values()["noise.sigma"]) ** 2
    data = mean + np.sqrt(variance + noise) * np.array([-1.0, 1.0])
    after = [gp.predict(gp.append(state, where[0], datum), where)[0][0] for datum in data]
    np.testing.assert_allclose(
        np.ptp(after) / 2.0, sd_of_next_mean(variance**0.5, noise), rtol=1e-6
    )


@pytest.mark.slow
def test_draws_are_those_of_particles_from_the_prior():
    points, y = known(14)
    process = plain_model(BOX, ("linear",)).processes[0]
    observed, z = gp.buffered(points, (y - y.mean()) / y.std())
    found = draws.plausible(fit_evidence(process, observed, z), observed, z, 64)
    theta, log_evidence = from_priors(process, observed, z, jax.random.key(0), particles=512)
    particles = jax.device_get(draws._physical(theta, process))
    assert found.log_evidence == pytest.approx(float(log_evidence), abs=0.5)
    for name, values in found.values.items():
        expected = np.log(particles[name]) if name.endswith(("scale", "tude", "ma")) else None
        if expected is not None:
            apart = np.log(values).mean(axis=0) - expected.mean(axis=0)
            assert np.all(np.abs(apart) < 0.35 * expected.std(axis=0)), name


def test_a_mixture_is_the_weighted_sum_of_its_states():
    points, y = known()
    observed, z = gp.buffered(points, y)
    process = gp.process([0.0, 0.0], [16.0, 16.0])
    amplitude = np.array([0.5, 3.0])
    values = {n: np.stack([v, v]) for n, v in jax.device_get(process.values()).items()}
    values["forward.kernel.amplitude"] = amplitude
    both = mixture.conditioned([(process, values)], np.log([0.2, 0.8]), observed, z)
    states = [
        gp.condition(process.at({"forward.kernel.amplitude": jax.numpy.asarray(a)}), observed, z)
        for a in amplitude.astype(np.float32)
    ]
    means, variances = np.swapaxes([gp.predict(s, points + 1.0) for s in states], 0, 1)
    mean = [0.2, 0.8] @ means
    found = mixture.mean_and_variance(both, points + 1.0)
    np.testing.assert_allclose(found[0], mean, atol=1e-6)
    spread = [0.2, 0.8] @ (variances + (means - mean) ** 2)
    np.testing.assert_allclose(found[1], spread, atol=1e-6)
    many = np.tile(points + 1.0, (mixture.TOGETHER // 12 + 1, 1))  # more than one block
    several = mixture.mean_and_variance(both, many)[0]
    np.testing.assert_allclose(several, np.resize(found[0], len(many)), rtol=1e-9)
    expected = gp.append(states[1], [1.0, 2.0], 0.7)
    told = mixture.imagined(mixture.with_room(both, 60), (1.0, 2.0), 0.7)
    assert len(told.parts[0].y[0]) > len(both.parts[0].y[0])
    np.testing.assert_allclose(
        gp.predict(mixture.member(told, 1), points + 1.0),
        gp.predict(expected, points + 1.0),
        atol=1e-6,
    )


def test_improvement_over_several_states_is_that_of_their_mixture():
    """Of several Gaussians, and not of one with their moments."""
    points, y = known()
    learner = Learner(BOX, initial=3)
    data = [{"u": u, "v": v, "y": z} for u, v, z in np.column_stack([points, y]).tolist()]
    learner.ingest(data)
    choice, where = learner._choice(), points + 0.3
    context = choice._context(jax.random.key(0))
    each = []
    for i in range(len(choice.mixture.log_weight)):
        state = mixture.member(choice.mixture, i)
        mean, variance = gp.predict(state, where)
        best = gp.predict(state, points)[0].max()
        noise = float(state.problem.values()["noise.sigma"]) ** 2
        told = np.asarray(sd_of_next_mean(np.sqrt(variance), noise))
        each.append(log_expected_improvement(mean, told, best))
    weight = np.asarray(choice.mixture.log_weight)[:, None]
    found = scores(SCORES["log_ei"], where, choice.mixture, context)
    np.testing.assert_allclose(found, logsumexp(each + weight, axis=0), rtol=1e-5)
    assert len(np.unique(weight)) == 2
