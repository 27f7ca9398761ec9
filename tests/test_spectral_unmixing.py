"""Spectrum images: counts factorised under Poisson's law, the number of end members, files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

import micjax
from micjax.__main__ import main
from micjax.physics.patches.unmixing import corners, counts, laws
from micjax.physics.patches.unmixing.corners import end_members
from micjax.problems import unmixing
from micjax.problems.unmixing.known import known_spectra

GRID, CHANNELS = (12, 14), 60


@pytest.fixture(scope="module")
def mixture():
    """Two phases side by side, a few hundred counts a pixel: abundances, spectra, counts."""
    rng = np.random.default_rng(0)
    channel = np.arange(CHANNELS)
    h = np.stack([np.exp(-0.5 * ((channel - c) / 3.0) ** 2) + 0.02 for c in (15, 40)])
    h /= h.sum(axis=1, keepdims=True)
    share = np.clip((np.indices(GRID)[1].ravel() - 4.0) / 6.0, 0.0, 1.0)
    w = 300.0 * np.stack([1.0 - share, share], axis=1)
    return w, h, rng.poisson(w @ h).astype(float)


def multiplied(x, w, h, steps):
    """Lee and Seung's steps, in NumPy."""
    for _ in range(steps):
        w = w * ((x / (w @ h)) @ h.T) / h.sum(axis=1)
        h = h * (w.T @ (x / (w @ h))) / w.sum(axis=0)[:, None]
    return w, h


def divergence(x, w, h):
    model = np.maximum(w @ h, 1e-15)  # counts: nothing at all is expected
    return np.sum(np.where(x > 0, x * np.log(np.where(x > 0, x, 1.0) / model), 0.0) - x + model)


def factorised(x, w, h, held=(False, False), tolerance=1e-4, steps=300):
    begun = jax.device_put((np.float32(w), np.float32(h), np.array(held[: len(h)])))
    options = {"tolerance": tolerance, "steps": steps}
    factors = counts.factorise_counts(counts.count_table(x), *begun, **options)
    return factors, np.asarray(factors.abundance, float), np.asarray(factors.template, float)


def test_it_goes_below_what_multiplicative_steps_reach_and_never_up(mixture):
    _, _, x = mixture
    rng = np.random.default_rng(1)
    w, h = rng.uniform(0.5, 1.5, (len(x), 2)), rng.uniform(0.5, 1.5, (2, CHANNELS))
    reached = [
        divergence(x, *factorised(x, w, h, tolerance=0.0, steps=s)[1:]) for s in range(1, 40, 3)
    ]
    assert np.all(np.diff(reached) < 1e-6 * reached[0])
    assert reached[-1] <= divergence(x, *multiplied(x, w, h, 300)) + 0.05
    few = factorised(x, w, h, tolerance=1e-3)[0]
    assert few.residual <= 1e-3 and 5 < few.steps < 100
    sparse = scipy.sparse.csr_array(x)
    assert counts.divergence(sparse, *factorised(x, w, h)[1:]) == pytest.approx(
        divergence(x, *factorised(x, w, h)[1:]), rel=1e-9
    )


def test_one_end_member_is_the_sum(mixture):
    """Sums over pixels and channels: the maximum of the likelihood in closed form."""
    x = mixture[2].copy()
    x[3], x[:, 7] = 0.0, 0.0  # a pixel and a channel without a count
    _, w, h = factorised(x, np.ones((len(x), 1)), np.ones((1, CHANNELS)), tolerance=1e-6)
    np.testing.assert_allclose(h[0], x.sum(axis=0) / x.sum(), atol=1e-6)
    np.testing.assert_allclose(w[:, 0], x.sum(axis=1), rtol=1e-5, atol=1e-6)


