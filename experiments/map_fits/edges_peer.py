"""The same edges by exspy, pixel by pixel. Runs without micjax.

    PYTHON edges_peer.py FILE OUT          an interpreter with exspy; called by edges.py

Writes, for every STRIDE-th pixel of the map, what the models leave and how long they took.
"""

import logging
import sys
import time
import warnings

import numpy as np

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

STRIDE = 5
PEERS = {  # how an exspy model is fitted
    "least squares": (False, [{}]),
    "Poisson": (False, [{}, {"loss_function": "ML-poisson", "optimizer": "Nelder-Mead"}]),
    "least squares, fine structure": (True, [{}]),
    "Poisson, fine structure": (
        True,
        [{}, {"loss_function": "ML-poisson", "optimizer": "Nelder-Mead"}],
    ),
}


def main() -> None:
    import hyperspy.api as hs

    spectra = hs.load(sys.argv[1])
    spectra.change_dtype("float64")
    spectra.add_elements(("Cu", "Zn"))
    some = spectra.inav[::STRIDE, ::STRIDE]
    axis = some.axes_manager.signal_axes[0]
    out = {}
    for name, (fine, rounds) in PEERS.items():
        model = some.create_model(GOS="hydrogenic")
        if fine:
            model.enable_fine_structure()
        began = time.process_time()
        for options in rounds:
            kind = {} if options else {"kind": "smart"}
            model.multifit(show_progressbar=False, **kind, **options)
        seconds = time.process_time() - began
        law = model["PowerLaw"]
        A, r = (p.map["values"][..., None] for p in (law.A, law.r))
        edges = [c for c in model if c.name != "PowerLaw"]
        left = some.data - model.as_signal(component_list=edges, show_progressbar=False).data
        copper, zinc = (model[n].intensity.map["values"] for n in ("Cu_L3", "Zn_L3"))
        out[f"{name}: left"] = left - axis.scale * A * axis.axis**-r
        out[f"{name}: seconds"] = seconds / left[..., 0].size
        out[f"{name}: share"] = copper / (copper + zinc)
    np.savez(sys.argv[2], **out)


if __name__ == "__main__":
    main()
