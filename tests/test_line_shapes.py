"""Line shapes, backgrounds, loops, composed models, and the guesses and priors of their fits."""

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import lambertw, wofz

from micjax.core.problem import InverseProblem, check_start, neg_log_joint
from micjax.core.tree import named_leaves
from micjax.physics.noise import Gaussian
from micjax.physics.spectra import backgrounds, guesses, loops, scales
from micjax.physics.spectra import line_shapes as lines
from micjax.physics.spectra.composed import Convolved, ProductOf, References, SumOf

X = np.linspace(-4.0, 6.0, 301)
COMPONENTS = {
    "gaussian": lines.GaussianLine(1.3, 0.4, 1.1),
    "lorentzian": lines.LorentzianLine(1.3, 0.4, 1.1),
    "pseudo-Voigt": lines.PseudoVoigtLine(1.3, 0.4, 1.1, 0.3),
    "Voigt": lines.VoigtLine(1.3, 0.4, 1.1, 0.5),
    "Voigt, all but Gaussian": lines.VoigtLine(1.3, 0.4, 1.1, 1e-4),
    "Fano": lines.FanoLine(1.3, 0.4, 1.1, -1.7),
    "Doniach-Sunjic": lines.DoniachSunjicLine(1.3, 0.4, 1.1, 0.12),
    "step": lines.EdgeStep(1.3, 0.4, 1.1),
    "level": backgrounds.Level(0.7),
    "straight line": backgrounds.StraightLine(0.7, -0.1, 1.0),
    "power law": backgrounds.PowerLaw(0.7, 2.6, 3.0),
    "exponential": backgrounds.ExponentialDecay(0.7, 2.0, -1.0),
    "stretched": backgrounds.StretchedDecay(0.7, 2.0, 0.6, -1.0),
    "loop": loops.FerroelectricLoop(-1.2, 2.5, -1.03, 3.11, 0.05, 1.5, 0.7, 0.9, 1.2),
    "diode": loops.Diode(1e-6, 1.4, 30.0, 1e5),
    "ohmic": loops.Ohmic(0.3, 0.01),
}
NAMED = pytest.mark.parametrize("component", COMPONENTS.values(), ids=COMPONENTS)
BOTH = pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])


def cast(tree, dtype):
    return jax.tree.map(lambda a: a.astype(dtype), tree)


call = jax.jit(lambda component, x: component(x))


@BOTH
@pytest.mark.parametrize("y", [1e-8, 1e-4, 1e-2, 0.3, 1.0, 4.68, 4.69, 30.0, 1e4])
def test_voigt_function(y, dtype):
    x = np.concatenate([np.linspace(-8, 8, 1501), np.logspace(0.9, 6, 100)]).astype(dtype)
    y = np.asarray(y, dtype)
    values = jax.jit(lines.voigt_function)(jnp.asarray(x), jnp.asarray(y))
    assert values.dtype == dtype
    expected = wofz(x.astype(float) + 1j * float(y)).real
    np.testing.assert_allclose(values, expected, rtol=2e-6 if dtype == jnp.float32 else 2e-7)


@jax.jit
def tangent(x, y):
    by_x = jax.jvp(lambda x: lines.voigt_function(x, y), (x,), (jnp.ones_like(x),))[1]
    return by_x, jax.jvp(lambda y: lines.voigt_function(x, y), (y,), (jnp.ones_like(y),))[1]


@BOTH
def test_the_slopes_of_the_voigt_function(dtype):
    """dw/dz = -2 z w + 2 i / sqrt(pi), to the largest slope at each y and in the wings by ratio."""
    x = np.concatenate([np.linspace(0.01, 6, 201), [300.0, 1e4]])
    for y in (1e-6, 1e-3, 0.2, 3.0):
        w = wofz(x + 1j * y)
        slope = -2 * (x + 1j * y) * w + 2j / np.sqrt(np.pi)
        far = x > 6
        expected_x = np.where(far, -2 * y / np.sqrt(np.pi) / x**3, slope.real)
        by_x, by_y = tangent(jnp.asarray(x, dtype), jnp.asarray(y, dtype))
        within = 2e-5 if dtype == jnp.float32 else 1e-6
        np.testing.assert_allclose(by_x, expected_x, atol=within)
        np.testing.assert_allclose(by_x[-2:], expected_x[-2:], rtol=5e-4)
        np.testing.assert_allclose(by_y, -slope.imag, atol=within)