def test_gradient_and_curvature_are_those_of_the_likelihood(mixture):
    w, h, x = mixture
    w = w + 5.0
    gradient, hessian = counts.curvature(
        counts.count_table(x).by_spectrum, *jax.device_put((np.float32(w), np.float32(h)))
    )

    def loss(own, row):
        model = own @ h
        return np.sum(model - x[row] * np.log(model))

    for row in (0, 80, 167):
        steps = 1e-3 * np.eye(2)
        slope = [(loss(w[row] + s, row) - loss(w[row] - s, row)) / 2e-3 for s in steps]
        np.testing.assert_allclose(gradient[row], slope, rtol=1e-3, atol=1e-4)
        expected = (h * (x[row] / (w[row] @ h) ** 2)) @ h.T
        np.testing.assert_allclose(hessian[row], expected, rtol=1e-4)


def test_held_end_members_stay(mixture):
    w, h, x = mixture
    _, _, found = factorised(x, w + 1.0, h + 0.01, held=(True, False), steps=10)
    start = (h + 0.01) / (h + 0.01).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found[0], start[0], rtol=1e-5)
    assert np.abs(found[1] - start[1]).max() > 1e-3


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_what_is_no_count_is_refused(bad):
    with pytest.raises(ValueError, match="finite and not below zero"):
        counts.count_table(np.full((3, 4), bad))
    with pytest.raises(ValueError, match="no counts in 3 spectra of 4 channels"):
        counts.count_table(np.zeros((3, 4)))


def law_of(mixture, kind):
    w, h, x = mixture
    group = laws.blocks(GRID)
    if kind == "counts":
        return laws.Counts(x, group)
    noisy = w @ h + np.random.default_rng(2).normal(0.0, 0.5, x.shape)
    return laws.Values(noisy, 0.5, group)


@pytest.mark.parametrize("kind", ["counts", "values"])
def test_the_number_of_end_members(mixture, kind):
    tried = list(laws.trials(law_of(mixture, kind), 5, np.random.default_rng(0)))
    assert laws.chosen(tried) == 2 and len(tried) == 4  # and two more that did not help
    assert tried[1].gain > 5.0 * tried[1].error > 0.0


def test_the_halves_of_a_split_are_independent(mixture):
    """Poisson's law has no memory, and a normal one none either: no correlation of what is left."""
    w, h, _ = mixture
    rng = np.random.default_rng(3)
    model = np.tile(w @ h, (30, 1))
    for law, scale in (
        (laws.Counts(rng.poisson(model).astype(float)), 0.7),
        (laws.Values(model + rng.normal(0.0, 0.5, model.shape), 0.5), 1.0),
    ):
        learnt, held, exposure = law.split(rng)
        first, second = (
            np.asarray(p.data.todense() if scale < 1 else p.data) for p in (learnt, held)
        )
        left = (first - scale * model).ravel(), (second - scale * exposure * model).ravel()
        assert abs(np.mean(left[0])) < 4.0 * np.std(left[0]) / np.sqrt(model.size)
        assert abs(np.corrcoef(*left)[0, 1]) < 4.0 / np.sqrt(model.size)


@pytest.mark.parametrize("unit", [1.0, 1e-9, 1e9])
def test_values_in_any_unit(mixture, unit):
    law = law_of(mixture, "values")
    w, h = laws.Values(unit * law.data, unit * law.sigma, law.group).factors(2)
    order = np.argsort(h.argmax(axis=1))
    np.testing.assert_allclose(h[order], mixture[1], atol=0.01)
    np.testing.assert_allclose(w[:, order] / unit, mixture[0], atol=12.0)


