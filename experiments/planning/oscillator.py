"""Where to drive an oscillator next, to learn its resonance: noise 8 in each of two channels.

Priors: f0 flat from 300 to 420 kHz, Q = 120 within a factor e^0.4, amplitude 1 within e^0.5, any
phase. The answer at resonance is about 120, fifteen times the noise, but the line is 3 kHz wide.
"""

import numpy as np

from micjax.active.acquire.search import Box
from micjax.problems import resonance

TITLE = "Drive frequency (kHz) for the resonance of an oscillator"
TARGETS = {"forward.f0_kHz": 0.25}
SPACE = Box([300.0], [420.0])
UNIFORM = 40  # length of a uniform series
PLAN = {"draws": 64, "samples": 128, "starts": 4, "steps": 10}
LONGEST = 80
PARTICLES = 2048
LABEL = "a sweep of 13, then about the largest answer"


def problem():
    return resonance.problem(sigma=8.0).given({"noise.sigma": None})


def allowed(values) -> bool:
    """Truths: f0 at least 10 kHz from the ends of the band."""
    return 310.0 < values["forward.f0_kHz"] < 410.0


def classical(step: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A coarse sweep, then steps to both sides of the largest answer."""
    if step < 13:
        return np.array([305.0 + 9.1667 * step])
    top = x[np.argmax((y**2).sum(axis=1)), 0]
    away = np.array([0.0, 2.0, -2.0, 4.0, -4.0, 1.0, -1.0])[(step - 13) % 7]
    return np.clip([top + away], 300.0, 420.0)