@pytest.mark.parametrize("name", ["gaussian", "lorentzian", "pseudo-Voigt", "Voigt"])
def test_area_height_and_width(name):
    line = COMPONENTS[name]
    half = line.fwhm() if callable(line.fwhm) else line.fwhm
    at = call(line, line.centre + half * jnp.asarray([0.0, 0.5, -0.5]))
    np.testing.assert_allclose(at / line.height, [1.0, 0.5, 0.5], rtol=3e-4)
    t = np.linspace(-1.0, 1.0, 20001)[1:-1]  # x = t / (1 - t^2) takes in the wings
    x, dx = t / (1 - t**2), (1 + t**2) / (1 - t**2) ** 2
    area = np.sum(np.asarray(call(line, jnp.asarray(x))) * dx) * (t[1] - t[0])
    np.testing.assert_allclose(line.area(), area, rtol=1e-3)


def test_against_lmfit():
    """lmfit 1.3.4, over the value at the centre; its doniach has the tail towards small x."""
    x = jnp.asarray([-3.0, -1.0, 0.0, 0.5, 2.0])
    mirrored = lines.doniach_sunjic(-x, 1.0, -0.2, 1.2, 0.1)
    expected = [0.10222877, 0.32778067, 0.95711901, 0.76879643, 0.10257825]
    np.testing.assert_allclose(mirrored, expected, rtol=1e-6)
    sigma, gamma = 0.5, 0.3
    voigt = lines.voigt(x, 1.0, 0.2, np.sqrt(8 * np.log(2)) * sigma, 2 * gamma)
    expected = [0.01909026, 0.21852063, 0.95096542, 0.8935506, 0.07428121]
    np.testing.assert_allclose(voigt, expected, rtol=1e-6)


def test_fano():
    x, q = jnp.asarray([0.4 + 1.1 / 2 / -1.7, 0.4 + 1.7 * 1.1 / 2, 1e9]), -1.7
    values = lines.fano(x, 1.3, 0.4, 1.1, q)
    np.testing.assert_allclose(values, [1.3, 0.0, 1.3 / (1 + q**2)], rtol=1e-7, atol=1e-12)


@NAMED
def test_slopes_in_either_precision(component):
    """Forward slopes by every parameter, against finite differences of values in float64; of a
    batch in one program; in float32 as in float64."""
    x = jnp.asarray(np.linspace(0.1, 6.0, 41))
    flat, unravel = jax.flatten_util.ravel_pytree(component)
    steps = 1e-5 * np.diag(np.maximum(np.abs(flat), 1e-3))
    batch = np.concatenate([np.asarray(flat) + steps, np.asarray(flat) - steps])

    def both(vector, x):
        made = unravel(vector.astype(float))
        made = cast(made, vector.dtype)
        return made(x), jax.jvp(lambda m: m(x), (made,), (made,))[1]

    run = jax.jit(jax.vmap(both, (0, None)))
    values, along = run(jnp.asarray(batch), x)
    slopes = (values[: flat.size] - values[flat.size :]) / (2 * np.diag(steps)[:, None])
    # the derivative along all parameters at once, each changed by its own share
    expected = np.sum(slopes * np.asarray(flat)[:, None], axis=0)
    middle = (along[0] + along[flat.size]) / 2
    np.testing.assert_allclose(middle, expected, atol=1e-4 * np.abs(expected).max() + 1e-9)
    single, along_single = run(jnp.asarray(batch, jnp.float32), x.astype(jnp.float32))
    assert single.dtype == along_single.dtype == jnp.float32
    within = 3e-6 * np.abs(values).max()
    np.testing.assert_allclose(single, values, rtol=1e-4, atol=within)
    np.testing.assert_allclose(along_single, along, rtol=1e-3, atol=10 * within)


