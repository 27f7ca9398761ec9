"""Differentiable physics and machine learning for microscopy.

y ~ noise(forward(x)), unknowns ~ priors: one object, `InverseProblem`, and engines that take it.
"""

from micjax.core.joint import joint as joint
from micjax.core.joint import joint_data as joint_data
from micjax.core.problem import InverseProblem as InverseProblem
from micjax.core.problem import free as free
from micjax.core.problem import neg_log_joint as neg_log_joint
from micjax.core.problem import parameter as parameter
from micjax.inference.calibration.certificate import Certificate as Certificate
from micjax.inference.calibration.certificate import certify as certify
from micjax.inference.check import check as check
from micjax.inference.errors.estimates import NUTS as NUTS
from micjax.inference.errors.estimates import SVI as SVI
from micjax.inference.errors.estimates import LaplaceErrors as LaplaceErrors
from micjax.inference.errors.laplace import laplace as laplace
from micjax.inference.errors.nuts import Posterior as Posterior
from micjax.inference.errors.nuts import nuts as nuts
from micjax.inference.errors.svi import svi as svi
from micjax.inference.finite import NonFiniteError as NonFiniteError
from micjax.inference.maps.each import each_pixel as each_pixel
from micjax.inference.maps.fit import fit_map as fit_map
from micjax.inference.maps.result import MapFit as MapFit
from micjax.inference.maps.result import most_likely as most_likely
from micjax.inference.maps.spatial.shared import share_map as share_map
from micjax.inference.maps.spatial.smooth import smooth_map as smooth_map
from micjax.inference.maps.stage import fit_each_pixel as fit_each_pixel
from micjax.inference.result import load as load
from micjax.inference.result import save as save
from micjax.inference.runner import solve as solve
from micjax.inference.solution import Solution as Solution
from micjax.inference.solve import Fit as Fit
from micjax.inference.solve import fit as fit
from micjax.inference.stage import Search as Search
from micjax.inference.stage import Stage as Stage
from micjax.inference.starts.draw import draw_starts as draw_starts
from micjax.inference.tension import Tension as Tension
from micjax.inference.tension import tension as tension
from micjax.physics.noise import AmplitudeGaussian as AmplitudeGaussian
from micjax.physics.noise import Gaussian as Gaussian
from micjax.physics.noise import HeteroscedasticGaussian as HeteroscedasticGaussian
from micjax.physics.noise import Poisson as Poisson
from micjax.physics.noise import Rician as Rician
from micjax.physics.noise import StudentT as StudentT

__version__ = "0.1.0"
