"""Maps of images: principal components of their features, and t-SNE of these."""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lia_plugin.figure_base import CannotDraw

COMPONENTS = 50
PERPLEXITY = 30.0


class Map(NamedTuple):
    """Places [N, 2], and how they came about."""

    places: npt.NDArray[np.float64]
    components: int
    variance: float  # Share of it that the components hold.
    perplexity: float
    kl: float  # What t-SNE has minimised, in nats.


def is_installed() -> bool:
    return importlib.util.find_spec('sklearn') is not None


def check_tsne() -> None:
    """CannotDraw without scikit-learn."""
    if not is_installed():
        raise CannotDraw("t-SNE needs scikit-learn: pip install 'lia-plugin[metrics]' or scikit-learn")


def tsne_map(features: npt.NDArray[np.float32], seed: int = 0) -> Map:
    """[N, D] -> their map by t-SNE of at most COMPONENTS principal components, as van der Maaten and Hinton do it.

    Raises:
        CannotDraw: scikit-learn is missing, or fewer than four points.
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
    share = float(pca.explained_variance_ratio_.sum())
    return Map(places, count, share, float(perplexity), float(tsne.kl_divergence_))
