"""Ionisation edges, plural scattering and X-ray lines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from micjax.core.problem import InverseProblem
from micjax.physics.noise import Gaussian
from micjax.physics.spectra import atomic, edges, plural, scales, x_ray

ENERGIES = jnp.asarray(np.linspace(450.0, 1000.0, 551))
# HydrogenicGOS of exspy 0.3.2, its integrand at these energies: shell, beam (keV), semiangle
# (mrad), L3 and L1 onsets (eV), energies, barn/eV. It rounds 4 pi a0^2 to 3.5166e8 barn
EXSPY = [
    ("C", "K", 100, 10, None, None, [284, 300, 350, 400, 600])
    + ([109.5554, 88.03774, 47.0732, 27.00554, 4.6182],),
    ("O", "K", 200, 30, None, None, [532, 550, 600, 800])
    + ([27.30548, 24.33642, 17.9619, 6.356637],),
    ("Al", "K", 300, 100, None, None, [1560, 1700, 2500]) + ([2.204317, 1.679165, 0.5019002],),
    ("Ti", "L3", 100, 10, 456, 564, [456, 470, 500, 600, 800])
    + ([44.50981, 74.44844, 66.14523, 41.54956, 12.81111],),
    ("Fe", "L3", 200, 30, 708, 846, [708, 720, 800, 900, 1200])
    + ([10.39864, 23.21012, 22.83506, 20.51298, 8.259436],),
    ("Cu", "L3", 300, 100, 931, 1096, [931, 1000, 1200]) + ([7.148676, 14.0604, 11.48176],),
]
BOTH = pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])


@BOTH
@pytest.mark.parametrize("case", EXSPY, ids=lambda c: c[0] + c[1])
def test_cross_sections_against_exspy(case, dtype):
    symbol, shell, beam, angle, l3, l1, energies, expected = case
    Z, energies = atomic.atomic_number(symbol), jnp.asarray(energies, dtype)
    numbers = [jnp.asarray(v, dtype) for v in (beam, angle)]
    if shell == "K":
        values = edges.k_cross_section_barn_per_eV(energies, jnp.asarray(Z, dtype), *numbers)
    else:
        known = [jnp.asarray(v, dtype) for v in (Z, edges.L_EXPONENTS[Z - 11], l3, l1)]
        values = edges.l_cross_section_barn_per_eV(energies, *known, *numbers)
    assert values.dtype == dtype
    within = 1e-4 if dtype == jnp.float64 else 1.2e-4
    np.testing.assert_allclose(values / (edges.BARN / 3.5166e8), expected, rtol=within)


def test_cross_sections_by_name():
    onset = atomic.edge_energy_eV("Fe", "L3")
    assert onset == 706.8
    by_name = edges.cross_section_barn_per_eV("Fe", "L3", np.asarray(ENERGIES), 200.0, 30.0)
    moved = edges.cross_section_barn_per_eV("Fe", "L3", np.asarray(ENERGIES), 200.0, 30.0, 708.0)
    assert by_name.shape == (551,) and (by_name > 0).all()
    # the L1 edge comes in as a step up, which moves with that of L3
    assert (
        abs(int(jnp.argmax(jnp.diff(moved[300:])) - jnp.argmax(jnp.diff(by_name[300:]))) - 1) <= 1
    )
    with pytest.raises(ValueError, match="'K' and 'L3'"):
        edges.cross_section_barn_per_eV("Fe", "L2", np.asarray(ENERGIES), 200.0, 30.0)
    with pytest.raises(ValueError, match="positive"):
        edges.cross_section_barn_per_eV("Fe", "K", np.asarray([0.0, 1.0]), 200.0, 30.0)
    with pytest.raises(ValueError, match="begin with Na|no edge"):
        edges.cross_section_barn_per_eV("O", "L3", np.asarray(ENERGIES), 200.0, 30.0)
    with pytest.raises(ValueError, match="no element 'Fr2'"):
        atomic.edge_energies_eV("Fr2")


def test_the_cross_section_is_smooth_at_the_hydrogenic_limit():
    """E = R (Z - 1/2)^2, where the formula changes from one function to another."""
    limit = 13.605693 * 5.5**2
    energies = jnp.asarray(np.linspace(limit - 20, limit + 20, 401))
    values = edges.k_cross_section_barn_per_eV(energies, 6.0, 100.0, 10.0)
    relative = np.diff(np.log(values))
    np.testing.assert_allclose(relative, np.mean(relative), rtol=0.05)


def test_effective_semiangle():
    """exspy 0.3.2: 26.341039 and 29.156387 mrad."""
    values = [
        edges.effective_semiangle_mrad(532.0, 200.0, a, b) for a, b in ((20.0, 30.0), (30.0, 10.0))
    ]
    np.testing.assert_allclose(values, [26.341038609, 29.156386529], rtol=1e-6)
    assert edges.effective_semiangle_mrad(532.0, 200.0, 0.0, 30.0) == 30


def test_an_edge_is_a_forward_model():
    x = np.asarray(ENERGIES)
    edge = edges.IonisationEdge.of("O", "K", x, 200.0, 30.0, fine_offsets_eV=(6.0, 12.0))
    call = jax.jit(lambda edge: edge(ENERGIES))
    y = call(edge)
    assert (y[x < 525] < 1e-9).all() and y[x > 540].min() > 1.0
    sigma = edge.cross_section_barn_per_eV
    np.testing.assert_allclose(y[100:], sigma[100:])
    fine = call(edges.IonisationEdge(2.0, 532.0, 1.0, sigma, [5.0, 3.0], [6.0, 12.0]))
    np.testing.assert_allclose((fine - 2 * y)[88], 2 * 5.0, rtol=1e-6)
    priors = edge.priors(x, 1e9 * y)
    assert set(priors) == {"amount", "onset_eV", "fwhm_eV", "fine_heights"}
    np.testing.assert_allclose(priors["amount"].mean / edge.priors(x, y)["amount"].mean, 1e9)
    problem = InverseProblem(edge, Gaussian(0.1), scales.under("forward", priors))
    assert problem.values()["forward.fine_heights"].shape == (2,)
    slope = jax.jvp(
        lambda onset: call(edges.IonisationEdge(1.0, onset, 1.0, sigma)), (532.0,), (1.0,)
    )[1]
    up, down = (call(edges.IonisationEdge(1.0, 532.0 + d, 1.0, sigma)) for d in (1e-4, -1e-4))
    np.testing.assert_allclose(slope, (up - down) / 2e-4, atol=1e-3)
    with pytest.raises(ValueError, match="was made for"):
        edge(ENERGIES[1:])


@BOTH
def test_white_lines(dtype):
    lines = edges.WhiteLines.of("Mn", 2.0)
    np.testing.assert_allclose([lines.onset_eV, lines.splitting_eV], [638.7, 11.2], rtol=1e-9)
    lines = jax.tree.map(lambda a: a.astype(dtype), lines)
    wide = jnp.linspace(-20000.0, 20000.0, 400001, dtype=dtype)
    values = jax.jit(lambda lines: lines(wide + 640.0))(lines)
    assert values.dtype == dtype
    # the areas of both lines: a Lorentzian has pi/2 height fwhm
    l3, l2 = 2 / 3 / 3.0, 1 / 3 / 3.5
    expected = np.pi / 2 * 2.0 * (l3 * 3.0 + l2 * 3.5) / (l3 + l2)
    np.testing.assert_allclose(jnp.sum(values) * 0.1, expected, rtol=1e-3)
    np.testing.assert_allclose(lines.l3_to_l2(), 2.0, rtol=1e-6)
    steps = edges.white_lines(jnp.asarray([-1e7, 1e7], dtype), 2.0, 640.0, 11.0, 0.7, 3.0, 3.5, 0.4)
    np.testing.assert_allclose(steps, [0.0, 0.4], atol=1e-5)
    x = np.asarray(ENERGIES)
    y = np.asarray(jax.jit(lambda lines: lines(ENERGIES))(edges.WhiteLines.of("Mn", 2.0)))
    assert set(lines.priors(x, y)) == {
        *("height", "onset_eV", "splitting_eV", "branching_ratio", "fwhm_eV", "fwhm_l2_eV", "step")
    }


# --- plural scattering ---------------------------------------------------------------------------


@BOTH
def test_with_low_loss(dtype):
    """As numpy.convolve, of a low loss a pixel; a core loss behind a zero-loss peak alone stays."""
    rng = np.random.default_rng(0)
    single, low = rng.random((2, 70)).astype(dtype), rng.random((2, 41)).astype(dtype)
    run = jax.jit(plural.with_low_loss, static_argnums=2)
    values = run(jnp.asarray(single), jnp.asarray(low), 9)
    assert values.dtype == dtype
    expected = [np.convolve(s, k / k.sum())[9:79] for s, k in zip(single, low, strict=True)]
    within = 1e-6 if dtype == jnp.float32 else 1e-12
    np.testing.assert_allclose(values, expected, atol=within)
    delta = np.zeros((1, 41), dtype)
    delta[0, 9] = 3e9
    same = run(jnp.asarray(single[:1]), jnp.asarray(delta), 9)
    np.testing.assert_allclose(same, single[:1], atol=within)


def test_plural_scattering_and_thickness():
    """Poisson orders, and back to t / lambda by the logarithm."""
    energy = np.arange(-20, 480) * 0.5
    zero_loss = np.exp(-((energy / 0.6) ** 2))
    single = np.where(energy > 6, np.exp(-(((energy - 20) / 4) ** 2)), 0.0)
    for thickness in (0.3, 1.4):
        y = plural.plural_scattering(jnp.asarray(zero_loss), jnp.asarray(single), thickness, 20)
        expected = zero_loss * np.exp(-thickness)
        order, share = zero_loss, np.exp(-thickness)
        for k in range(1, 9):
            order = np.convolve(order, single / single.sum())[20:520]
            share = share * thickness / k
            expected = expected + share * order
        np.testing.assert_allclose(y, expected, atol=2e-5)
        found_back = plural.thickness_of(y, jnp.asarray(energy), 4.0)
        np.testing.assert_allclose(found_back, thickness, rtol=1e-3)
    np.testing.assert_allclose(plural.log_ratio_thickness(np.e * 3.0, 3.0), 1.0)


def test_mean_free_paths():
    """exspy 0.3.2 (Iakoubovskii, at 3 g/cm3 and 200 keV): 144.378654 nm with semiangles of 10 and
    30 mrad. Malis et al. by hand: carbon at 100 keV and 10 mrad."""
    value = plural.mean_free_path_iakoubovskii_nm(3.0, 200.0, 10.0, 30.0)
    np.testing.assert_allclose(value, 144.3786540339339, rtol=1e-9)
    mean = 7.6 * 6**0.36
    F = (1 + 100 / 1022) / (1 + 100 / 511) ** 2
    expected = 106 * F * 100 / mean / np.log(2 * 10 * 100 / mean)
    np.testing.assert_allclose(plural.mean_free_path_malis_nm(6.0, 100.0, 10.0), expected)
    assert 100 < expected < 120


# --- X rays --------------------------------------------------------------------------------------


def test_tables():
    for symbol in ("B", "C", "O", "Al", "Si", "Ti", "Fe", "Cu", "Sr", "Ag", "La", "Pb", "U"):
        lines = atomic.x_ray_lines(symbol)
        shells = atomic.edge_energies_eV(symbol)
        for family in {line.family for line in lines}:
            total = sum(line.share for line in lines if line.family == family)
            np.testing.assert_allclose(total, 1.0, atol=0.03, err_msg=f"{symbol} {family}")
        for line in lines:
            edge = max(
                v for shell, v in shells.items() if shell[0] == line.family or line.family == "M"
            )
            assert line.energy_keV * 1e3 < edge or line.family == "M"
    by_name = {line.name: line for line in atomic.x_ray_lines("Fe")}
    # measured 6.40384 and 7.05798 keV (Bearden 1967); K beta is 0.12 to 0.14 of the family
    np.testing.assert_allclose(by_name["Ka1"].energy_keV, 6.40384, atol=2e-3)
    np.testing.assert_allclose(by_name["Kb1"].energy_keV, 7.05798, atol=2e-3)
    assert 0.11 < by_name["Kb1"].share < 0.15
    with pytest.raises(ValueError, match="no element with X-ray lines"):
        atomic.x_ray_lines("H")


@BOTH
def test_x_ray_family(dtype):
    noise = x_ray.noise_fwhm_keV(0.130)
    np.testing.assert_allclose(x_ray.detector_fwhm_keV(x_ray.MANGANESE_KEV, noise), 0.130)
    # silicon detectors of 130 eV at Mn have 75 to 80 eV at Al
    assert 0.070 < x_ray.detector_fwhm_keV(1.486, noise) < 0.080
    iron = jax.tree.map(lambda a: a.astype(dtype), x_ray.XRayFamily.of("Fe", "K", 3.0))
    energy = jnp.linspace(0.0, 10.0, 1001, dtype=dtype)
    y = jax.jit(lambda iron: iron(energy))(iron)
    assert y.dtype == dtype
    np.testing.assert_allclose(jnp.sum(y) * 0.01, 3.0, rtol=1e-4)
    assert abs(float(energy[jnp.argmax(y)]) - 6.40) < 0.02
    with pytest.raises(ValueError, match="no family 'M' in the table; there are"):
        x_ray.XRayFamily.of("Fe", "M")
    priors = iron.priors(np.asarray(energy, float), 1e-9 * np.asarray(y, float))
    assert set(priors) == {"area"} and priors["area"].mean < 1e-8


def test_escape_and_background():
    energy = jnp.asarray(np.linspace(0.01, 12.0, 1200))
    lines, areas = jnp.asarray([6.4, 1.0]), jnp.asarray([3.0, 2.0])
    spectrum = jax.jit(lambda areas: x_ray.x_ray_spectrum(energy, lines, areas, 0.05, escape=0.01))
    y = spectrum(areas)
    near = (energy > 4.3) & (energy < 5.0)
    np.testing.assert_allclose(jnp.sum(jnp.where(near, y, 0.0)) * 0.01, 0.03, rtol=1e-3)
    np.testing.assert_allclose(jnp.sum(y) * 0.01, 5.0, rtol=1e-3)
    background = x_ray.kramers(jnp.asarray([-1.0, 0.0, 5.0, 10.0, 11.0]), 2.0, 10.0, 0.5)
    np.testing.assert_allclose(background, [0, 0, 2 * np.exp(-1e-3), 0, 0], rtol=1e-9)
    slope = jax.jit(jax.jacfwd(x_ray.kramers, (1, 3)))(energy, 2.0, 10.0, 0.5)
    assert np.isfinite(slope).all()
    made = x_ray.Bremsstrahlung(2.0, 10.0)
    assert set(made.priors(np.asarray(energy), np.asarray(made(energy)))) == {"level", "cutoff_keV"}
