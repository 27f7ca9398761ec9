import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

import micjax
from micjax.physics.probes.oscillator import Oscillator, oscillator
from micjax.problems import resonance


def test_landmarks_of_the_resonance():
    f0, Q, amplitude = 352.0, 80.0, 1.7
    np.testing.assert_allclose(oscillator(jnp.array(f0), f0, Q, amplitude), -1j * Q * amplitude)
    slow = oscillator(jnp.array(0.0), f0, Q, amplitude, 0.4)
    np.testing.assert_allclose(slow, amplitude * np.exp(0.4j))
    f = jnp.linspace(340.0, 364.0, 240001)
    size = np.abs(oscillator(f, f0, Q))
    np.testing.assert_allclose(f[np.argmax(size)], f0 * np.sqrt(1 - 1 / (2 * Q**2)), atol=1e-4)
    # full width at half the power: f0 / Q to first order in 1 / Q
    inside = np.asarray(f)[size**2 > size.max() ** 2 / 2]
    np.testing.assert_allclose(np.ptp(inside), f0 / Q, rtol=1e-3)


def test_steady_state_of_the_equation_of_motion():
    """z'' + (w0 / Q) z' + w0^2 z = w0^2 a cos(w t), integrated until the start is forgotten."""
    w0, Q, a, w = 1.0, 5.0, 0.7, 1.15

    def motion(t, state):
        z, v = state
        return v, w0**2 * (a * np.cos(w * t) - z) - w0 / Q * v

    t = np.linspace(200.0, 220.0, 50)
    z = scipy.integrate.solve_ivp(motion, (0, 220), (0, 0), t_eval=t, rtol=1e-10, atol=1e-12).y[0]
    h = complex(oscillator(jnp.array(w), w0, Q, a))
    np.testing.assert_allclose(z, (h * np.exp(1j * w * t)).real, atol=1e-7)


def test_causality():
    """Real and imaginary part are a Kramers-Kronig pair: both poles lie on one side."""
    f = jnp.linspace(-40.0, 40.0, 2**17)
    response = np.fft.ifft(np.fft.ifftshift(oscillator(f, 5.0, 4.0)))
    half = len(f) // 2
    assert np.sum(np.abs(response[half:]) ** 2) < 1e-4 * np.sum(np.abs(response[:half]) ** 2)


def test_the_module_is_the_function_in_two_channels():
    model, f = Oscillator(350.0, 90.0, 2.0, -1.0), jnp.linspace(340.0, 360.0, 11)
    h = oscillator(f, 350.0, 90.0, 2.0, -1.0)
    np.testing.assert_allclose(model(f), np.stack([h.real, h.imag], -1), rtol=1e-12)
    slope = jax.jacfwd(lambda f0: Oscillator(f0, 90.0, 2.0, -1.0)(f))(350.0)
    eps = 1e-4
    ends = [Oscillator(350.0 + e, 90.0, 2.0, -1.0)(f) for e in (eps, -eps)]
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * eps), rtol=1e-6, atol=1e-6)


def test_a_file_is_solved_from_its_largest_amplitude(tmp_path):
    truth, x, y = resonance.example(jax.random.key(3))
    path = tmp_path / "sweep.csv"
    np.savetxt(path, np.column_stack([x, y]), delimiter=",", header="kHz, real, imaginary")
    (options, x_read, y_read), key = resonance.load(path), jax.random.key(0)
    np.testing.assert_allclose(y_read, y)
    solution = micjax.solve(resonance, resonance.problem(**options), x_read, y_read, key=key)
    sd = solution.laplace.sd()
    for row in resonance.compare(solution, x, y, truth):
        assert abs(row["estimate"] - row["truth"]) < 4 * row["sd"], row
    assert sd["forward.f0_kHz"] < 0.25
    assert len(resonance.figures(solution, x, y, truth)) == 2


@pytest.mark.parametrize(
    "rows, message",
    [("1,2\n" * 6, "needed are frequency"), ("1,2,3\n" * 3, "5"), ("1,2,nan\n" * 6, "finite")],
)
def test_files_that_are_no_sweep(tmp_path, rows, message):
    path = tmp_path / "sweep.csv"
    path.write_text(rows)
    with pytest.raises(ValueError, match=message):
        resonance.load(path)


@pytest.mark.parametrize("options", [{"f0_kHz": 500.0}, {"Q": -1.0}, {"sigma": 0.0}])
def test_wrong_options_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        resonance.problem(**options)
