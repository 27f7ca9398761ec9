"""Where fits of whole maps start: guesses for every spectrum of `[*map, n]` at once, in NumPy.

Each returns `{field: array [*map]}`, ready for a batch of fits. They are always finite, and inside
of what weak priors allow: NaN channels are put between their neighbours, and a spectrum that says
nothing (constant, or all NaN) gives a small height in the middle of the axis. The same data
times 1e9 give the same places, and heights times 1e9.
"""

import numpy as np
from jaxtyping import Bool, Num

Guess = dict[str, np.ndarray]
Axis = Num[np.ndarray, " n"]
Spectra = Num[np.ndarray, "*map n"]

LEAST = 1e-6  # of the largest value of a spectrum: what takes the place of nothing


def peak(x: Axis, y: Spectra, smooth: int = 3) -> Guess:
    """`height`, `centre` and `fwhm` of the largest peak, and `background` (the 10th percentile).

    **Arguments:**

    - `x`: the axis, in rising order.
    - `smooth`: channels of a running mean before the maximum is looked for; 1 leaves as it is.
    """
    y, background, size = _levelled(x, y)
    height, centre, fwhm = _largest(x, _running_mean(y, smooth), size)
    return {
        "height": height,
        "centre": centre,
        "fwhm": fwhm,
        "background": background,
    }


def peaks(x: Axis, y: Spectra, k: int, separation: float, smooth: int = 3) -> list[Guess]:
    """The `k` largest maxima at least `separation` (in units of x) apart, by rising `centre`.

    After each maximum a Gaussian of its height and width is taken away, and its neighbourhood left
    out. Where a spectrum has fewer maxima, the rest are small.

    **Returns:** `k` dictionaries as of `peak`, all with the same `background`.

    **Raises:** `ValueError` for k < 1.
    """
    if k < 1:
        raise ValueError(f"k = {k}: must be 1 or more")
    y, background, size = _levelled(x, y)
    rest = _running_mean(y, smooth)
    rows = []
    for _ in range(k):
        height, centre, fwhm = _largest(x, rest, size)
        rows.append((height, centre, fwhm))
        away = x - centre[..., None]
        rest = rest - height[..., None] * np.exp(-4.0 * np.log(2.0) * (away / fwhm[..., None]) ** 2)
        rest = np.where(np.abs(away) < separation, -np.inf, rest)
    heights, centres, widths = (np.stack(values, axis=-1) for values in zip(*rows, strict=True))
    order = np.argsort(centres, axis=-1)
    heights, centres, widths = (
        np.take_along_axis(values, order, axis=-1) for values in (heights, centres, widths)
    )
    return [
        {
            "height": heights[..., i],
            "centre": centres[..., i],
            "fwhm": widths[..., i],
            "background": background,
        }
        for i in range(k)
    ]


def oscillator(frequency_kHz: Axis, response: Num[np.ndarray, "*map n 2"]) -> Guess:
    """`f0_kHz` at the largest response, `Q` from the half-power width about it, `amplitude` and
    `phase_rad` by linear least squares with these. In phase and in quadrature, as `Oscillator`."""
    h = np.asarray(response, float)
    h = np.where(np.isfinite(h), h, 0.0)
    h = h[..., 0] + 1j * h[..., 1]
    largest = np.abs(h).max(axis=-1, keepdims=True)
    h = h / np.where(largest > 0, largest, 1.0)  # powers of tiny numbers would vanish
    # not smoothed: a resonance may be as narrow as two channels
    power = np.abs(h) ** 2
    _, f0, width = _largest(frequency_kHz, power, np.ones(power.shape[:-1]))
    Q = np.clip(f0 / width, 0.6, 1e6)
    f, f0_, Q_ = frequency_kHz, f0[..., None], Q[..., None]
    unit = f0_**2 / (f0_**2 - f**2 + 1j * f0_ * f / Q_)
    factor = np.sum(np.conj(unit) * h, axis=-1) / np.sum(np.abs(unit) ** 2, axis=-1)
    size = np.where(largest > 0, largest, 1.0)[..., 0]
    return {
        "f0_kHz": f0,
        "Q": Q,
        "amplitude": size * np.maximum(np.abs(factor), LEAST),
        "phase_rad": np.angle(factor),
    }


