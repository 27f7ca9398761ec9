import jax
import jax.numpy as jnp
import numpy as np
import pytest

from micjax.physics.patches.unmixing.factorisation import (
    HALS,
    AcceleratedGradient,
    Multiplicative,
    factorise,
    optimality,
    start,
)

RNG = np.random.default_rng(1)
W = RNG.dirichlet(np.full(3, 0.3), size=60)
H = np.abs(RNG.normal(size=(3, 20))) ** 2
DATA = W @ H
NOISY = np.maximum(DATA + 0.05 * RNG.normal(size=DATA.shape), 0)


def misfit(factors, data) -> float:
    return float(np.linalg.norm(data - factors.abundance @ factors.template) / np.linalg.norm(data))


METHODS = {"hals": HALS(), "gradient": AcceleratedGradient(), "multiplicative": Multiplicative()}


def test_a_mixture_without_noise_is_taken_apart():
    found = factorise(jnp.asarray(DATA), *start(jnp.asarray(DATA), 3), tolerance=1e-7, steps=5000)
    assert found.residual < 1e-7 and misfit(found, DATA) < 1e-5
    true = H / np.linalg.norm(H, axis=1, keepdims=True)
    assert (true @ np.asarray(found.template).T).max(axis=1).min() > 0.999


@pytest.mark.parametrize("name", METHODS)
def test_methods_agree_on_the_minimum(name):
    begun = start(jnp.asarray(NOISY), 3)
    best = factorise(jnp.asarray(NOISY), *begun, tolerance=1e-8, steps=5000)
    steps = {"multiplicative": 4000}.get(name, 2000)
    found = factorise(jnp.asarray(NOISY), *begun, METHODS[name], tolerance=1e-4, steps=steps)
    assert misfit(found, NOISY) == pytest.approx(misfit(best, NOISY), rel=5e-3)
    if name != "multiplicative":  # which is too slow to get there
        assert found.residual < 1e-4 and found.steps < steps
    assert float(optimality(NOISY, *found[:2])) == pytest.approx(float(found.residual), rel=1e-6)


def test_few_steps_take_products_with_the_data():
    data = jnp.asarray(NOISY)
    some, none = (
        factorise(data, *start(data, 3), tolerance=3e-5, between=between) for between in (100, 0)
    )
    assert none.passes == none.steps
    assert some.residual < 3e-5 and none.residual < 3e-5
    assert misfit(some, data) == pytest.approx(misfit(none, data), rel=1e-4)
    assert some.passes < 0.05 * none.passes


def test_what_has_no_leading_part_is_factorised_too():
    data = jnp.asarray(np.random.default_rng(3).uniform(size=(300, 80)))
    found = factorise(data, *start(data, 4), tolerance=1e-5, steps=5000)
    assert found.residual < 1e-5 and found.passes > 100  # where many steps would mislead


def test_the_residual_is_a_gradient():
    w, h = (jnp.asarray(RNG.uniform(0.1, 1.0, size=s)) for s in ((60, 3), (3, 20)))
    h = h / jnp.linalg.norm(h, axis=1, keepdims=True)
    grad_w, grad_h = jax.grad(lambda w, h: 0.5 * jnp.sum((NOISY - w @ h) ** 2), (0, 1))(w, h)
    wanted = jnp.sqrt(jnp.sum(grad_w**2) + jnp.sum(grad_h**2) / jnp.sum(w**2))
    assert optimality(NOISY, w, h) == pytest.approx(
        float(wanted / np.linalg.norm(NOISY)), rel=1e-10
    )


@pytest.mark.parametrize("unit", [1e-9, 1e9])
def test_any_unit_gives_the_same(unit):
    with jax.enable_x64(False):
        found = []
        for scale in (1.0, unit):
            data = jnp.asarray(scale * NOISY, jnp.float32)
            found.append(factorise(data, *start(data, 3), l1=0.05, ramp=10, tolerance=1e-3))
    one, other = found
    assert one.steps == other.steps
    np.testing.assert_allclose(other.template, one.template, atol=1e-3)
    np.testing.assert_allclose(other.abundance / unit, one.abundance, rtol=1e-2, atol=1e-2)


def test_sparsity_empties_abundances():
    data = jnp.asarray(NOISY)
    plain, sparse = (
        factorise(data, *start(data, 5), l1=l1, ramp=20, tolerance=1e-4) for l1 in (0.0, 0.3)
    )
    empty = [float(np.mean(np.asarray(f.abundance) == 0.0)) for f in (plain, sparse)]
    assert empty[1] > empty[0] + 0.1
    assert sparse.residual < 1e-4


def test_too_many_end_members_are_refused():
    with pytest.raises(ValueError, match="21 end members of 60 spectra with 20 channels"):
        start(jnp.asarray(NOISY), 21)
