"""A snapshot as a folder without pickles: model.safetensors, config.json, and whatever text goes with them.

config.json names the class of each network and its constructor's arguments; all weights lie in the one safetensors
file, as ENTRY.NAME. Nothing in such a folder can run anything, so it is the form to hand networks on in.
"""

import errno
import json
import math
import os
import shutil
import uuid
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from dnnlib.util import UserError

from . import network_pickle, persistence
from .safe_unpickler import Record

FORMAT, VERSION = 'lia-networks', 1
WEIGHTS, CONFIG = 'model.safetensors', 'config.json'
_MAX_CONFIG = 4 << 20   # Bytes.


def save(folder: str, data: dict[str, Any], texts: dict[str, str] | None = None) -> list[str]:
    """Writes a snapshot's dict and other `texts` (name → content) as a new folder, whole or not at all.

    Returns what had to be left out: entries that are neither networks nor plain data, each with its type.
    Raises UserError if the folder exists and isn't empty, or a network's class is none of this project's.
    """
    if os.path.exists(folder) and (not os.path.isdir(folder) or os.listdir(folder)):
        raise UserError(f'{folder}: exists already; name a new folder')
    config, tensors, left_out = describe(data)
    parent = os.path.dirname(os.path.abspath(folder))
    os.makedirs(parent, exist_ok=True)
    draft = os.path.join(parent, f'.{os.path.basename(os.path.abspath(folder))[:100]}.{uuid.uuid4().hex}.tmp')
    try:
        os.mkdir(draft)
        safetensors.torch.save_file(tensors, os.path.join(draft, WEIGHTS), metadata={'format': 'pt'})
        for name, content in {CONFIG: json.dumps(config, indent=2, allow_nan=False) + '\n', **(texts or {})}.items():
            with open(os.path.join(draft, name), 'w', encoding='utf-8') as file:
                file.write(content)
        # The library closes its file to everybody else, whatever the umask says.
        shutil.copymode(os.path.join(draft, CONFIG), os.path.join(draft, WEIGHTS))
        for name in os.listdir(draft):
            _sync(os.path.join(draft, name))
        if os.path.isdir(folder):
            os.rmdir(folder)
        os.rename(draft, folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return left_out


def load(folder: str) -> dict[str, Any]:
    """The snapshot's dict, weights bit for bit and in their own types; networks on the CPU.

    Raises UserError, one line that names the folder, for whatever doesn't fit: unknown classes, a tensor too many, too
    few or of another shape, numbers that JSON doesn't have.
    """
    config = _read_config(os.path.join(folder, CONFIG))
    path = os.path.join(folder, WEIGHTS)
    try:
        tensors = _load_tensors(path)
    except FileNotFoundError:
        raise UserError(f'{folder}: has no {WEIGHTS}') from None
    except (OSError, safetensors.SafetensorError, MemoryError, ValueError, KeyError) as err:
        raise UserError(f'{path}: cannot be read ({network_pickle.one_line(err)})') from err
    try:
        return _rebuild(folder, config, tensors)
    except UserError as err:    # The reader of pickles gives an advice that means nothing here.
        raise UserError(str(err).replace(f'; {network_pickle.TRUST_HINT}', '')) from None
    except Exception as err:    # Well-formed JSON, but not what networks are made of.
        raise UserError(f'{folder}: its {CONFIG} describes no network ({network_pickle.one_line(err)})') from err


def _load_tensors(path: str) -> dict[str, torch.Tensor]:
    try:
        path.encode('utf-8')
    except UnicodeEncodeError:  # Such a name the library can't open.
        with open(path, 'rb') as file:
            return safetensors.torch.load(file.read())
    return safetensors.torch.load_file(path, device='cpu')


# Networks to plain data.

def describe(data: dict[str, Any]) -> tuple[dict[str, Any], dict[str, torch.Tensor], list[str]]:
    """config.json's content, all weights by their full names, and what is left out."""
    networks: dict[str, Any] = {}
    values: dict[str, Any] = {}
    tensors: dict[str, torch.Tensor] = {}
    left_out: list[str] = []
    seen: dict[int, str] = {}
    for key, value in data.items():
        if isinstance(value, torch.nn.Module) and id(value) in seen:
            networks[key] = {'same_as': seen[id(value)]}
        elif isinstance(value, torch.nn.Module):
            seen[id(value)] = key
            networks[key] = _describe_network(key, value)
            tensors.update({f'{key}.{name}': tensor for name, tensor in _persistent_tensors(value).items()})
        else:
            try:
                values[key] = _to_json(value, key)
            except UserError:
                left_out.append(f'{key} ({type(value).__name__})')
    entries = [key for key in data if key in networks or key in values]    # Their order, which JSON's two dicts lose.
    config = {'format': FORMAT, 'version': VERSION, 'entries': entries, 'networks': networks, 'values': values}
    return config, _unshared(tensors), left_out


def _describe_network(key: str, network: Any) -> dict[str, Any]:
    cls = type(network)
    name = f'{getattr(cls, "_orig_module_name", None)}.{getattr(cls, "_orig_class_name", cls.__name__)}'
    if not persistence.is_persistent(network) or name.rpartition('.')[0] not in network_pickle.KNOWN_MODULES:
        raise UserError(f'{key}: its class {name} is none of this project, so it cannot be exported')
    return {
        'class_name': name,
        'init_args': _to_json(network.init_args, f'{key}: arguments'),
        'init_kwargs': _to_json(dict(network.init_kwargs), f'{key}: arguments'),
        'training': [part for part, module in network.named_modules() if module.training],
        'requires_grad': [part for part, parameter in network.named_parameters() if parameter.requires_grad],
    }


def _persistent_tensors(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and the buffers that aren't recomputed; one that occurs twice counts twice."""
    state = network.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}


def _unshared(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """On the CPU, contiguous, each with memory of its own: all that safetensors takes."""
    result: dict[str, torch.Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous()
        storage = flat.untyped_storage()
        if storage.data_ptr() in taken or storage.nbytes() != flat.nbytes:
            flat = flat.clone()
        taken.add(flat.untyped_storage().data_ptr())
        result[name] = flat
    return result


def _to_json(value: Any, where: str) -> Any:
    """The same in JSON's types; UserError for what JSON can't say."""
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
        value = value.tolist() if np.prod(value.shape) <= 10_000 else object()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, (list, tuple)):
        return [_to_json(item, where) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _to_json(item, where) for key, item in value.items()}
    raise UserError(f'{where}: has a {type(value).__name__}, or a number, that JSON does not know')


def _sync(path: str) -> None:
    with open(path, 'rb+') as file:
        os.fsync(file.fileno())


# Plain data to networks.

def _read_config(path: str) -> dict[str, Any]:
    def refuse(constant: str) -> Any:
        raise ValueError(f'{constant} is no number of JSON')

    try:
        with open(path, 'rb') as file:
            content = file.read(_MAX_CONFIG + 1)
        if len(content) > _MAX_CONFIG:
            raise ValueError(f'more than {_MAX_CONFIG >> 20} MB')
        config = json.loads(content.decode('utf-8'), parse_constant=refuse)
    except OSError as err:
        reason = f'has no {CONFIG}, so it is no exported network' if err.errno == errno.ENOENT else err.strerror
        raise UserError(f'{os.path.dirname(path)}: {reason}') from None
    except (ValueError, RecursionError) as err:
        raise UserError(f'{path}: is no JSON of this program ({network_pickle.one_line(err)})') from None
    if not isinstance(config, dict) or config.get('format') != FORMAT:
        raise UserError(f'{path}: describes no network of this project; its "format" should be "{FORMAT}"')
    if config.get('version') != VERSION:
        raise UserError(f'{path}: has version {ascii(config.get("version"))[:40]}, this program reads {VERSION}')
    return config


def _rebuild(folder: str, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    size = sum(tensor.nbytes for tensor in tensors.values())
    rebuilder = network_pickle.Rebuilder(folder, size)
    networks, values = config['networks'], config['values']
    _check_json([networks, values])
    owners = [key for key, one in networks.items() if 'same_as' not in one]
    lost = [name for name in tensors if name.split('.')[0] not in owners]
    if lost or sorted(config['entries']) != sorted([*networks, *values]):
        what = f'{WEIGHTS} has {ascii(lost[0][:100])}, which belongs' if lost else f'{CONFIG} has entries that belong'
        raise UserError(f'{folder}: {what} to nothing')
    built = {key: _build(rebuilder, networks[key], _part(tensors, key)) for key in owners}
    built |= {key: built[one['same_as']] for key, one in networks.items() if 'same_as' in one}
    content = {key: built[key] if key in built else values[key] for key in config['entries']}
    network_pickle.drop_unknown_dataset(content, folder)
    return {key: value if key in built else rebuilder.resolve(value) for key, value in content.items()}


def _part(tensors: dict[str, torch.Tensor], key: str) -> dict[str, torch.Tensor]:
    return {name[len(key) + 1:]: tensor for name, tensor in tensors.items() if name.startswith(f'{key}.')}


def _build(rebuilder: Any, one: dict[str, Any], tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
    """One network, by way of the record that a pickle would have of it: so it is checked as strictly."""
    module_name, _, class_name = one['class_name'].rpartition('.')
    root = Record(class_name, module_name, state={
        '_init_args': tuple(one['init_args']), '_init_kwargs': one['init_kwargs'], 'training': '' in one['training']})
    for name, tensor in tensors.items():
        part, _, last = name.rpartition('.')
        _record_at(root, part).state.setdefault('_parameters', {})[last] = tensor
    for name in one['training']:
        _record_at(root, name).state['training'] = True
    for name in one['requires_grad']:
        tensors[name].requires_grad_(True)
    network = rebuilder.resolve(root)
    own = network.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        if own[name].dtype != tensor.dtype:     # As it is in the file, where a pickle's become the class's own.
            own[name].data = tensor.detach().clone()
    return network


def _record_at(root: Record, name: str) -> Record:
    """The record of a part by its full name, '' = the root's; made if it isn't there yet."""
    record = root
    for step in name.split('.') if name else ():
        record = record.state.setdefault('_modules', {}).setdefault(step, Record('Module', state={'training': False}))
    return record


def _check_json(value: Any) -> None:
    """Raises ValueError for numbers that are none, such as 1e999."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError('has a number that is not finite')
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_json(item)
