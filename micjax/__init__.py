"""Differentiable physics and machine learning for microscopy: y ~ noise(forward(x)), unknowns ~ priors."""

from micjax.core.problem import InverseProblem as InverseProblem
from micjax.core.problem import free as free
from micjax.core.problem import neg_log_joint as neg_log_joint
from micjax.core.problem import parameter as parameter
from micjax.physics.noise import AmplitudeGaussian as AmplitudeGaussian
from micjax.physics.noise import Gaussian as Gaussian
from micjax.physics.noise import HeteroscedasticGaussian as HeteroscedasticGaussian
from micjax.physics.noise import Poisson as Poisson
from micjax.physics.noise import StudentT as StudentT

__version__ = "0.1.0"
