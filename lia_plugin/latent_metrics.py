"""Metrics of an encoding network's latents: are they where the prior says, and do known ones come back?

Those of y+ are of the base code, which is what φ takes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lia_plugin import evaluation, host, separability
from lia_plugin.collectors import collect
from lia_plugin.evaluation import Array
from lia_plugin.frechet import frechet_floor, frechet_to_standard_normal
from lia_plugin.host import UserError
from lia_plugin.metric_traits import register
from lia_plugin.networks import base_code

CYCLE_IMAGES = 1000


def _seed(opts: Any) -> int:
    return host.metric_option(opts, 'seed') or 0


def _say(opts: Any, results: dict[str, float], n: int, **notes: Any) -> dict[str, float]:
    space = evaluation.measured_space(opts)
    return host.say(opts, results, n, space=space, value_range='[-1, 1]', **notes)


# ---------------------------------------------------------------------------------------------------------------------
# Real images


@register(held_out=True, collectors=('squared_norm', 'z_gaussian'))
def latent_fd(opts: Any) -> dict[str, float]:
    """Fréchet distance of encoded images z = φ(f(x)) to N(0, I), its floor at this n, and KS of ‖z‖² against χ²."""
    from scipy import stats  # Here, because it takes half a second.

    norms, z = collect(opts, 'squared_norm', 'z_gaussian')
    n, dim = len(norms.values), len(z.mean)
    if np.isfinite(norms.values).all():
        ks = stats.kstest(norms.values, 'chi2', args=(dim,))
        distance, figures = frechet_to_standard_normal(z.mean, z.cov), (ks.statistic, ks.pvalue)
    else:
        distance, figures = float('nan'), (float('nan'), float('nan'))
    results = dict(
        latent_fd=distance,
        latent_fd_floor=frechet_floor(n, dim, _seed(opts)),
        latent_fd_ks=float(figures[0]),
        latent_fd_ks_p=float(figures[1]),
    )
    return _say(opts, results, n)


def attributes(opts: Any) -> list[separability.Attribute]:
    """Labels of the images to encode: those of `--labels`, or the data set's own.

    UserError if there are none that `ls` can use, or if it lacks a package.
    """
    separability.check_installed()
    path = host.metric_option(opts, 'labels')
    dataset = host.open_data_set(**{**evaluation.evaluation_set(opts), 'use_labels': path is None})
    if path is not None:
        return separability.from_table(path, host.image_names(dataset))
    if dataset.label_dim == 0:
        raise UserError(f'--metrics: ls needs labels, and {dataset.name} has none; --labels=FILE.csv names them')
    labels = np.stack([dataset.get_label(i) for i in range(len(dataset))])
    return separability.from_vectors(labels, f'--data: {dataset.name}')


@register(held_out=True, collectors=('y', 'z'))
def ls(opts: Any) -> dict[str, float]:
    """Linear separability of encoded real images by their own labels, in y and in z, cross-validated (1 is best)."""
    evaluation.check_encoder(opts.G)
    told = attributes(opts)
    y, z = collect(opts, 'y', 'z')
    results = dict(ls_y=float('nan'), ls_z=float('nan'), ls_chance=separability.chance(told))
    if opts.rank == 0:
        results |= {f'ls_{name}': separability.separability(code.rows, told, _seed(opts))
                    for name, code in (('y', y), ('z', z))}  # fmt: skip
    labelled = np.unique(np.concatenate([items for _name, items, _labels in told]))
    names = ','.join(name for name, _items, _labels in told)
    return _say(opts, results, len(labelled), attributes=names, folds=separability.FOLDS)


# ---------------------------------------------------------------------------------------------------------------------
# Generated images, whose latents are known


def _draw(opts: Any, G: Any, dataset: Any, items: range) -> tuple[torch.Tensor, torch.Tensor | None]:
    """z ~ N(0, I) and labels of random images: item i has a stream of its own, whatever the batch it falls into."""
    streams = [np.random.default_rng([_seed(opts), item]) for item in items]
    z = torch.from_numpy(np.stack([stream.standard_normal(G.z_dim) for stream in streams]).astype(np.float32))
    c = None
    if dataset is not None:
        labels = [dataset.get_label(int(stream.integers(len(dataset)))) for stream in streams]
        c = torch.from_numpy(np.stack(labels)).to(opts.device)
    return z.to(opts.device), c


def _relative_error(x: torch.Tensor, truth: torch.Tensor) -> Array:
    return evaluation.to_array((x - truth).norm(dim=1) / truth.norm(dim=1))


@torch.no_grad()
def _cycle_pass(opts: Any, n: int) -> tuple[Array, Array]:
    G = evaluation.prepare_network(opts)
    # `num` is that of the cycles: their labels are those of all images.
    dataset = evaluation.open_dataset(opts, G, max_size=None) if G.c_dim > 0 else None
    errors_y, errors_z = np.zeros(n), np.zeros(n)
    share = range(opts.rank, n, opts.num_gpus)
    step = evaluation.batch_size(opts, G.img_resolution)
    progress = opts.progress.sub(tag='cycles', num_items=n)
    for start in range(0, len(share), step):
        items = share[start : start + step]
        z, c = _draw(opts, G, dataset, items)
        y = G.mapping.z_to_y(z, c)
        img = G.decode(y, c, **evaluation.synthesis_kwargs(opts)).to(torch.float32)
        found = base_code(evaluation.encode(opts, G, img, c))
        errors_y[list(items)] = _relative_error(found, y)
        errors_z[list(items)] = _relative_error(G.mapping.y_to_z(found, c), z)
        progress.update(min((start + len(items)) * opts.num_gpus, n))
    by_y, by_z = evaluation.sum_over_processes(opts, errors_y, errors_z)
    return by_y, by_z


def _cycle(opts: Any, name: str) -> dict[str, float]:
    n = host.metric_option(opts, 'num') or CYCLE_IMAGES
    shared = host.metric_option(opts, 'shared')
    key = ('lia_plugin.latent_metrics', id(opts.G), 'cycle', n)
    if shared is None or key not in shared:
        errors = _cycle_pass(opts, n)
        if shared is not None:
            shared[key] = (opts.G, errors)
    else:
        errors = shared[key][1]
    value = float(errors[0 if name == 'cycle_y' else 1].mean())
    return _say(opts, {name: value}, n, data='generated images')


@register(held_out=False, labels_only=True)
def cycle_y(opts: Any) -> dict[str, float]:
    """‖f(g(y)) − y‖ / ‖y‖ on generated images, mean."""
    return _cycle(opts, 'cycle_y')


@register(held_out=False, labels_only=True)
def cycle_z(opts: Any) -> dict[str, float]:
    """‖φ(f(g(y))) − z‖ / ‖z‖ with y = φ⁻¹(z), on generated images, mean."""
    return _cycle(opts, 'cycle_z')
