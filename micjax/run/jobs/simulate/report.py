"""The end of a simulation: result.nxs, figures and report.html."""

import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from micjax.core.problem import InverseProblem
from micjax.inference.solution import Solution
from micjax.io import Field, write_nexus
from micjax.physics.noise import Poisson
from micjax.report.figures import captioned, image_panel, image_row, new_figure
from micjax.run.folder import RunFolder
from micjax.run.jobs.page import write_report
from micjax.run.jobs.simulate.job import SimulationResult
from micjax.run.plans.simulate import SimulatePlan

FLOOR = 1e-7  # of the brightest pixel: below it a pattern is black


def conclude(
    plan: SimulatePlan, result: SimulationResult, folder: RunFolder, facts: dict[str, Any]
) -> tuple[Solution, pathlib.Path]:
    """What was computed as a solution without unknowns, and the report.

    **Raises:** `OSError` when something cannot be written.
    """
    title = f"{plan.what.upper()} of {pathlib.Path(plan.structure).name}"
    given = plan.resolved()
    process = {"plan": given, "provenance": facts}
    write_nexus(folder / "result.nxs", result.fields, title=title, process=process)
    nothing_unknown = InverseProblem(lambda x: x, Poisson(plan.dose or 1.0), {})
    solution = Solution(nothing_unknown, statements=result.said, table=_table(result.fields))
    page = {"title": title, "problem": f"simulate {plan.what}", "data": plan.structure}
    page |= {"solution": solution, "provenance": facts, "plan": given}
    return solution, write_report(folder, _figures(plan, result.fields), **page)


def _table(fields: dict[str, Field]) -> list[dict[str, Any]]:
    return [
        {
            "result": name,
            "mean": float(np.mean(f.data)),
            "lowest": float(np.min(f.data)),
            "highest": float(np.max(f.data)),
            "unit": f.unit or ("rad" if "phase" in name else "fraction of the beam"),
        }
        for name, f in fields.items()
    ]


def _figures(plan: SimulatePlan, fields: dict[str, Field]) -> dict[str, Callable[[], Figure]]:
    if plan.what == "cbed":
        return {"Diffraction": partial(_patterns, fields)}
    some = next(iter(fields.values()))
    if some.data.ndim == 1:
        return {"Places": partial(_along, fields)}
    pixel = tuple(float(np.diff(a.values[:2])[0]) if a.values.size > 1 else 1.0 for a in some.axes)
    images = {n: f.data for n, f in fields.items()}
    return {
        "Images": lambda: captioned(
            image_row(images, pixel_nm=pixel, shared=False, columns=3),
            "Each in a range of its own.",
        )
    }


def _patterns(fields: dict[str, Field]) -> Figure:
    figure, axes = new_figure(1, len(fields), 3.6 * len(fields), 3.3)
    for ax, (name, field) in zip(axes.flat, fields.items(), strict=True):
        values = np.maximum(field.data, FLOOR * field.data.max())
        image_panel(ax, np.log10(values), name.replace("_", " "), label="log10")
        y, x = (a.values for a in field.axes)
        ax.get_images()[-1].set_extent((x[0], x[-1], y[-1], y[0]))
        ax.set_xlim(x[0], x[-1])
        ax.set_ylim(y[-1], y[0])
        ax.set_xlabel("x (mrad)", fontsize=8)
        ax.set_ylabel("y (mrad)", fontsize=8)
    return captioned(figure, f"Logarithms; {FLOOR:g} of the brightest pixel and below are black.")


def _along(fields: dict[str, Field]) -> Figure:
    shown = {n: f for n, f in fields.items() if not n.startswith("place_")}
    figure, axes = new_figure(1, len(shown), 3.6 * len(shown), 3.0)
    for ax, (name, field) in zip(axes.flat, shown.items(), strict=True):
        ax.plot(field.axes[0].values, field.data, "o-", markersize=3)
        ax.set_title(name.replace("_", " "), fontsize=9)
        ax.set_xlabel("place", fontsize=8)
    return captioned(figure, "Place by place, in the order of places_A.")