def loop(bias_V: Axis, y: Spectra) -> Guess:
    """The nine parameters of a `FerroelectricLoop`: levels at the ends of the sweep, coercive
    biases from the areas under the branches, widths of a tenth of the sweep, no slope.

    `bias_V` is in the order of the sweep.
    """
    y, size = _filled(y)
    low, high = bias_V.min(), bias_V.max()
    span = high - low
    bottom = y[..., bias_V <= low + 0.15 * span].mean(axis=-1)
    top = y[..., bias_V >= high - 0.15 * span].mean(axis=-1)
    switchable = top - bottom
    flat = np.abs(switchable) < LEAST * size
    switchable = np.where(flat, LEAST * size, switchable)
    share = np.where(
        flat[..., None], 0.5, (y - bottom[..., None]) / np.where(flat, 1.0, switchable)[..., None]
    )
    up = _rising(bias_V)
    coercive = {}
    for name, branch in (("coercive_falling_V", ~up), ("coercive_rising_V", up)):
        order = np.argsort(bias_V[branch], kind="stable")
        v, s = bias_V[branch][order], np.clip(share[..., branch][..., order], 0.0, 1.0)
        if len(v) < 2:  # a sweep in one direction has no such branch
            coercive[name] = np.full(size.shape, (low + high) / 2.0)
            continue
        # what is switched covers the biases above the coercive one
        covered = np.sum((s[..., 1:] + s[..., :-1]) / 2.0 * np.diff(v), axis=-1)
        coercive[name] = np.clip(v[-1] - covered, low + 1e-3 * span, high - 1e-3 * span)
    widths = ("falling_low_V", "falling_high_V", "rising_low_V", "rising_high_V")
    return {
        "offset": bottom,
        "switchable": switchable,
        **coercive,
        "slope_per_V": np.zeros(size.shape),
        **{name: np.full(size.shape, span / 10.0) for name in widths},
    }


def power_law(
    x: Axis, y: Spectra, window: tuple[float, float], reference: float | None = None
) -> Guess:
    """`level` at the `reference` and `exponent`, from the means over the two halves of a window (on
    a logarithmic axis): the two-area method (Egerton 2011, 3rd ed., sec. 4.4.3).

    **Arguments:**

    - `window`: (low, high) on the axis, before the edge, positive.
    - `reference`: by default the geometric middle of the window.

    **Raises:** `ValueError` for a window with fewer than two channels in either half.
    """
    low, high = window
    middle = np.sqrt(low * high) if low > 0 else np.nan
    first, second = (x >= low) & (x < middle), (x >= middle) & (x <= high)
    if not low > 0 or first.sum() < 2 or second.sum() < 2:
        raise ValueError(f"the window {window} needs two channels in either half, above 0")
    y, size = _filled(y)
    means = [y[..., half].mean(axis=-1) for half in (first, second)]
    logs = [np.log(x[half]).mean() for half in (first, second)]
    good = np.all([mean > LEAST * size for mean in means], axis=0)
    left, right = (np.where(good, mean, 1.0) for mean in means)
    exponent = np.where(good, np.log(left / right) / (logs[1] - logs[0]), 3.0)
    exponent = np.clip(exponent, -10.0, 10.0)
    at = np.log(middle if reference is None else reference)
    level = np.exp((np.log(left) + np.log(right) - exponent * (2.0 * at - sum(logs))) / 2.0)
    return {"level": np.where(good, level, LEAST * size), "exponent": exponent}


def exponential_decay(x: Axis, y: Spectra, start: float | None = None) -> Guess:
    """`level` at `start` (by default that of the axis) and `decay`, from a straight line through
    the logarithms, weighted by the squares of the data; between a channel and ten times the axis.

    Data of either sign: the sign is that of the sum.
    """
    y, size = _filled(y)
    sign = np.where(y.sum(axis=-1) < 0, -1.0, 1.0)
    relative = y * sign[..., None] / size[..., None]
    inside = relative > LEAST
    log = np.log(np.where(inside, relative, 1.0))
    weight = np.where(inside, relative**2, 0.0)
    total = np.maximum(weight.sum(axis=-1), 1e-300)
    x0 = (weight * x).sum(axis=-1) / total
    log0 = (weight * log).sum(axis=-1) / total
    away = x - x0[..., None]
    spread = (weight * away**2).sum(axis=-1)
    rate = -(weight * away * log).sum(axis=-1) / np.where(spread > 0, spread, 1.0)
    span, step = np.ptp(x), np.median(np.abs(np.diff(x)))
    rate = np.where(spread > 0, np.clip(rate, 0.1 / span, 1.0 / step), 1.0 / span)
    origin = x[0] if start is None else start
    level = np.exp(np.clip(log0 + rate * (x0 - origin), -14.0, 14.0))
    return {"level": sign * size * level, "decay": 1.0 / rate}


