"""How similar two representations of the same images are: CKA, RSA, Procrustes.

Values are (N, D) in float64, the same N images in the same order on both sides; D may differ.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import kendalltau, rankdata

from featx.analysis.dissimilarity import dissimilarities

METRICS = ("cka", "cka-unbiased", "rsa", "rsa-kendall", "procrustes")
Floats = npt.NDArray[np.float64]


def gram(values: npt.NDArray[np.floating]) -> Floats:
    """(N, N) products of the centred rows."""
    rows = np.asarray(values, np.float64)
    centred = rows - rows.mean(axis=0)
    return np.asarray(centred @ centred.T)


def cka(k: Floats, m: Floats) -> float:
    """Linear centred kernel alignment of two `gram` matrices, from 0 to 1.

    <K, M> / (|K| |M|) (Kornblith, Norouzi, Lee & Hinton, ICML 2019): too high where there are few images for many
    values.
    """
    return float((k * m).sum() / (np.linalg.norm(k) * np.linalg.norm(m)))


def cka_unbiased(x: npt.NDArray[np.floating], y: npt.NDArray[np.floating], batch: int, seed: int) -> float:
    """Linear CKA from unbiased estimates of HSIC over batches of images, whose means are divided.

    Source:
        Nguyen, Raghu & Kornblith, Do Wide and Deep Networks Learn the Same Things?, ICLR 2021, appendix A; the
        estimator is Song et al.'s, Feature Selection via Dependence Maximization, JMLR 2012, equation 5.
    """
    order = np.random.default_rng(seed).permutation(len(x))
    sums = np.zeros(3)
    for part in np.array_split(order, max(1, len(x) // batch)):
        mine, theirs = np.asarray(x[np.sort(part)], np.float64), np.asarray(y[np.sort(part)], np.float64)
        k, m = mine @ mine.T, theirs @ theirs.T
        sums += [_hsic(k, m), _hsic(k, k), _hsic(m, m)]
    return float(sums[0] / np.sqrt(sums[1] * sums[2]))


def _hsic(k: Floats, m: Floats) -> float:
    """The unbiased estimate of HSIC of n > 3 images."""
    count = len(k)
    k, m = k.copy(), m.copy()
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    ones = k.sum() * m.sum() / ((count - 1) * (count - 2))
    cross = 2 * k.sum(0) @ m.sum(0) / (count - 2)
    return float(((k * m).sum() + ones - cross) / (count * (count - 3)))


def rsa(a: Floats, b: Floats, method: str = "spearman") -> float:
    """The rank correlation of two dissimilarity matrices (N, N) over the pairs of images.

    Args:
        method: "spearman" or "kendall" (tau-b).
    """
    pairs = np.triu_indices(len(a), 1)
    mine, theirs = a[pairs], b[pairs]
    good = np.isfinite(mine) & np.isfinite(theirs)
    if method == "kendall":
        return float(kendalltau(mine[good], theirs[good]).statistic)
    return float(np.corrcoef(rankdata(mine[good]), rankdata(theirs[good]))[0, 1])


def rsa_interval(a: Floats, b: Floats, method: str, repeats: int, seed: int) -> tuple[float, float]:
    """The 2.5 and 97.5 percentiles of `rsa` over bootstraps of the images, without pairs of an image with itself."""
    generator, found = np.random.default_rng(seed), []
    for _ in range(repeats):
        chosen = np.sort(generator.integers(0, len(a), len(a)))
        same = chosen[:, None] == chosen[None, :]
        found.append(rsa(np.where(same, np.nan, a[np.ix_(chosen, chosen)]), b[np.ix_(chosen, chosen)], method))
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def factor(values: npt.NDArray[np.floating]) -> Floats:
    """(N, min(N, D)) with the products of the centred rows, of Frobenius norm 1."""
    rows = np.asarray(values, np.float64)
    rows = rows - rows.mean(axis=0)
    if rows.shape[1] > len(rows):
        left, scales, _ = np.linalg.svd(rows, full_matrices=False)
        rows = left * scales
    return np.asarray(rows / np.linalg.norm(rows))


def procrustes(a: Floats, b: Floats) -> float:
    """How far a rotation and a scale bring one representation onto the other, from their `factor`s; 0 to 1.

    The nuclear norm of X^T Y for centred X and Y of Frobenius norm 1 (Williams, Kunz, Kornblith & Linderman, NeurIPS
    2021, equation 6; Ding, Denain & Steinhardt, NeurIPS 2021): 1 for representations that differ by a rotation.
    """
    return float(np.linalg.norm(a.T @ b, "nuc"))


def dissimilarity_matrix(values: npt.NDArray[np.floating], metric: str) -> Floats:
    """(N, N) of rows (N, D); see `dissimilarity.dissimilarities`."""
    found = np.empty((len(values), len(values)))
    dissimilarities(values, metric, found)
    return found