@pytest.mark.parametrize("kind", ["counts", "values"])
def test_surprise_is_that_of_draws(mixture, kind):
    """Of mean 0 and standard deviation 1 where the law is right; a line of its own stands out."""
    w, h, _ = mixture
    rng = np.random.default_rng(6)
    model = np.tile(w @ h, (10, 1))
    other = model.copy()
    other[7, 55] += 20.0
    drawn = {"counts": rng.poisson, "values": lambda m: m + rng.normal(0.0, 0.5, m.shape)}[kind]
    law = {"counts": laws.Counts, "values": lambda d: laws.Values(d, 0.5)}[kind]
    expected = law(drawn(model).astype(float)).surprise(np.tile(w, (10, 1)), h)
    assert abs(expected.mean()) < 0.1 and expected.std() == pytest.approx(1.0, abs=0.1)
    unlike = law(drawn(other).astype(float)).surprise(np.tile(w, (10, 1)), h)
    assert np.argmax(unlike) == 7 and unlike[7] > 4.0


def test_errors_of_abundances_are_those_of_repeats(mixture):
    w, h, _ = mixture
    rng, keep = np.random.default_rng(4), slice(5 * 14 + 6, 5 * 14 + 9)  # where both phases are
    found = []
    for _ in range(60):
        law = laws.Counts(rng.poisson(w[keep] @ h).astype(float))
        found.append(law.refined(w[keep], h, np.ones(2, bool))[0])
    sd = laws.Counts(np.round(w[keep] @ h)).abundance_sds(w[keep], h)
    np.testing.assert_allclose(np.std(found, axis=0), sd, rtol=0.35)


# --- corners -----------------------------------------------------------------------------------


def test_a_mean_over_a_face_is_that_of_many_points():
    """Exact on corners and edges; on triangles within a fifth for points near them."""
    rng = np.random.default_rng(7)
    mixing = np.array([[1.1, -0.1, 0.0], [0.05, 0.9, 0.05], [-0.1, 0.0, 1.1]])
    points = np.array([[0.6, 0.3, 0.1], [0.3, 0.4, 0.3], [0.9, 0.05, 0.05]])
    information = np.tile(np.array([[900.0, 100, 0], [100, 800, 50], [0, 50, 400]]), (3, 1, 1))
    logs = corners.face_logs(*(jnp.asarray(v) for v in (mixing, points, information)))
    for j, face in enumerate(ways := corners.ways(3)):
        shares = rng.dirichlet(np.ones(len(face)), 200_000)
        weight = np.ones(len(shares))
        if len(face) == 2:  # densities that rise to the first corner come before the others
            weight = 2.0 * shares[:, int(face in ways[:j])]
        for p in range(3):
            apart = shares @ mixing[list(face)] - points[p]
            misfit = np.einsum("nk,kl,nl->n", apart, information[p], apart)
            expected = np.log(np.mean(weight * np.exp(-0.5 * misfit)))
            assert logs[p, j] == pytest.approx(expected, abs=0.2 if len(face) == 3 else 0.05)


def noisy_shares(true, mixing, sd):
    """Shares of spectra in end members that are not the corners, and their information."""
    rng = np.random.default_rng(8)
    u = true @ mixing + sd * rng.standard_normal(true.shape)
    u += (1.0 - u.sum(axis=1, keepdims=True)) / true.shape[1]
    return u, np.tile(np.eye(true.shape[1]) / sd**2, (len(u), 1, 1))


def test_corners_are_where_spectra_gather_whatever_the_noise():
    """Not at the points farthest out, and no larger than the shares want; one that is known
    stays."""
    rng = np.random.default_rng(9)
    edge = rng.uniform(0.0, 1.0, (80, 1))
    true = np.concatenate(
        [np.repeat(np.eye(2), 60, axis=0), np.concatenate([edge, 1.0 - edge], axis=1)]
    )
    mixing = np.array([[0.8, 0.2], [0.3, 0.7]])
    u, information = noisy_shares(true, mixing, 0.05)
    start = u[laws.purest(u, 2)]
    fitted = corners.corners(u, information, start, np.zeros(2, bool))
    order = np.argsort(-fitted.mixing[:, 0])
    error = np.sqrt([fitted.covariance[k, 1 - k, k, 1 - k] for k in order])
    assert np.all(fitted.alone > corners.SEEN)
    apart = (fitted.mixing[order] @ np.linalg.inv(mixing))[[0, 1], [1, 0]]
    assert np.all(np.abs(apart) < 3.0 * error) and np.all(error < 0.03)
    u = true @ np.array([[1.0, 0.0], [0.3, 0.7]]) + (u - true @ mixing)
    fitted = corners.corners(u, information, np.eye(2), np.array([True, False]))
    np.testing.assert_allclose(fitted.mixing[0], [1.0, 0.0], atol=1e-12)
    assert fitted.mixing[1, 0] == pytest.approx(0.3, abs=0.03)
    assert fitted.covariance[0].max() == 0.0


