"""Sphinx: `make docs` builds docs/_build/html, offline."""

import os
import re

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import micjax

project = "micjax"
author = "The micjax developers"
copyright = author
release = version = micjax.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "code"  # docstrings say `name`

html_theme = "furo"
html_title = f"micjax {release}"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True


def as_rst(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are plain text with a little Markdown; make their lists and formulas RST."""
    new: list[str] = []
    in_list = in_formula = False
    for line in lines:
        text = line.strip()
        if not text:
            in_formula = False
        elif text.startswith("- "):
            in_list = True
        elif in_list and not line.startswith(" "):
            in_list = False
        elif in_list:
            line = "  " + text
        elif line.startswith("    ") and not in_formula and new and not new[-1]:
            in_formula = True
            new += ["::", ""]
        if not in_formula:  # |x| is a modulus, not a substitution
            line = re.sub(r"(`[^`]*`)|\|", lambda m: m[1] or r"\|", line)
        new.append(line)
    lines[:] = new


def setup(app) -> None:
    app.connect("autodoc-process-docstring", as_rst)