# --- what they share ----------------------------------------------------------------------------


def _filled(y) -> tuple[np.ndarray, np.ndarray]:
    """Spectra with what is not finite put on the line between its neighbours (0 where a spectrum
    has nothing), and the largest |y| of each (1 for none)."""
    y = np.asarray(y, float)
    good = np.isfinite(y)
    if not good.all():
        n = y.shape[-1]
        channels = np.where(good, np.arange(n), -1)
        left = np.maximum.accumulate(channels, axis=-1)
        channels = np.where(good, np.arange(n), n)
        right = np.minimum.accumulate(channels[..., ::-1], axis=-1)[..., ::-1]
        left, right = np.where(left < 0, right, left), np.where(right >= n, left, right)
        y = np.where(good, y, 0.0)
        low, high = (np.take_along_axis(y, np.clip(i, 0, n - 1), -1) for i in (left, right))
        share = (np.arange(n) - left) / np.maximum(right - left, 1)
        y = low + share * (high - low)
    size = np.abs(y).max(axis=-1)
    return y, np.where(size > 0, size, 1.0)


def _levelled(x, y) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spectra above their 10th percentile, that percentile, and their sizes."""
    if y.shape[-1:] != x.shape:
        raise ValueError(f"an axis of shape {x.shape} and data of {y.shape}: the last must agree")
    y, size = _filled(y)
    rank = y.shape[-1] // 10
    background = np.partition(y, rank, axis=-1)[..., rank]
    return y - background[..., None], background, size


def _running_mean(y: np.ndarray, width: int) -> np.ndarray:
    """Over an odd number of channels; the ends are repeated."""
    half = width // 2
    if half < 1:
        return y
    padded = np.pad(y, [(0, 0)] * (y.ndim - 1) + [(half, half)], mode="edge")
    n = y.shape[-1]
    return sum(padded[..., i : i + n] for i in range(2 * half + 1)) / (2 * half + 1)


def _largest(x, y, size) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Height, place and full width at half maximum of the largest value of each spectrum."""
    n = len(x)
    # equal values everywhere: the middle of the axis
    flat = y.max(axis=-1) <= np.maximum(y.min(axis=-1), 0.0) + LEAST * size
    top = np.where(flat, n // 2, y.argmax(axis=-1))
    height = np.maximum(np.take_along_axis(y, top[..., None], axis=-1)[..., 0], LEAST * size)
    channels = np.arange(n)
    below = y < 0.5 * height[..., None]
    left = np.where(below & (channels < top[..., None]), channels, -1).max(axis=-1)
    right = np.where(below & (channels > top[..., None]), channels, n).min(axis=-1)
    # a peak cut by the end of the axis is as wide on that side as on the other
    left_half = _crossing(x, y, height, left, left + 1, top)
    right_half = _crossing(x, y, height, right, right - 1, top)
    left_half = np.where(
        left < 0, np.where(right < n, right_half, 0.25 * (x[-1] - x[0])), left_half
    )
    right_half = np.where(right >= n, left_half, right_half)
    step = np.median(np.diff(x))
    width = np.clip(left_half + right_half, step, x[-1] - x[0])
    return height, x[top], np.where(flat, (x[-1] - x[0]) / 10.0, width)


def _crossing(x, y, height, outside, inside, top) -> np.ndarray:
    """How far from the top the spectrum crosses half of the height, between two channels."""
    n = len(x)
    outside, inside = np.clip(outside, 0, n - 1), np.clip(inside, 0, n - 1)
    low, high = (np.take_along_axis(y, i[..., None], axis=-1)[..., 0] for i in (outside, inside))
    low = np.maximum(low, -height)  # what was left out is minus infinity
    gap = high - low
    share = np.clip((high - 0.5 * height) / np.where(gap > 0, gap, 1.0), 0.0, 1.0)
    return np.abs(x[inside] + share * (x[outside] - x[inside]) - x[top])


def _rising(bias: Axis) -> Bool[np.ndarray, " n"]:
    """As `loops.rising`."""
    moves = np.append(np.diff(bias), 0.0)
    last = np.maximum.accumulate(np.where(moves != 0, np.arange(len(moves)), -1))
    return moves[np.where(last < 0, np.argmax(moves != 0), last)] > 0
