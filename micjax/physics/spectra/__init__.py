"""Spectra: line shapes, backgrounds, ionisation edges, X-ray lines, loops, and their sums.

A component is a module that holds its parameters and is called with the axis of the spectrum,
`component(x) -> y`. Its method `priors(x, y)` gives weak priors of its fields from the axis and the
size of the data. Components are cheap and smooth, and the same for every value: `jit`, `jvp` and
`vmap` go through them, in float32 as in float64.
"""
