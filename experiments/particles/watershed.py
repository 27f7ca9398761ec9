"""Watershed, as it is done by hand: a threshold after Otsu, and maxima of the distance."""

import numpy as np
import scipy.ndimage
from images import ap50
from skimage import filters, measure, morphology, segmentation


def particles(image: np.ndarray, bright: bool, smooth: float = 1.5, rise: float = 0.6):
    shown = filters.gaussian(image, smooth, preserve_range=True)
    limit = filters.threshold_otsu(shown)
    inside = shown > limit if bright else shown < limit
    inside = morphology.remove_small_objects(scipy.ndimage.binary_fill_holes(inside), max_size=30)
    return _split(inside, rise)


def _split(inside: np.ndarray, rise: float):
    away = scipy.ndimage.distance_transform_edt(inside)
    maxima = morphology.h_maxima(scipy.ndimage.gaussian_filter(away, 0.8), rise)
    return segmentation.watershed(-away, measure.label(maxima), mask=inside)


def grains(height: np.ndarray, smooth: float, rise: float):
    shown = scipy.ndimage.gaussian_filter(
        height - scipy.ndimage.gaussian_filter(height, 30), smooth
    )
    return segmentation.watershed(-shown, measure.label(morphology.h_maxima(shown, rise)))


def of(name: str, image: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Average precision; of grains the best of sixteen settings, by the truth."""
    if name == "overlap":
        return {"watershed": ap50(particles(image, bright=False), truth)}
    tries = [grains(image, s, r) for s in (2.0, 3.0, 4.0, 5.0) for r in (0.01, 0.02, 0.04, 0.08)]
    best = max(tries, key=lambda labels: ap50(labels, truth))
    return {
        "watershed_best_of_16": ap50(best, truth),
        "watershed_count_error": abs(best.max() / truth.max() - 1.0),
    }
