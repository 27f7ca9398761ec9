"""Differentiable physics and machine learning for microscopy.

y ~ noise(forward(x)), unknowns ~ priors: one object, `InverseProblem`, and engines that take it.
"""

import lazy_loader

# JAX and all that stands on it is imported with the first name that is used: see __init__.pyi
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"
