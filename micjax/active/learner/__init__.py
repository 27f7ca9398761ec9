"""Learners: what may be set, what is believed of it, what a measurement costs, what comes next."""

from micjax.active.learner.learner import Learner as Learner
from micjax.active.learner.space import SearchAxis as SearchAxis
from micjax.active.learner.space import Space as Space
