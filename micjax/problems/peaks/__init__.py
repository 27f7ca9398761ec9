"""Peaks on a background at every pixel of a map: photoluminescence, Raman, diffraction profiles.

    y(x) ~ Poisson(sum of lines + background)    or    Normal(the same, sigma)

Each pixel has its own heights, centres, widths and background; heights of lines are solved for in
each step and need no start. How many lines a pixel has may be left to the evidence.
"""

from micjax.problems.peaks.conclusion import compare as compare
from micjax.problems.peaks.conclusion import conclude as conclude
from micjax.problems.peaks.conclusion import figures as figures
from micjax.problems.peaks.data import load as load
from micjax.problems.peaks.renamed import renamed as renamed
from micjax.problems.peaks.setting import example as example
from micjax.problems.peaks.setting import problem as problem
from micjax.problems.peaks.stages import stages as stages
from micjax.problems.peaks.stages import starts as starts
from micjax.problems.shared.stress import stress as stress
