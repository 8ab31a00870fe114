"""What both sides of `fidelity.py` do: a host's process builds and pickles networks, and either side runs them.

    python fidelity_worker.py ROOT FOLDER      in a process of its own; ROOT is a host's checkout

Reads FOLDER/cases.json and writes, for the case of index i, FOLDER/i.pkl and what its networks gave, FOLDER/i.pt.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import itertools
import json
import os
import pickle
import sys
import types
import unittest.mock
import warnings
from collections.abc import Iterator
from typing import Any

import torch

PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
Outputs = dict[str, torch.Tensor]


# Building, in the host's process.

def build(case: dict[str, Any], kind: str) -> dict[str, Any]:
    """The snapshot's dict of a case, every weight random: nothing in it is zero or one by default."""
    stylegan2 = 'training.networks' if kind == 'ada' else 'training.networks_stylegan2'
    torch.manual_seed(0)
    data: dict[str, Any] = {'G': None, 'D': None}
    net, mapping, synthesis, for_D = case['arguments']
    loose = case['loose'] if case['loose'] is not None else kind == 'sg3'
    options = dict(net, mapping_kwargs=mapping, **(synthesis if loose else {'synthesis_kwargs': synthesis}))
    Generator = importlib.import_module(case['module'] or stylegan2).Generator
    data['G'] = _randomize(_construct(Generator, options, case['positional']))
    data['G_ema'] = _randomize(copy.deepcopy(data['G']))
    if case['D'] is not None:
        Discriminator = importlib.import_module(stylegan2).Discriminator
        data['D'] = _randomize(_construct(Discriminator, for_D, case['positional']))
    data['augment_pipe'] = None
    if case['augment'] is not None:
        pipe = importlib.import_module('training.augment').AugmentPipe(**case['augment'])
        pipe.p.fill_(0.6)
        data['augment_pipe'] = pipe.eval().requires_grad_(False)
    data['training_set_kwargs'] = dict(class_name='training.dataset.ImageFolderDataset', path='x.zip', use_labels=False)
    return data


def _construct(cls: Any, options: dict[str, Any], positional: bool) -> Any:
    names = list(inspect.signature(cls.__mro__[1].__init__).parameters)[1:] if positional else []
    leading = list(itertools.takewhile(options.__contains__, names))
    return cls(*(options[name] for name in leading),
               **{key: value for key, value in options.items() if key not in leading})


@torch.no_grad()
def _randomize(net: torch.nn.Module) -> torch.nn.Module:
    """Moves each weight by a third of a standard deviation or so; filters stay, and noise is loud enough to be seen."""
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        if tensor.is_floating_point() and not name.endswith(('resample_filter', 'running_var')):
            spread = 0.3 if tensor.numel() < 2 else 0.3 * max(float(tensor.std()), 0.5)
            tensor.add_(torch.randn_like(tensor) * spread)
    return net.eval().requires_grad_(False)


# Running, on either side.

def outputs(data: dict[str, Any], case: dict[str, Any], kind: str) -> Outputs:
    """Pictures, latents, logits and augmented pictures, under names that say which network and how it was called."""
    result: Outputs = {}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        _run_generator(result, data['G_ema'], case, kind)
        result['G settings'] = _settings(data['G_ema'])
        if data['D'] is not None:
            result['D settings'] = _settings(data['D'])
            _run_discriminator(result, data['D'], case)
        if data['augment_pipe'] is not None:
            _run_augment(result, data['augment_pipe'], case)
    return result


def _settings(net: torch.nn.Module) -> torch.Tensor:
    """What a CPU's numbers may not show: half precision, clamps that nothing reaches, w_avg's decay."""
    parts = [part for _, part in sorted(net.named_modules())]
    names = ('use_fp16', 'conv_clamp', 'w_avg_beta', 'channels_last')
    values = [getattr(part, name) for part in parts for name in names if hasattr(part, name)]
    return torch.tensor([-1.0 if value is None else float(value) for value in values])


def _labels(c_dim: int, batch: int) -> torch.Tensor:
    """Vectors, not one-hot: their lengths matter too."""
    return torch.randn([batch, c_dim], generator=torch.Generator().manual_seed(2))


