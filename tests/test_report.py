"""Text, figures and the page of a report."""

import re

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from matplotlib.figure import Figure

import micjax
from micjax.inference.checkpoint import StopReason
from micjax.inference.solution import Solution
from micjax.problems import edge
from micjax.report import figures
from micjax.report.default import default_figures
from micjax.report.page import Page, write_page
from micjax.report.pictures import Picture, render, save_pictures
from micjax.report.table import cell, number, number_beside, plain_table
from micjax.report.text import describe_prior, unknown_rows


@pytest.mark.parametrize(
    "value, text",
    [
        *((None, "–"), (True, "yes"), (np.bool_(False), "no"), (7, "7"), (np.int64(7), "7")),
        *((0.0, "0"), (12345.678, "12346"), (1.23456e-7, "1.235e-7"), (2e9, "2.000e+9")),
        *(
            (np.inf, "∞"),
            (-np.inf, "−∞"),
            (np.nan, "nan"),
            ("a<b", "a<b"),
            (np.float32(0.5), "0.5"),
        ),
    ],
)
def test_cells(value, text):
    assert cell(value) == text


def test_a_value_has_the_digits_its_error_leaves():
    assert number_beside(0.61234, 0.0217) == "0.612"
    assert number_beside(1234.567, 21.0) == "1235"
    assert number_beside(0.61234, np.nan) == number(0.61234)


def test_priors_in_words():
    assert describe_prior(micjax.free(dist.constraints.positive)) == "flat, positive"
    assert describe_prior(dist.Normal(np.zeros(3), np.array([1.0, 2.0, 3.0]))) == "Normal(0, 1…3)"


def test_a_plain_table_has_every_column():
    text = plain_table([{"a": "x", "b": 1.5}, {"a": "yy", "c": None}])
    assert text.splitlines()[0].split() == ["a", "b", "c"] and "1.5" in text


@pytest.fixture(scope="module")
def solved():
    truth, x, y = edge.example(jax.random.key(0))
    found = micjax.fit(edge.problem(), x, y, steps=300)
    return truth, x, y, found


def test_unknown_rows(solved):
    truth, x, y, found = solved
    curvature = micjax.laplace(found.problem, x, y)
    rows = {
        r["unknown"]: r for r in unknown_rows(Solution(found.problem, laplace=curvature), truth)
    }
    row = rows["forward.edge_nm"]
    assert row["truth"] == "1.2" and row["identified"] is True and row["prior"] == "Normal(0, 5)"
    assert abs(float(row["estimate"]) - 1.2) < 0.2 and 0.0 < float(row["sd"]) < 0.1


def pixels(figure):
    assert isinstance(figure, Figure)
    png = render(figure)
    assert png.startswith(b"\x89PNG")
    return png


def test_every_panel_draws():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(12, 20))
    mask = image > 1
    row = figures.image_row(
        {"a": image, "b": image + 1j, "r": image}, pixel_nm=(1.0, 2.0), residuals=["r"],
        masks={"a": mask}, label="height (nm)",
    )  # fmt: skip
    a, b, r = row.axes[:3]
    assert a.get_images()[0].get_clim() == b.get_images()[0].get_clim()
    low, high = r.get_images()[0].get_clim()
    assert low == -high and a.get_xlim() == (0, 40) and a.get_ylim() == (12, 0)
    draws = {"p": rng.normal(size=200), "q": rng.normal(size=200)}
    pixels(row)
    pixels(figures.line_profiles({"a": image[0], "b": image[1]}, step_nm=2.0, shade=mask[0]))
    pixels(figures.marginals(draws, truth={"p": 0.1}, prior=draws))
    pixels(figures.corner(draws, truth={"p": 0.1, "q": 0.0}))
    pixels(figures.loss_curve(np.array([[3.0, np.nan, 1.0], [4.0, 2.0, 2.0]]), "tolerance"))


@pytest.mark.parametrize("image", [np.full((3, 4), np.nan), np.zeros((2, 2)), np.ones((1, 9))])
def test_dull_images_draw_too(image):
    pixels(figures.image_row({"image": image, "residual": image}, residuals=["residual"]))


def test_dull_numbers_draw_too():
    pixels(figures.marginals({"a": np.zeros(9), "b": np.full(9, np.nan)}))
    pixels(figures.loss_curve(np.array([2.0])))
    pixels(figures.loss_curve(np.array([np.nan, np.nan])))
    pixels(figures.line_profiles({"a": np.array([1.0])}))


def test_a_figure_that_fails_is_told_and_the_others_stay(tmp_path, caplog):
    good = figures.captioned(figures.line_profiles({"a": np.arange(3.0)}), "Fine.")
    pictures = save_pictures(tmp_path, {"Good one": good, "Bad": lambda: 1 / 0, "Text": "x"})
    assert [bool(p.png) for p in pictures] == [True, False, False]
    assert pictures[0].caption == "Fine." and "ZeroDivisionError" in pictures[1].caption
    assert [p.name for p in tmp_path.iterdir()] == ["01-good-one.png"]
    assert "'Bad' failed" in caplog.text


def page_of(solution, truth=None, **changes):
    facts = {"status": "finished", "start": "2026", "git": None, "versions": {"micjax": "1"}}
    arguments = {
        "title": "Probe <size>",
        "problem": "edge",
        "data": "scan & more.ibw",
        "solution": solution,
        "truth": truth,
        "pictures": [],
        "provenance": facts | changes.pop("provenance", {}),
        "plan": {"problem": "edge", "note": "</pre><script>"},
    }
    return Page(**arguments | changes)


def test_the_page_stands_alone(tmp_path, solved):
    truth, x, y, found = solved
    makers = default_figures(Solution(found.problem, fit=found), x, y, truth)
    pictures = [Picture(t, render(m()), "A caption.") for t, m in makers.items()]
    solution = Solution(found.problem, fit=found, statements=["x is not identified by <it>."])
    page = page_of(solution, truth, pictures=pictures)
    text = write_page(tmp_path / "report.html", page).read_text(encoding="utf-8")
    assert not re.search(r"https?://|<script|<link|@import|url\(", text)
    assert "Probe &lt;size&gt;" in text and "scan &amp; more.ibw" in text
    assert "by &lt;it&gt;" in text and "&lt;/pre&gt;&lt;script&gt;" in text
    assert text.count("data:image/png;base64,") == len(pictures) > 0
    order = [text.index(f"<h2>{h}") for h in ("Unknowns", "Convergence", "Provenance")]
    assert order == sorted(order) and "not in a checkout" in text
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_full_disk_leaves_the_old_page(tmp_path, solved, monkeypatch):
    page = page_of(Solution(solved[3].problem))
    path = write_page(tmp_path / "report.html", page)
    before = path.read_bytes()
    monkeypatch.setattr("micjax.core.files.os.replace", _full)
    with pytest.raises(OSError, match="No space"):
        write_page(path, page)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def _full(*_):
    raise OSError(28, "No space left on device")


def test_a_fit_that_never_began(tmp_path, solved):
    """Ctrl-C during the first compilation: no losses, an infinite loss."""
    found = solved[3]
    empty = micjax.Fit(
        found.problem, np.inf, np.empty(0), 0, StopReason.INTERRUPTED, np.array([np.inf]), []
    )
    page = page_of(Solution(found.problem, fit=empty), provenance={"status": "interrupted"})
    text = write_page(tmp_path / "r.html", page).read_text(encoding="utf-8")
    assert "lowest loss ∞" in text and "badge alert" in text
