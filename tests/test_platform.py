"""The installed jax computes what it should on this machine (0.10.2 and 0.11.0 do not, on CPU)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.mark.parametrize("n, dtype", [(16_385, jnp.float64), (32_769, jnp.float32)])
def test_jit_agrees_with_eager(n, dtype):  # jax-ml/jax#39103
    x = jnp.stack([jnp.arange(n, dtype=dtype), jnp.zeros(n, dtype), jnp.zeros(n, dtype)], axis=1)
    squared_norm = jax.vmap(lambda row: jnp.sum((jnp.eye(3, dtype=dtype) @ row) ** 2))
    np.testing.assert_array_equal(squared_norm(x), jax.jit(squared_norm)(x))
