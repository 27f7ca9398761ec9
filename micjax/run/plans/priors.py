"""Priors as text, `LogNormal(3, 0.5)`, read without evaluating anything."""

import ast
import inspect
import warnings

import jax
import numpy as np
import numpyro.distributions as dist

from micjax.core.names import unknown_name
from micjax.core.ranges import check_ranges

DISTRIBUTIONS = {
    name: value
    for name, value in vars(dist).items()
    if inspect.isclass(value)
    and issubclass(value, dist.Distribution)
    and value is not dist.Distribution
} | {"TruncatedNormal": dist.TruncatedNormal, "TruncatedCauchy": dist.TruncatedCauchy}

COMMON = (  # what a message lists: densities of one real number
    "Normal LogNormal HalfNormal Uniform LogUniform Exponential Gamma InverseGamma Beta "
    "StudentT HalfCauchy Cauchy Laplace TruncatedNormal"
).split()


def parse_prior(text: str) -> dist.Distribution:
    """The NumPyro distribution `Name(numbers)` or `Name(name=number)`.

    **Raises:** `ValueError` for anything else, an unknown name, arguments that do not fit, or a
    distribution without a density.
    """
    name, numbers, keywords = _call(text)
    if name not in DISTRIBUTIONS:
        raise ValueError(f"prior {text!r}: {unknown_name('distribution', name, COMMON)}")
    try:
        prior = DISTRIBUTIONS[name](*numbers, **keywords, validate_args=True)
    except Exception as error:
        wanted = inspect.signature(DISTRIBUTIONS[name]).parameters
        named = [n for n in wanted if n not in ("self", "validate_args", "kwargs")]
        raise ValueError(f"prior {text!r}: {name}({', '.join(named)}): {error}") from error
    if isinstance(prior, dist.Delta):
        raise ValueError(f"prior {text!r}: one value only; null makes it known, `values` sets it")
    if not _has_density(prior):
        why = "too wide, its ends out of order, or no prior of a real number"
        raise ValueError(f"prior {text!r}: there is no density at its draws: {why}")
    return prior


def _has_density(prior: dist.Distribution) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a draw may lie beside a support without an inside
            draw, density, inside = _at_a_draw(prior)
    except Exception:  # such as counts of 1.5 trials, or a distribution that states no support
        return False
    return bool(np.isfinite(draw).all() and np.isfinite(density).all() and np.all(inside))


def _at_a_draw(prior: dist.Distribution) -> tuple:
    def drawn(prior):
        draw = prior.sample(jax.random.key(0))
        return draw, prior.log_prob(draw), prior.support(draw)

    try:
        return jax.jit(drawn)(prior)
    except Exception:  # one of another kind, whose numbers have to be known
        return drawn(prior)


def check_prior(name: str, prior: dist.Distribution, ours: bool) -> None:
    """**Raises:** `ValueError` when the middle of the prior is no value that `name` may have."""
    try:
        middle = jax.jit(lambda prior: prior.icdf(0.5))(prior)
    except (NotImplementedError, ImportError):  # some need another package for their quantiles
        try:
            middle = prior.mean
        except (NotImplementedError, ZeroDivisionError):
            return
    if not np.isnan(middle).any():  # as the mean of heavy tails
        check_ranges(name, np.asarray(middle), ours, "the middle of the prior of ")


def _call(text: str) -> tuple[str, list[float], dict[str, float]]:
    shape = "write Name(numbers), as in LogNormal(3, 0.5)"
    try:
        call = ast.parse(text.strip().removeprefix("dist."), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"prior {text!r}: {shape}") from error
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise ValueError(f"prior {text!r}: {shape}")
    if any(k.arg is None for k in call.keywords):
        raise ValueError(f"prior {text!r}: {shape}")
    numbers = [_number(text, a) for a in call.args]
    return call.func.id, numbers, {k.arg: _number(text, k.value) for k in call.keywords}


def _number(text: str, node: ast.expr) -> float:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        value = None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"prior {text!r}: {ast.unparse(node)} is not a number")
    check_ranges("a number", value, where=f"prior {text!r}: ")
    return float(value)
