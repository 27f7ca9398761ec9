"""Figures and the HTML report of a run. Problem files may import `micjax.report.figures`."""