def test_what_is_never_seen_alone_may_lie_further_out():
    """A particle of which half is matrix at most: it is told, and the interval has the truth."""
    rng = np.random.default_rng(10)
    h = np.zeros((2, 20)) + 0.005
    h[0, 3], h[1, 12] = 1.0, 1.0
    h /= h.sum(axis=1, keepdims=True)
    largest = rng.uniform(0.3, 0.5, 150)
    share = np.concatenate([np.zeros(100), largest * np.sqrt(rng.uniform(0.0, 1.0, 150))])
    w = 2000.0 * np.stack([1.0 - share, share], axis=1)
    law = laws.Counts(rng.poisson(w @ h).astype(float), np.arange(250) // 2, np.arange(250))
    apart = end_members(law, 2)
    order = np.argsort(apart.h.argmax(axis=1))
    assert (apart.alone[order] > corners.SEEN).tolist() == [True, False]
    assert np.abs(apart.h[order] - h)[1, 3] < 1.645 * apart.spectrum_sd[order][1, 3]
    assert apart.spectrum_sd[order][1, 3] > 10.0 * apart.spectrum_sd[order][0, 3]
    assert apart.h[order][1, 3] < 0.25  # nearer than the purest pixel, which has a half


def test_one_end_member_has_no_corner_to_find(mixture):
    x = mixture[2]
    alone = end_members(law_of(mixture, "counts"), 1)
    np.testing.assert_allclose(alone.h[0], x.sum(axis=0) / x.sum(), atol=1e-5)
    expected = np.sqrt(x.sum(axis=0)) / x.sum()
    np.testing.assert_allclose(alone.spectrum_sd[0], expected, rtol=0.1)
    assert alone.abundance_sd[:, 0] == pytest.approx(np.sqrt(x.sum(axis=1)), rel=1e-3)


def test_sums_that_are_not_above_nothing_are_refused(mixture):
    w, h, x = mixture
    with pytest.raises(ValueError, match="0 of 168 spectra.*too few for 2 end members"):
        laws.Values(-x, 1.0).shares(w, h)


@pytest.mark.parametrize("kind", ["counts", "values"])
def test_known_end_members_are_held_and_the_others_are_there(mixture, kind):
    w, h, _ = mixture
    apart = end_members(law_of(mixture, kind), 2, h[1:])
    np.testing.assert_allclose(apart.h, h[::-1], atol=0.012)
    np.testing.assert_allclose(apart.h[0], h[1], atol=1e-6)
    assert apart.spectrum_sd[0].max() == 0.0 < apart.spectrum_sd[1].min()
    np.testing.assert_allclose(apart.w.mean(axis=0), w[:, ::-1].mean(axis=0), rtol=0.03)
    tried = list(laws.trials(law_of(mixture, kind), 5, np.random.default_rng(0), h))
    assert [t.count for t in tried] == [2, 3, 4] and laws.chosen(tried) == 2


@pytest.mark.parametrize("size", [(7, 5), (30, 40), (1, 900), (80, 80)])
def test_blocks_of_neighbours(size):
    group = laws.blocks(size).reshape(size)
    assert group.max() < 150 and len(np.unique(group)) == group.max() + 1
    if group.size <= 150:
        assert group.max() + 1 == group.size
    assert group[0, 0] == 0 and np.all(np.diff(group, axis=1) >= 0)


# --- the problem --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def solved(mixture):
    options = {"ny": GRID[0], "nx": GRID[1], "channels": CHANNELS, "most_components": 4}
    x = jnp.asarray(np.delete(np.arange(GRID[0] * GRID[1]), 20))  # a pixel is missing
    y = jnp.asarray(mixture[2])[x]
    problem = unmixing.problem(**options, level=float(y.mean()))
    return micjax.solve(unmixing, problem, x, y, key=jax.random.key(0)), x, y


def test_maps_and_spectra_come_back(solved, mixture):
    solution, _, _ = solved
    abundance, spectrum = solution.results["abundance"], solution.results["spectrum"]
    order = np.argsort(spectrum.data.argmax(axis=1))
    assert abundance.data.shape == (2, *GRID) == abundance.metadata["errors"].shape
    assert np.isnan(abundance.data[:, 1, 6]).all() and np.isnan(abundance.data).sum() == 2
    np.testing.assert_allclose(spectrum.data[order], mixture[1], atol=0.012)
    true = mixture[0].T.reshape(2, *GRID)
    apart = (abundance.data[order] - true) / abundance.metadata["errors"][order]
    assert np.mean(np.abs(apart[(true > 0.0) & np.isfinite(apart)]) < 1.645) > 0.82
    assert solution.metrics["chi_squared_per_datum"] == pytest.approx(1.0, abs=0.1)
    assert "2 end members: one more" in solution.statements[0]
    assert {*unmixing.figures(solution, None, solved[2])} == {
        "Maps",
        "Spectra",
        "Number of end members",
    }


def test_the_comparison_has_the_simple_ways(solved, mixture):
    solution, x, y = solved
    w, h, _ = mixture
    truth = unmixing.problem(*GRID, CHANNELS, 2).at(
        {"forward.abundance": w + 1e-3, "forward.spectrum": h}
    )
    rows = unmixing.compare(solution, x, y, truth)
    nothing, least_squares, ours = (row["error of shares"] for row in rows)
    assert ours < 0.03 < nothing and ours <= least_squares + 0.005
    assert rows[2]["angle of spectra (deg)"] < 6.0


@pytest.mark.parametrize(
    ("cube", "options", "said"),
    [
        (np.zeros((4, 5)), {}, "all values the same"),
        (np.full((4, 4, 5), np.nan), {}, "0 of 16 spectra are finite"),
        (np.ones(5), {}, "spectra .y, x, channel. or .x, channel. are needed"),
        (
            np.arange(20.0).reshape(2, 2, 5),
            {"signal_min": 9.0},
            "0 channels of an axis from 0 to 4",
        ),
        (np.full((2, 2, 5), 0.5) + np.eye(5)[0], {"noise": "poisson"}, "which are no counts"),
    ],
)
def test_files_that_are_no_spectra(tmp_path, cube, options, said):
    np.save(tmp_path / "cube.npy", cube)
    with pytest.raises(ValueError, match=said):
        unmixing.load(tmp_path / "cube.npy", **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"noise": "gauss"}, "one of poisson, normal"),
        (
            {"components": 9, "channels": 4},
            "9 end members of 2304 pixels with 4 channels: at most 4",
        ),
    ],
)
def test_problems_that_are_none(options, said):
    with pytest.raises(ValueError, match=said):
        unmixing.problem(**options)


