"""A peer at work on one factorisation: `python side.py PEER FILE STEPS`; FILE has data and start.

Prints one JSON line with the CPU time, and leaves its factors in FILE.out.npz. Runs under the
interpreter of the peer.
"""

import json
import sys
import time
import warnings

import numpy as np
import scipy.sparse


def sklearn_nmf(x, w, h, steps: int, **options):
    from sklearn.decomposition import NMF

    model = NMF(h.shape[0], init="custom", max_iter=steps, tol=0.0, **options)
    w = model.fit_transform(x, W=w.copy(), H=h.copy())
    return w, model.components_


def counts(x, w, h, steps: int):
    """Multiplicative steps on Kullback and Leibler's divergence, on a sparse matrix."""
    sparse = scipy.sparse.csr_matrix(x)
    return sklearn_nmf(sparse, w, h, steps, solver="mu", beta_loss="kullback-leibler")


def coordinates(x, w, h, steps: int):
    return sklearn_nmf(x, w, h, steps, solver="cd")


def espm(x, w, h, steps: int):
    from espm.estimators import SmoothNMF

    settings = {"max_iter": steps, "no_stop_criterion": True, "verbose": 0, "simplex_W": False}
    model = SmoothNMF(n_components=h.shape[0], normalize=False, **settings)
    # its data are [channels, pixels]
    spectra = model.fit_transform(x.T.astype(float), W=h.T.astype(float), H=w.T.astype(float))
    return model.H_.T, np.asarray(spectra).T


PEERS = {"scikit-learn counts": counts, "scikit-learn": coordinates, "espm": espm}


def main() -> None:
    peer, file, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
    warnings.simplefilter("ignore")
    with np.load(file) as known:
        x, w, h = (known[name] for name in "xwh")
    run = PEERS[peer]
    run(x[:50], w[:50], h, 2)  # imports, the first call
    begun = time.process_time()
    w, h = run(x, w, h, steps)
    seconds = time.process_time() - begun
    np.savez(file + ".out.npz", w=w, h=h)
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
