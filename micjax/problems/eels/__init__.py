"""Edges of electron energy loss at every pixel: amounts, white lines, shifts, with errors.

    y(E) = background + (edges folded with the low loss)(E) + noise

Each pixel has a power law of its own, an amount and an onset of each edge, the fine structure of K
edges, and of L edges the white lines, whose ratio tells the valence of a transition metal.
"""

from micjax.problems.eels.conclusion import compare as compare
from micjax.problems.eels.conclusion import conclude as conclude
from micjax.problems.eels.conclusion import figures as figures
from micjax.problems.eels.data import load as load
from micjax.problems.eels.setting import example as example
from micjax.problems.eels.setting import problem as problem
from micjax.problems.eels.stages import stages as stages
from micjax.problems.shared.stress import stress as stress