def saved(path, spectra, start=0.5, step=0.05, unit="keV"):
    spectra = np.asarray(spectra, float)
    along = micjax.io.FieldAxis("energy", start + step * np.arange(spectra.shape[-1]), unit)
    axes = (
        (along,)
        if spectra.ndim == 1
        else (micjax.io.FieldAxis("component", np.arange(len(spectra)), ""), along)
    )
    micjax.io.write_nexus(path, {"spectrum": micjax.io.Field(spectra, axes, "", "spectrum")})
    return str(path)


def test_known_spectra_come_from_a_file_with_any_step(tmp_path, mixture):
    h = mixture[1]
    axis = micjax.io.FieldAxis("energy", 0.5 + 0.05 * np.arange(CHANNELS), "keV")
    same = saved(tmp_path / "same.nxs", 7.0 * h)
    np.testing.assert_allclose(known_spectra(same, axis), h, atol=1e-6)
    half = np.repeat(h, 2, axis=1)  # channels of half the width
    finer = saved(tmp_path / "finer.nxs", half, start=0.4875, step=0.025)
    np.testing.assert_allclose(known_spectra(finer, axis), h, atol=1e-6)
    np.save(tmp_path / "bare.npy", h[0])
    np.testing.assert_allclose(known_spectra(tmp_path / "bare.npy", axis), h[:1], atol=1e-6)
    problem = unmixing.problem(*GRID, CHANNELS, 3, known=same)
    assert problem.forward.known.shape == (2, CHANNELS)