def _run_generator(result: Outputs, G: Any, case: dict[str, Any], kind: str) -> None:
    batch, psi = case['batch'], case['psi']
    z = torch.randn([batch, G.z_dim], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    c = _labels(G.c_dim, batch)
    truncated = dict(truncation_psi=psi, truncation_cutoff=None if psi == 1 else min(3, G.num_ws - 1))
    result['G const'] = G(z, c, truncation_psi=psi, noise_mode='const', force_fp32=True)
    result['G none, cutoff'] = G(z, c, noise_mode='none', force_fp32=True, **truncated)
    torch.manual_seed(3)
    result['G random'] = G(z, c, noise_mode='random', force_fp32=True)
    result['G ws'] = G.mapping(z, c, **truncated)
    _as_it_runs(result, 'G', lambda: G(z, c, truncation_psi=psi, noise_mode='const'))
    if getattr(G, 'encoder', None) is not None:
        images = _pictures(batch, G.img_channels, G.img_resolution)
        y, latent = G.invert(images, c)
        result['G encoder, y'], result['G encoder, z'] = y, latent
    G.train()
    # In training w_avg moves, too; in one host unless it is told not to, in the other if it is told to.
    emas = {'update_emas': True} if kind == 'sg3' else {}
    result['G train'] = G(z, c, noise_mode='const', force_fp32=True, **emas)
    if hasattr(G.mapping, 'w_avg'):
        result['G w_avg after training'] = G.mapping.w_avg.clone()
    G.eval()


def _run_discriminator(result: Outputs, D: Any, case: dict[str, Any]) -> None:
    images = _pictures(case['batch'], D.img_channels, D.img_resolution)
    c = _labels(D.c_dim, case['batch'])
    result['D'] = D(images, c, force_fp32=True)
    result['D train'] = D.train()(images, c, force_fp32=True)
    D.eval()
    _as_it_runs(result, 'D', lambda: D(images, c))


def _as_it_runs(result: Outputs, network: str, call: Any) -> None:
    """Without asking for float32: on a CPU one host computes in true half precision then."""
    try:
        result[f'{network}, as it runs'] = call()
    except RuntimeError:    # Half precision on a CPU is not complete in every PyTorch.
        result[f'{network}, as it runs'] = torch.full([1], float('nan'))


def _run_augment(result: Outputs, pipe: Any, case: dict[str, Any]) -> None:
    images = _pictures(case['batch'], 3, 32)  # Its widest filter needs 22 pixels.
    with _noise_by_shape():
        for percentile in (0.1, 0.37, 0.5, 0.8):
            result[f'A {percentile}'] = pipe(images, debug_percentile=percentile)


@contextlib.contextmanager
def _noise_by_shape() -> Iterator[None]:
    """Normal numbers that depend on nothing but their shape: both sides draw, but not in the same order."""
    def randn(shape: Any, **_options: Any) -> torch.Tensor:
        return torch.empty(list(shape)).normal_(generator=torch.Generator().manual_seed(sum(shape)))

    with unittest.mock.patch.multiple(torch, randn=randn, randn_like=lambda x: randn(x.shape)):
        yield


def _pictures(batch: int, channels: int, resolution: int) -> torch.Tensor:
    """Smooth in part, as pictures are, and in [-1, 1]."""
    stream = torch.Generator().manual_seed(5)
    coarse = torch.randn([batch, channels, 4, 4], generator=stream)
    smooth = torch.nn.functional.interpolate(coarse, size=[resolution] * 2, mode='bilinear')
    return (smooth + 0.2 * torch.randn(smooth.shape, generator=stream)).clamp(-1, 1)


def kind_of(root: str) -> str:
    return 'sg3' if os.path.exists(os.path.join(root, 'training', 'networks_stylegan2.py')) else 'ada'


def main(root: str, folder: str) -> None:
    kind = kind_of(root)
    with open(os.path.join(folder, 'cases.json'), encoding='utf-8') as file:
        cases = json.load(file)
    for index, case in enumerate(cases):
        data = build(case, kind)
        with open(os.path.join(folder, f'{index}.pkl'), 'wb') as pkl:
            pickle.dump(data, pkl, protocol=case['protocol'])
        torch.save(outputs(data, case, kind), os.path.join(folder, f'{index}.pt'))
        print(f'{index + 1} of {len(cases)}: {case["name"]}', file=sys.stderr)


if __name__ == '__main__':
    # Not this folder, but the host; the plugin's home comes after it.
    sys.path[0:1] = [sys.argv[1], PROJECT]
    # stylegan3 compares versions with what setuptools no longer brings.
    resources = types.ModuleType('pkg_resources')
    setattr(resources, 'parse_version', torch.torch_version.TorchVersion)  # noqa: B010
    sys.modules.setdefault('pkg_resources', resources)
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    main(sys.argv[1], sys.argv[2])
