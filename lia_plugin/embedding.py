"""Maps of images: t-SNE of the principal components of their features, and others laid into the finished map."""

from __future__ import annotations

import importlib.util
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import optimize

from lia_plugin.figure_base import CannotDraw

Array = npt.NDArray[np.float64]

COMPONENTS = 50
PERPLEXITY = 30.0


class Map(NamedTuple):
    """Places [N, 2] and those of what was laid in [M, 2], and how they came about."""

    places: Array
    laid: Array
    components: int
    variance: float  # Share of it that the components hold.
    perplexity: float
    kl: float  # What t-SNE has minimised, in nats.


def is_installed() -> bool:
    return importlib.util.find_spec('sklearn') is not None


def check_tsne() -> None:
    """CannotDraw without scikit-learn."""
    if not is_installed():
        raise CannotDraw("t-SNE needs scikit-learn: pip install scikit-learn")


def tsne_map(features: npt.NDArray[np.float32], others: npt.NDArray[np.float32], seed: int = 0) -> Map:
    """t-SNE of rows [N, D], by at most COMPONENTS principal components, with others [M, D] laid into it by `lay`.

    Raises:
        CannotDraw: scikit-learn is missing, or fewer than four rows.
    """
    check_tsne()
    if len(features) < 4:
        raise CannotDraw(f'a map of {len(features)} points says nothing')
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    count = min(COMPONENTS, *features.shape)
    pca = PCA(count, svd_solver='randomized' if count < min(features.shape) else 'full', random_state=seed)
    reduced = pca.fit_transform(features)
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init='pca', random_state=seed)
    places = tsne.fit_transform(reduced).astype(np.float64)
    laid = lay(pca.transform(others).astype(np.float64), reduced.astype(np.float64), places, perplexity)
    share = float(pca.explained_variance_ratio_.sum())
    return Map(places, laid, count, share, float(perplexity), float(tsne.kl_divergence_))


def lay(points: Array, rows: Array, places: Array, perplexity: float) -> Array:
    """Where points [M, D] belong in the map of rows [N, D] with places [N, 2] -> [M, 2].

    Each is put, alone, where t-SNE's divergence between its neighbours among the rows and those in the map is least,
    as Poličar, Stražar and Zupan 2021 do it ("Embedding to reference t-SNE space"). Mapped together with them, a chain
    of images in small steps would be nothing but its own neighbours, and a cluster beside all others.
    """
    found = []
    for point in points:
        share = neighbours(np.square(rows - point).sum(axis=1), perplexity)
        starts = (places[share.argmax()], share @ places)
        ends = [optimize.minimize(_divergence, start, (share, places), 'L-BFGS-B', jac=True) for start in starts]
        found.append(min(ends, key=lambda end: end.fun).x)
    return np.array(found).reshape(-1, 2)


def neighbours(square: Array, perplexity: float) -> Array:
    """Squared distances [N] -> a Gaussian's shares [N] of them, as wide as makes exp(entropy) the perplexity."""
    low, high = -80.0, 80.0  # log of the precision, by bisection.
    relative = square - square.min()
    for _ in range(100):
        middle = (low + high) / 2
        weights = np.exp(-math.exp(middle) * relative)
        share = weights / weights.sum()
        entropy = -float((share[share > 0] * np.log(share[share > 0])).sum())
        low, high = (middle, high) if entropy > math.log(perplexity) else (low, middle)
    return share


def _divergence(place: Array, share: Array, places: Array) -> tuple[float, Array]:
    """Σ p log(1/q) of a place [2], q ∝ 1/(1 + distance²) over all places; and its gradient."""
    gap = place - places
    weight = 1 / (1 + np.square(gap).sum(axis=1))
    total = weight.sum()
    value = -float(share @ np.log(weight)) + math.log(total)
    pull, push = share * weight, np.square(weight) / total
    return value, 2 * ((pull - push)[:, None] * gap).sum(axis=0)