@pytest.mark.parametrize("factor", [1e-9, 1.0, 1e9])
@NAMED
def test_priors_are_of_fields_and_scale_with_the_data(component, factor):
    y = np.asarray(call(component, jnp.asarray(X + 4.1)))
    priors, scaled = component.priors(X, y), component.priors(X, factor * y)
    assert set(scaled) <= set(named_leaves(component))
    for name, prior in priors.items():
        before, after = (float(p.variance) for p in (prior, scaled[name]))
        power = np.log(after / before) / np.log(factor) / 2 if factor != 1.0 else 1.0
        assert np.isclose(power, np.round(power), atol=1e-6) and abs(np.round(power)) <= 1, name


def test_priors_of_data_that_say_nothing():
    y = np.full((4, 301), np.nan)
    for data in (y, np.zeros((4, 301))):
        assert scales.scales(X, data).size == 1.0
    with pytest.raises(ValueError, match="last must agree"):
        scales.scales(X, y[:, :-1])
    with pytest.raises(ValueError, match="no extent"):
        scales.scales(np.ones(301), y)


def model():
    background = backgrounds.StraightLine(0.1, 0.02)
    return SumOf({"peak": lines.GaussianLine(1.0, 1.0, 0.8), "background": background})


def test_a_sum_is_a_forward_model():
    """From guesses of a whole map to one density a pixel, names without a word of the sum."""
    truth = SumOf({"peak": lines.GaussianLine(1.0, 2.0, 0.8), "background": backgrounds.Level(0.5)})
    y = np.asarray(call(truth, jnp.asarray(X)))
    y = y + 0.01 * np.random.default_rng(3).normal(size=(2, 3, 301))
    priors = scales.under("forward", truth.priors(X, y))
    names = {"peak.height", "peak.centre", "peak.fwhm", "background.level"}
    assert set(priors) == {f"forward.{name}" for name in names}
    problem = InverseProblem(truth, Gaussian(0.01), priors)
    guess = guesses.peak(X, y)
    values = {f"forward.peak.{n}": guess[n][1, 2] for n in ("height", "centre", "fwhm")}
    values["forward.background.level"] = guess["background"][1, 2]
    check_start(problem, values)
    density = jax.jit(jax.value_and_grad(neg_log_joint))
    theta = problem.unconstrain({n: jnp.asarray(v) for n, v in values.items()})
    value, slope = density(theta, problem, jnp.asarray(X), jnp.asarray(y[1, 2]))
    at_truth, _ = density(
        problem.unconstrain(problem.values()), problem, jnp.asarray(X), jnp.asarray(y[1, 2])
    )
    assert np.isfinite(value) and all(np.isfinite(v) for v in jax.tree.leaves(slope))
    assert at_truth < value < at_truth + 1e4  # near, not at: 301 channels 100 times below the peak


def test_product_and_errors():
    window = backgrounds.ExponentialDecay(1.0, 2.0)
    x = jnp.asarray(X)
    product = ProductOf({"line": lines.GaussianLine(1.0, 1.0, 0.8), "window": window})
    expected = lines.gaussian(x, 1.0, 1.0, 0.8) * backgrounds.exponential_decay(x, 1.0, 2.0)
    np.testing.assert_allclose(call(product, x), expected)
    assert product.window is window
    moved = eqx.tree_at(lambda m: m.peak.centre, model(), jnp.asarray(2.0))
    assert moved.peak.centre == 2.0 and isinstance(moved, SumOf)
    with pytest.raises(AttributeError, match="no part 'peek'; there are peak, background"):
        _ = model().peek
    with pytest.raises(ValueError, match="identifier"):
        SumOf({"a b": window})
    with pytest.raises(ValueError, match="no parts"):
        SumOf({})
    with pytest.raises(ValueError, match="odd number"):
        Convolved(window, np.ones(4))


