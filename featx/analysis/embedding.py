"""A map of images: features in two dimensions, such that neighbours stay neighbours; and how well they did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.errors import UsageError
from featx.runtime.threads import usable_cores

MOST_MEASURED = 2000  # images whose neighbours are looked at for the figures
LEAST = 4
_PERPLEXITY_SHARE = 3  # t-SNE looks at three times as many neighbours as its perplexity
Floats = npt.NDArray[np.float64]


def principal_components(values: npt.NDArray[Any], count: int, seed: int) -> Floats:
    """(N, count) the rows in the directions in which they vary most; fewer if there are fewer."""
    from sklearn.decomposition import PCA

    count = min(count, *values.shape)
    exact = values.shape[1] <= 1000 or min(values.shape) <= 500
    pca = PCA(count, svd_solver="full" if exact else "randomized", random_state=seed)
    return np.asarray(pca.fit_transform(np.asarray(values, np.float32)), np.float64)


def tsne(
    values: npt.NDArray[Any], *, perplexity: float, seed: int, advance: Callable[[int], None] = lambda done: None
) -> Floats:
    """(N, 2) by t-SNE.

    Args:
        perplexity: how many neighbours count; a third of the images at most.
        advance: is told of iterations, 750 in all.

    Source:
        van der Maaten & Hinton, Visualizing data using t-SNE, JMLR 2008; openTSNE's implementation (Policar et al.,
        2024), begun at the first two principal components (Kobak & Berens, The art of using t-SNE, 2019).
    """
    from openTSNE import TSNE

    def tell(iteration: int, _error: float, _embedding: object) -> None:
        advance(50)

    model = TSNE(
        perplexity=min(perplexity, (len(values) - 1) / _PERPLEXITY_SHARE), initialization="pca", random_state=seed,
        n_jobs=usable_cores(), callbacks=tell, callbacks_every_iters=50,
        neighbors="exact" if len(values) < MOST_MEASURED else "auto",
    )  # fmt: skip
    return np.array(model.fit(values), np.float64)


def umap(values: npt.NDArray[Any], *, neighbors: int, seed: int) -> Floats:
    """(N, 2) by UMAP.

    Source:
        McInnes, Healy & Melville, UMAP: Uniform manifold approximation and projection, 2018.

    Raises:
        UsageError: umap-learn is not installed.
    """
    try:
        from umap import UMAP
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--method umap needs {error.name}, which is not installed: pip install 'featx[umap]'"
        ) from None
    model = UMAP(n_neighbors=min(neighbors, len(values) - 1), random_state=seed, n_jobs=1)
    return np.asarray(model.fit_transform(np.asarray(values, np.float32)), np.float64)


def trustworthiness(values: Floats, points: Floats, k: int, rows: npt.NDArray[np.intp]) -> float:
    """From 0 to 1: whether the neighbours on the map are neighbours among the features, too.

    Args:
        values, points: (N, D) and (N, 2).
        k: how many neighbours; less than N / 2.
        rows: those whose neighbours are looked at.

    Source:
        Venna & Kaski, Neighborhood preservation in nonlinear projection methods, ICANN 2001.
    """
    count, missing = len(values), 0
    for row in rows:
        far = np.square(values - values[row]).sum(axis=1)
        far[row] = -1.0  # itself comes first
        near = _nearest_points(points, int(row), k)
        ranks = (far[None] < far[near][:, None]).sum(axis=1)
        missing += int(np.maximum(0, ranks - k).sum())
    return 1.0 - 2.0 * missing / (len(rows) * k * (2 * count - 3 * k - 1))


def purity(points: Floats, labels: npt.NDArray[np.int32], k: int, rows: npt.NDArray[np.intp]) -> float:
    """Mean share of an image's k nearest points that have its class; of images with a class, NaN without any."""
    shares = [
        float((labels[_nearest_points(points, int(row), k)] == labels[row]).mean())
        for row in rows
        if labels[row] >= 0
    ]
    return float(np.mean(shares)) if shares else float("nan")


def _nearest_points(points: Floats, row: int, k: int) -> npt.NDArray[np.intp]:
    far = np.square(points - points[row]).sum(axis=1)
    far[row] = np.inf
    found: npt.NDArray[np.intp] = np.argsort(far, kind="stable")[:k]
    return found
