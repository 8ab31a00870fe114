"""Network pickles by the name that the hosts' tools call: `legacy.load_network_pkl`."""

import os
from typing import IO, Any

import torch

from dnnlib.util import UserError
from torch_utils import misc, network_pickle


def load_network_pkl(f: IO[bytes] | str, force_fp16: bool = False, trust: bool = False) -> dict[str, Any]:
    """The snapshot's dict, with None for what the file doesn't have; extra entries survive.

    A path may also be that of a folder that `python -m lia_plugin export` wrote, which holds no pickle.
    `force_fp16` rebuilds the networks so that their four highest resolutions compute in half precision on a GPU.
    Raises UserError, naming the file, for anything that is no snapshot. Nothing in it runs, unless `trust`.
    """
    data = _load_folder(f) if isinstance(f, str) and os.path.isdir(f) else network_pickle.load(f, trust=trust)
    for key in ('G', 'D', 'G_ema', 'training_set_kwargs', 'augment_pipe'):
        data.setdefault(key, None)
    name = f if isinstance(f, str) else getattr(f, 'name', '<stream>')
    if not isinstance(data['G_ema'], torch.nn.Module):
        raise UserError(f'{name}: holds no network G_ema, so it is no snapshot of a generator')
    if not hasattr(data['G_ema'], 'synthesis'):
        raise UserError(f'{name}: its network is a {type(data["G_ema"]).__name__}, which is no generator')
    for key, kinds in (('G', torch.nn.Module), ('D', torch.nn.Module), ('augment_pipe', torch.nn.Module),
                       ('training_set_kwargs', dict)):
        if not isinstance(data[key], (kinds, type(None))):
            raise UserError(f'{name}: its {key} is a {type(data[key]).__name__}, expected a {kinds.__name__}')
    if force_fp16:
        for key in ('G', 'D', 'G_ema'):
            data[key] = _with_fp16(data[key], is_generator=key != 'D')
    return data


def _load_folder(path: str) -> dict[str, Any]:
    from torch_utils import network_folder  # Few need it, and it brings safetensors.

    return network_folder.load(path)


def _with_fp16(network: Any, is_generator: bool) -> Any:
    """The same network, built anew with the hosts' mixed-precision options."""
    if network is None:
        return None
    options = {'num_fp16_res': 4, 'conv_clamp': 256}
    kwargs = network.init_kwargs
    if is_generator:
        loose = {key: kwargs.pop(key) for key in options if key in kwargs}  # Where StyleGAN3 has them.
        kwargs['synthesis_kwargs'] = {**loose, **kwargs.get('synthesis_kwargs', {}), **options}
    else:
        kwargs.update(options)
    if kwargs == network.init_kwargs:
        return network
    rebuilt = type(network)(*network.init_args, **kwargs).eval().requires_grad_(False)
    misc.copy_params_and_buffers(network, rebuilt, require_all=True)
    return rebuilt