def test_convolved():
    """A Lorentzian seen through a Gaussian kernel is a Voigt line, to the ends of the axis."""
    step = X[1] - X[0]
    kernel = np.exp(-4 * np.log(2) * (np.arange(-60, 61) * step / 0.7) ** 2)
    seen = Convolved(lines.LorentzianLine(1.0, 0.3, 0.9), kernel, name="line")
    voigt = lines.voigt(jnp.asarray(X), 1.0, 0.3, 0.7, 0.9)
    values = call(seen, jnp.asarray(X))
    np.testing.assert_allclose(values / values.max(), voigt / voigt.max(), atol=1e-5)
    assert list(named_leaves(seen)) == ["line.height", "line.centre", "line.fwhm", "kernel"]
    assert set(seen.priors(X, values)) == {"line.height", "line.centre", "line.fwhm"}


def test_backgrounds():
    x = jnp.asarray([-1.0, 0.0, 1.0, 4.0])
    np.testing.assert_allclose(backgrounds.power_law(x, 3.0, 2.0, 2.0), [0.0, 0.0, 12.0, 0.75])
    stretched = backgrounds.stretched_decay(x, 3.0, 2.0, 0.5, 0.0)
    expected = 3 * np.exp([0, 0, -np.sqrt(0.5), -np.sqrt(2)])
    np.testing.assert_allclose(stretched, expected)
    slope = jax.jacfwd(backgrounds.stretched_decay, (2, 3))(x, 3.0, 2.0, 0.5)
    assert np.isfinite(slope).all()


# --- loops ---------------------------------------------------------------------------------------

COEFFICIENTS = [-1.2, 2.5, -2.03, 3.11, 0.05, 1.5, 0.7, 0.9, 2.2]
SWEEP = np.concatenate([np.linspace(8, -7.2, 8), np.linspace(-8, 7.2, 8)])
BGLIB = (  # loop_fit_function of BGlib 0.0.6 with these coefficients over this sweep
    [1.7, 1.5914285714, 1.4828571429, 1.3742857143, 1.2604561392, -0.6005508223]
    + [-1.4434215453, -1.5599981389, -1.6, -1.4914285714, -1.3828571429, -1.2742857143]
    + [-1.1656131766, -0.5555187231, 1.1656085256, 1.644813223]
)


@BOTH
def test_loop_against_bglib(dtype):
    loop = cast(loops.FerroelectricLoop.from_coefficients(COEFFICIENTS), dtype)
    within = 2e-6 if dtype == jnp.float32 else 1e-9
    np.testing.assert_allclose(call(loop, jnp.asarray(SWEEP, dtype)), BGLIB, atol=within)


def test_the_branch_is_told_by_the_order():
    """A sweep that starts at none, rests, and turns twice."""
    v = jnp.asarray([0.0, 0.0, 1.0, 2.0, 2.0, 1.0, 0.0, -1.0, -1.0, 0.0])
    up = loops.rising(v)
    np.testing.assert_array_equal(up, [1, 1, 1, 1, 0, 0, 0, 0, 1, 1])
    np.testing.assert_array_equal(up, guesses._rising(np.asarray(v)))


def test_numbers_of_a_loop():
    """The work is 15.811995 by the trapezoidal rule over loop_fit_function of BGlib 0.0.6."""
    loop = loops.FerroelectricLoop.from_coefficients(COEFFICIENTS)
    numbers = loop.numbers()
    np.testing.assert_allclose(numbers["work"], 15.811995313, rtol=1e-7)
    np.testing.assert_allclose(numbers["imprint_V"], 0.54)
    for share in (0.03, 0.4, 0.97):
        bias = loops.bias_at_share_V(share, 3.11, 0.9, 2.2)
        np.testing.assert_allclose(loops.switched(bias, 3.11, 0.9, 2.2), share, rtol=1e-6)
    assert numbers["nucleation_rising_V"] < 3.11 and numbers["nucleation_falling_V"] > -2.03
    assert numbers["remanent_falling"] > numbers["remanent_rising"]