@pytest.mark.parametrize(
    ("spectra", "options", "said"),
    [
        (np.full(60, np.nan), {}, "60 values of the known spectra are not finite"),
        (-np.ones(60), {}, "down to -1; none may be below zero"),
        (np.zeros(60), {}, "spectrum 0 has nothing in these channels"),
        (np.ones((2, 60)), {}, "some are the same or mixtures"),
        (np.ones(60), {"start": 1.0}, "does not reach over the channels from 0.5 to 3.45 keV"),
        (np.ones(60), {"unit": "eV"}, "60 channels in eV; the spectrum image has 60 in keV"),
        (np.ones(59), {"unit": ""}, "59 channels in no unit"),
        (np.ones((3, 60)) + np.eye(60)[:3], {}, "3 known end members, and room for 2"),
    ],
)
def test_known_spectra_that_are_none(tmp_path, spectra, options, said):
    path = saved(tmp_path / "known.nxs", spectra, **options)
    with pytest.raises(ValueError, match=said):
        unmixing.problem(*GRID, CHANNELS, 2, known=path)


def test_a_matrix_that_is_known(tmp_path, mixture, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("cube.npy", mixture[2].reshape(*GRID, CHANNELS))
    np.save("known.npy", mixture[1][:1])
    assert main(["fit", "unmixing", "cube.npy", "--set", "known=known.npy", "--out", "r"]) == 0
    printed = capsys.readouterr().out
    assert (
        "2 end members: one more" in printed and "Known, and not changed: component 0." in printed
    )
    spectra = micjax.io.read("r/result.nxs", "spectrum").data
    np.testing.assert_allclose(spectra[0], mixture[1][0], atol=1e-5)
    np.testing.assert_allclose(spectra[1], mixture[1][1], atol=0.012)


@pytest.mark.parametrize("noise", ["poisson", "normal"])
def test_a_file_becomes_a_report(tmp_path, mixture, monkeypatch, capsys, noise):
    monkeypatch.chdir(tmp_path)
    beyond = np.full((len(mixture[2]), 5), 400.0)
    cube = np.concatenate([mixture[2], beyond], axis=1).reshape(*GRID, CHANNELS + 5)
    np.save("cube.npy", cube if noise == "poisson" else cube * 1e-9)
    settings = [w for s in ("components=2", "signal_max=59") for w in ("--set", s)]
    assert main(["fit", "unmixing", "cube.npy", *settings, "--out", "r"]) == 0
    assert "2 end members, as was asked for." in capsys.readouterr().out
    field = micjax.io.read("r/result.nxs")
    assert field.data.shape == (2, *GRID)
    assert micjax.io.read("r/result.nxs", "spectrum").data.shape == (2, CHANNELS)
    assert (
        f'"noise": "{noise}"' in (tmp_path / "r/report.html").read_text()
        or noise in (tmp_path / "r/log.txt").read_text()
    )
