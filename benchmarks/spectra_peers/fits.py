"""hyperspy, lmfit and NLSQ on the spectra of a file, one JSON line each: CPU seconds a fit, values.

python fits.py CASE FILE.npz        x, y [n, ...], starts [n, d]
"""

import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from spectra import predicted  # noqa: E402

FEW = 64


def tell(peer, seconds, values) -> None:
    print(json.dumps({"peer": peer, "seconds": seconds, "values": values.tolist()}), flush=True)


def of_lmfit(case, x, y, starts) -> None:
    import lmfit

    names = [f"p{i}" for i in range(starts.shape[1])]

    def residual(p, data):
        return (predicted(case, x, np.array([p[n].value for n in names])) - data).ravel()

    begun, out = time.process_time(), []
    for data, start in zip(y, starts, strict=True):
        p = lmfit.Parameters()
        for n, v in zip(names, start, strict=True):
            p.add(n, value=v)
        fitted = lmfit.minimize(residual, p, args=(data,))
        out.append([fitted.params[n].value for n in names])
    tell(f"lmfit {lmfit.__version__}", (time.process_time() - begun) / len(y), np.array(out))


def of_hyperspy(case, x, y, starts) -> None:
    if case == "oscillator":
        return  # no complex component
    import hyperspy
    import hyperspy.api as hs

    hs.preferences.General.show_progressbar = False
    signal = hs.signals.Signal1D(y)
    axis = signal.axes_manager[-1]
    axis.offset, axis.scale = x[0], x[1] - x[0]
    model, peaks = signal.create_model(), []
    for _ in range((starts.shape[1] - 1) // 3):
        peaks.append(hs.model.components1D.GaussianHF())
    floor = hs.model.components1D.Offset()
    model.extend([*peaks, floor])
    wide = 2.0 * np.sqrt(2.0 * np.log(2.0))

    def fill(parameter, values):
        parameter.map["values"][:], parameter.map["is_set"][:] = values, True

    for i, peak in enumerate(peaks):
        fill(peak.height, starts[:, 3 * i])
        fill(peak.centre, starts[:, 3 * i + 1])
        fill(peak.fwhm, wide * starts[:, 3 * i + 2])
    fill(floor.offset, starts[:, -1])
    begun = time.process_time()
    model.multifit(iterpath="serpentine")
    seconds = (time.process_time() - begun) / len(y)
    columns = []
    for peak in peaks:
        of_peak = [p.map["values"] for p in (peak.height, peak.centre, peak.fwhm)]
        columns += [of_peak[0], of_peak[1], of_peak[2] / wide]
    values = np.stack([*columns, floor.offset.map["values"]], -1)
    tell(f"hyperspy {hyperspy.__version__} multifit", seconds, values)


def of_nlsq(case, x, y, starts) -> None:
    import jax.numpy as jnp
    from nlsq import CurveFit

    if case == "oscillator":
        return  # one channel

    def model(x, *p):
        out = p[-1] + jnp.zeros_like(x)
        for i in range(0, len(p) - 1, 3):
            out = out + p[i] * jnp.exp(-0.5 * ((x - p[i + 1]) / p[i + 2]) ** 2)
        return out

    fitter = CurveFit()
    fitter.curve_fit(model, x, y[0], p0=starts[0])
    begun = time.process_time()
    out = [fitter.curve_fit(model, x, d, p0=s)[0] for d, s in zip(y, starts, strict=True)]
    tell("NLSQ", (time.process_time() - begun) / len(y), np.array(out))


def main() -> None:
    case, path = sys.argv[1:]
    warnings.simplefilter("ignore")
    data = np.load(path)
    for peer in (of_lmfit, of_hyperspy, of_nlsq):
        try:
            peer(case, data["x"], data["y"][:FEW], data["starts"][:FEW])
        except ImportError as error:
            print(f"{peer.__name__} skipped: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