@BOTH
def test_wright_omega(dtype):
    s = np.concatenate([np.linspace(-80, 40, 481), [200.0, 1e4]])
    omega = jax.jit(loops.wright_omega)(jnp.asarray(s, dtype))
    expected = np.where(s < 40.5, lambertw(np.exp(np.minimum(s, 40))).real, np.nan)
    for i in (-2, -1):
        expected[i] = s[i] - np.log(s[i])
        for _ in range(5):
            expected[i] = s[i] - np.log(expected[i])
    rtol = 5e-6 if dtype == jnp.float32 else 1e-13
    near = s > -60 if dtype == jnp.float32 else s > -100
    # exp(s) of a rounded s is off by its rounding
    np.testing.assert_allclose(omega[near], expected[near], rtol=rtol)


@pytest.mark.parametrize("series", [1e-3, 10.0, 1e5])
def test_diode_solves_its_equation(series):
    v = jnp.asarray(np.linspace(-2.0, 3.0, 101))
    I0, nkT, shunt = 1e-9, 0.04, 1e7
    current = loops.diode(v, I0, nkT, series, shunt)
    junction = v - current * series
    rest = I0 * jnp.expm1(junction / nkT) + junction / shunt - current
    slope = I0 * jnp.exp(junction / nkT) / nkT * series + 1.0
    np.testing.assert_allclose(rest / slope, 0.0, atol=1e-9 * np.abs(current).max())


# --- guesses -------------------------------------------------------------------------------------


def spectra(seed=0, noise=0.02):
    noise = noise * np.random.default_rng(seed).normal(size=(3, 4, 301))
    first = lines.gaussian(jnp.asarray(X), 3.0, 1.0, 0.8)
    second = lines.gaussian(jnp.asarray(X), 1.5, 3.0, 0.6)
    return np.asarray(first + second + 1.0) + noise


@pytest.mark.parametrize("factor", [1e-9, 1.0, 1e9])
def test_peak_guesses(factor):
    y = factor * spectra()
    y[0, 0, ::3] = np.nan
    y[..., 100] = np.nan
    guess = guesses.peak(X, y)
    np.testing.assert_allclose(guess["height"], 3.0 * factor, rtol=0.05)
    np.testing.assert_allclose(guess["centre"], 1.0, atol=0.1)
    np.testing.assert_allclose(guess["fwhm"], 0.8, rtol=0.15)
    both = guesses.peaks(X, y, 2, 0.5)
    np.testing.assert_allclose([g["centre"][2, 3] for g in both], [1.0, 3.0], atol=0.1)
    np.testing.assert_allclose([g["height"][2, 3] / factor for g in both], [3.0, 1.5], rtol=0.1)
    np.testing.assert_allclose([g["fwhm"][2, 3] for g in both], [0.8, 0.6], rtol=0.2)
    with pytest.raises(ValueError, match="k = 0"):
        guesses.peaks(X, y, 0, 0.5)


def test_guesses_of_spectra_that_say_nothing_are_finite():
    """Constant, zero, all NaN, one channel left, a ramp; heights and widths positive."""
    only = np.full(301, np.nan)
    only[17] = 2.0
    bad = np.stack([np.full(301, 5.0), np.zeros(301), np.full(301, np.nan), only, X])
    x = X + 5.0
    rows = [
        guesses.peak(x, bad),
        *guesses.peaks(x, bad, 3, 0.5),
        guesses.loop(np.abs(X), bad),
        guesses.power_law(x, bad, (1.5, 9.0)),
        guesses.exponential_decay(x, bad),
        guesses.oscillator(x, np.stack([bad, bad], axis=-1)),
    ]
    for row in rows:
        for name, values in row.items():
            assert values.shape == (5,) and np.isfinite(values).all(), name
            if name in ("height", "fwhm", "Q", "amplitude", "decay"):
                assert (values > 0).all(), name
    assert np.ptp(rows[0]["centre"][:3]) == 0


