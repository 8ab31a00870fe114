"""What is usual among the codes of a set of images: a small file that turns a code's figures into empirical p-values.

Codes of real images lie outside the prior, often by so much that its own p-value is 0 for all of them. A calibration
holds how ‖z‖², log p(y) and the distance to the set's centre are distributed over n encoded images.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import zipfile
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lia_plugin.host import UserError, atomic_write, one_line

Array = npt.NDArray[Any]

FORMAT = 'lia calibration 1'
MIN_IMAGES = 10  # With fewer no p-value falls below 0.18.
MAX_BYTES = 2**30  # Twenty million images; a file that unpacks to more is none of ours.


# ---------------------------------------------------------------------------------------------------------------------
# Statistics


def two_sided_p(values: Array, usual: Array, members: bool = False) -> Array:
    """Empirical two-sided p of each value [M] among `usual`, n sorted numbers -> [M], from 2/(n+1) to 1.

    Each tail counts as (k + 1)/(n + 1), with k of the n at least as far out; p is twice the smaller tail. For a value
    of the same distribution, P(p ≤ a) ≤ a whatever n (Phipson and Smyth 2010, "Permutation p-values should never be
    zero").
    `members`: the values are among the n themselves, and each is compared with the n − 1 others.
    """
    below = np.searchsorted(usual, values, side='right')
    return np.minimum(2 * np.minimum(_tail(below, len(usual), members), upper_p(values, usual, members)), 1)


def upper_p(values: Array, usual: Array, members: bool = False) -> Array:
    """Empirical p of being as large as each value [M] among `usual`, see `two_sided_p`."""
    above = len(usual) - np.searchsorted(usual, values, side='left')
    return _tail(above, len(usual), members)


def _tail(count: Array, n: int, members: bool) -> Array:
    return count / n if members else (count + 1) / (n + 1)


def oas_shrinkage(cov: Array, n: int) -> float:
    """How far to shrink a covariance of n samples towards its mean variance, 0 … 1.

    The oracle approximating shrinkage of Chen, Wiesel, Eldar and Hero 2010 (arXiv 0907.4698, eq. 23), without its terms
    in 2/d, as scikit-learn has it.
    """
    trace, square = np.trace(cov), np.square(cov).sum()
    spread = (n + 1) * (square - trace**2 / len(cov))
    return float(min((square + trace**2) / spread, 1)) if spread > 0 else 1.0


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """N(mean, cov) of a set of n codes; `cov` is shrunk: (1 − s)·S + s·tr(S)/d·I, S the population covariance."""

    mean: Array  # [d]
    cov: Array  # [d, d]
    shrinkage: float
    n: int

    def distance(self, z: Array) -> Array:
        """Squared Mahalanobis distance of codes [N, d] -> [N]."""
        whitened = np.linalg.solve(np.linalg.cholesky(self.cov), (z - self.mean).T)
        return np.square(whitened).sum(axis=0)


def fit_gaussian(z: Array) -> Gaussian:
    """The Gaussian of codes [n, d], in float64."""
    mean = z.mean(axis=0, dtype=np.float64)
    cov = _population_cov(z, mean)
    shrinkage = oas_shrinkage(cov, len(z))
    level = max(np.trace(cov) / len(cov), np.finfo(np.float64).tiny)  # Codes that are all alike have none.
    return Gaussian(mean, (1 - shrinkage) * cov + shrinkage * level * np.eye(len(cov)), shrinkage, len(z))


def _population_cov(z: Array, mean: Array, block: int = 8192) -> Array:
    outer = np.zeros([z.shape[1], z.shape[1]])
    for start in range(0, len(z), block):  # Float64 copies of all codes would take twice their own memory.
        centred = z[start : start + block] - mean
        outer += centred.T @ centred
    return outer / len(z)


def left_out_distance(z: Array, gaussian: Gaussian, block: int = 8192) -> Array:
    """Squared distance of each of the n codes [n, d] to the Gaussian of the n − 1 others -> [n].

    A set's own members are nearer to its Gaussian than others are, by much if n is not far above d; so they can't tell
    what is usual for others unless each is left out. Exact but for shrinkage and its target, which stay those of all n:
    leaving out x takes k·δδᵀ from the covariance's A, with δ = x − mean, and Sherman-Morrison inverts that.
    """
    n, s = len(z), gaussian.shrinkage
    grow = n / (n - 1)
    level = np.trace(gaussian.cov) / len(gaussian.cov)
    target = s * level * np.eye(len(gaussian.cov))
    A = grow * (gaussian.cov - target) + target
    factor = np.linalg.cholesky(A)
    k = (1 - s) * n / (n - 1) ** 2
    parts = []
    for start in range(0, n, block):
        q = np.square(np.linalg.solve(factor, (z[start : start + block] - gaussian.mean).T)).sum(axis=0)
        parts.append(grow**2 * q / np.maximum(1 - k * q, 1e-12))
    return np.concatenate(parts)


# ---------------------------------------------------------------------------------------------------------------------
# The calibration and its file


def network_hash(G: Any) -> str:
    """SHA-256 of what makes an image's z, however the network is stored: the weights of encoder and φ.

    Those of the synthesis network too for an encoder that looks at its own reconstructions.
    """
    digest = hashlib.sha256()
    looks_back = getattr(G.mapping.encoder, 'iters', 1) > 1
    for part in (G.mapping, G.synthesis) if looks_back else (G.mapping,):
        for name, value in sorted(part.state_dict().items()):
            if name != 'w_avg':  # Only truncation looks at it.
                digest.update(f'{name} {list(value.shape)}\n'.encode())
                digest.update(value.detach().cpu().to(torch.float64).numpy().tobytes())
    return digest.hexdigest()


class Figures(NamedTuple):
    """What images are judged by, float64 [N] each."""

    square_norm: Array
    log_prob: Array
    distance: Array


def square_norm(z: Array) -> Array:
    """‖z‖² in float64: [N, z_dim] -> [N]."""
    return np.square(z, dtype=np.float64).sum(axis=1)


def own_figures(z: Array, log_prob: Array, gaussian: Gaussian) -> Figures:
    """Of the very images that `gaussian` was fitted to, each left out of it."""
    return Figures(square_norm(z), log_prob.astype(np.float64), left_out_distance(z, gaussian))


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Figures of n encoded images, each sorted on its own, and the Gaussian of their codes."""

    square_norm: Array  # [n]
    log_prob: Array  # [n]
    distance: Array  # [n], each to the Gaussian of the others
    gaussian: Gaussian
    network: str  # `network_hash`
    data: str  # What the set is called.

    @property
    def n(self) -> int:
        return len(self.square_norm)

    def figures(self, z: Array, log_prob: Array) -> Figures:
        """Of images that are not of the set: z [N, z_dim], log p(y) [N]."""
        return Figures(square_norm(z), log_prob.astype(np.float64), self.gaussian.distance(z.astype(np.float64)))

    def p_values(self, figures: Figures, members: bool = False) -> dict[str, Array]:
        """Empirical p-values -> [N] each; `members`: the figures are those of the set itself, `own_figures`.

        `typicality_set` and `p_log_prob` are two-sided, of ‖z‖² and log p(y). `p_distance` is one-sided: how many of
        the set lie at least as far from its centre.
        """
        return {
            'typicality_set': two_sided_p(figures.square_norm, self.square_norm, members),
            'p_log_prob': two_sided_p(figures.log_prob, self.log_prob, members),
            'p_distance': upper_p(figures.distance, self.distance, members),
        }


def calibrate(z: Array, log_prob: Array, network: str, data: str) -> Calibration:
    """From codes [n, z_dim] and log p(y) [n] of a set.

    Raises:
        UserError: fewer than MIN_IMAGES images, or a figure that is not finite.
    """
    if len(z) < MIN_IMAGES:
        raise UserError(f'{data}: {len(z)} images are too few to say what is usual; at least {MIN_IMAGES}')
    if not (np.isfinite(z).all() and np.isfinite(log_prob).all()):
        raise UserError(f'{data}: the network gives codes that are not finite')
    gaussian = fit_gaussian(z)
    figures = {name: np.sort(values) for name, values in own_figures(z, log_prob, gaussian)._asdict().items()}
    return Calibration(**figures, gaussian=gaussian, network=network, data=data)


def save(path: str | os.PathLike[str], calibration: Calibration) -> None:
    """An .npz of plain arrays: the three sorted figures, mean, cov, and `info`, JSON text."""
    gaussian = calibration.gaussian
    info = dict(
        format=FORMAT, network_hash=calibration.network, data=calibration.data, n=calibration.n,
        z_dim=len(gaussian.mean), covariance='OAS', shrinkage=gaussian.shrinkage,
    )  # fmt: skip
    arrays = {name: getattr(calibration, name) for name in Figures._fields}
    with atomic_write(os.fspath(path)) as file:
        np.savez(file, **arrays, mean=gaussian.mean, cov=gaussian.cov, info=np.array(json.dumps(info)))


def load(path: str | os.PathLike[str], G: Any = None) -> Calibration:
    """Reads what `save` wrote. Nothing in the file runs.

    Raises:
        UserError: missing, not such a file, damaged, or not made with the network `G` (None = don't look).
    """
    where = os.fspath(path)
    if not os.path.isfile(where):
        raise UserError(f'{where}: no such file; the command audit writes one, calibration.npz')
    try:
        found = _read(where)
    except Exception as error:  # Hostile archives raise whatever they can.
        raise UserError(f'{where}: not a calibration file, or damaged ({one_line(error)})') from None
    if G is not None and found.network != network_hash(G):
        raise UserError(f'{where}: made with another network; make one with this: python -m lia_plugin audit')
    return found


def _read(path: str) -> Calibration:
    with zipfile.ZipFile(path) as archive:  # What it unpacks to is looked at before anything is unpacked.
        if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:
            raise ValueError(f'more than {MAX_BYTES >> 20} MB unpacked')
    with np.load(path, allow_pickle=False) as file:
        info = json.loads(str(file['info'][()]))
        arrays = {name: np.asarray(file[name], np.float64) for name in (*Figures._fields, 'mean', 'cov')}
    if info['format'] != FORMAT:
        raise ValueError(f'format {str(info["format"])[:40]!r}, expected {FORMAT!r}')
    n, d = len(arrays['square_norm']), len(arrays['mean'])
    shapes = dict.fromkeys(Figures._fields, (n,)) | dict(mean=(d,), cov=(d, d))
    for name, shape in shapes.items():
        if arrays[name].shape != shape or not np.isfinite(arrays[name]).all():
            raise ValueError(f'{name}: expected {list(shape)} finite numbers')
    if n < MIN_IMAGES or any((np.diff(arrays[name]) < 0).any() for name in Figures._fields):
        raise ValueError('its figures are too few, or not sorted')
    np.linalg.cholesky(arrays['cov'])
    gaussian = Gaussian(arrays['mean'], arrays['cov'], float(info['shrinkage']), n)
    figures = {name: arrays[name] for name in Figures._fields}
    return Calibration(**figures, gaussian=gaussian, network=str(info['network_hash']), data=str(info['data']))


def beside(network: str) -> str | None:
    """NAME.calibration.npz beside the network file NAME.pkl, or None if there is none."""
    path = f'{os.path.splitext(network.rstrip("/"))[0]}.calibration.npz'
    return path if os.path.isfile(path) else None