@pytest.mark.parametrize("factor", [1e-9, 1.0, 1e9])
def test_oscillator_guess(factor):
    f = np.linspace(300.0, 420.0, 121)
    h = 1.2 * np.exp(0.6j) * 371.3**2 / (371.3**2 - f**2 + 1j * 371.3 * f / 60)
    noise = 0.5 * np.random.default_rng(0).normal(size=(20, 121, 2))
    guess = guesses.oscillator(f, factor * (np.stack([h.real, h.imag], axis=-1) + noise))
    np.testing.assert_allclose(guess["f0_kHz"], 371.3, atol=1.5)
    np.testing.assert_allclose(guess["Q"], 60, rtol=0.2)
    np.testing.assert_allclose(guess["amplitude"], 1.2 * factor, rtol=0.2)
    np.testing.assert_allclose(guess["phase_rad"], 0.6, atol=0.5)


def test_loop_guess():
    v = np.concatenate([np.linspace(8, -8, 65), np.linspace(-8, 8, 65)])
    coefficients = [-1.2, 2.5, -2.0, 3.0, 0.0, 0.8, 0.7, 0.9, 1.0]
    y = np.asarray(call(loops.FerroelectricLoop.from_coefficients(coefficients), jnp.asarray(v)))
    y = np.stack([y, -1e-9 * y]) * (1 + 0.01 * np.random.default_rng(0).normal(size=(2, 130)))
    guess = guesses.loop(v, y)
    assert list(guess) == list(named_leaves(loops.FerroelectricLoop(*coefficients)))
    np.testing.assert_allclose(guess["coercive_falling_V"], -2.0, atol=0.3)
    np.testing.assert_allclose(guess["coercive_rising_V"], 3.0, atol=0.3)
    np.testing.assert_allclose(guess["switchable"] / [1.0, -1e-9], 2.5, rtol=0.05)


def test_decay_guesses():
    t = np.linspace(1.0, 6.0, 50)
    y = np.stack([2 * np.exp(-(t - 1) / 1.3), -2e-9 * np.exp(-(t - 1) / 0.3)])
    guess = guesses.exponential_decay(t, y)
    np.testing.assert_allclose(guess["decay"], [1.3, 0.3], rtol=1e-3)
    np.testing.assert_allclose(guess["level"], [2.0, -2e-9], rtol=1e-3)
    e = np.linspace(300.0, 500.0, 201)
    guess = guesses.power_law(e, 5e9 * np.stack([(e / 400) ** -2.7]), (300.0, 450.0), 400.0)
    np.testing.assert_allclose(guess["exponent"], 2.7, rtol=2e-3)
    np.testing.assert_allclose(guess["level"], 5e9, rtol=0.02)
    with pytest.raises(ValueError, match="two channels in either half"):
        guesses.power_law(e, e, (10.0, 20.0))


def test_references_move_and_blur():
    """Two Gaussians, by any part of a channel and with a resolution: Gaussians again."""
    step, margin = 0.1, 60
    x = np.linspace(-5.0, 5.0, 101)
    wide = x[0] + step * np.arange(-margin, len(x) + margin)

    def bell(x, centre, fwhm):
        return np.exp(-4.0 * np.log(2.0) * ((x - centre) / fwhm) ** 2)

    spectra = np.stack([bell(wide, -1.0, 1.0), bell(wide, 0.5, 1.6)])
    mixture = References([2.0, 3.0], 0.234, 1.2, spectra, step)
    expected = np.zeros(len(x))
    for amount, centre, fwhm in ((2.0, -1.0, 1.0), (3.0, 0.5, 1.6)):
        broad = np.hypot(fwhm, 1.2)
        expected += amount * fwhm / broad * bell(x, centre + 0.234, broad)
    np.testing.assert_allclose(mixture(jnp.asarray(x)), expected, atol=1e-8)
    with pytest.raises(ValueError, match="references of 221 channels for 100"):
        mixture(jnp.asarray(x[:-1]))
