"""Network snapshots: written as the hosts write them, read without running anything that stands in the file.

Reading takes the pickle apart into plain data and records (`safe_unpickler`), builds each network from this project's
own class of that name with the recorded constructor arguments, and gives it the file's weights: strictly, by name and
shape. NVIDIA's ADA pickles and those of StyleGAN3, alias-free or not, load the same way.
"""

import copy
import hashlib
import importlib
import io
import os
import pickle
import re
import warnings
from collections.abc import Iterator
from typing import IO, Any

import torch

from dnnlib.util import UserError, atomic_write, is_url, open_url

from . import misc, persistence, safe_unpickler
from .allocation_guard import AllocationGuard, check_arguments
from .safe_unpickler import Array, Record

KNOWN_MODULES = ('training.networks', 'training.networks_stylegan3', 'training.augment', 'lia_plugin.networks')
KNOWN_DATASETS = ('training.dataset.ImageFolderDataset',)

# NVIDIA's own sources; another one under the same names may compute something else with the same weights.
NVIDIA_SOURCES = {
    '53b4e1ec457171d4e2c1454d48013765ab626141c35cdd383b020950effe11a5': 'StyleGAN2-ADA networks',
    '77eb17876bc7ba87cdc9281caf925daf507ce0937b84d0f32134d4d08e13061e': 'StyleGAN2-ADA augment',
    'b6f14e8fa2a95de4d38218fef31380c6a70de770f585107e209ff83075c307ef': 'StyleGAN3 networks_stylegan2',
    '06082fb3e8929e477f58fb8bc78e7ecb9a9209eb01444272d1d153c85a6a89f7': 'StyleGAN3 networks_stylegan3',
    '43c6b98bc68d5d214dd2e2775a10eb007dee034c005766fbc310005147bfb788': 'StyleGAN3 augment',
}

# Where StyleGAN3's networks_stylegan2 has other defaults than ADA's networks of the same names.
_SG3_DEFAULTS: dict[str, dict[str, Any]] = {
    'MappingNetwork': {'w_avg_beta': 0.998},
    'SynthesisNetwork': {'num_fp16_res': 4, 'conv_clamp': 256},
    'Discriminator': {'num_fp16_res': 4, 'conv_clamp': 256},
}
_GENERATOR_KEYS = ('z_dim', 'c_dim', 'w_dim', 'img_resolution', 'img_channels', 'mapping_kwargs', 'synthesis_kwargs')

_MAX_DEPTH = 64     # Of containers and modules. Networks have some 8.
_MAX_PARTS = 20_000
_MAX_VALUES = 1_000_000
_TRUST_HINT = 'if you trust whoever made the file, --trust-pickle runs the code inside it'


def save(path: str | os.PathLike[str], data: dict[str, Any]) -> None:
    """Writes a snapshot, whole or not at all. Protocol 4: what the oldest hosts' Python reads."""
    with atomic_write(path) as file:
        pickle.dump(data, file, protocol=4)


def load(file_or_path: str | os.PathLike[str] | IO[bytes], trust: bool = False) -> dict[str, Any]:
    """The snapshot's dict, with its networks on the CPU, in the file's train/eval mode and requires_grad.

    A path may be a URL. With `trust` the file is unpickled as the hosts do, which runs the source inside it.
    Raises UserError, one line that names the file, for anything that can't be read.
    """
    name, data = _read_bytes(file_or_path)
    content = _unpickle_trusting(data, name) if trust else _unpickle_safely(data, name)
    if not isinstance(content, dict):
        raise UserError(f'{name}: holds a {type(content).__name__}, expected the dict of a network snapshot')
    if trust:
        return content
    try:
        _drop_unknown_dataset(content, name)
        return _Rebuilder(name).resolve(content)
    except UserError:
        raise
    except Exception as err:    # Well-formed, but not the data that networks are made of.
        raise UserError(f'{name}: is damaged or no network pickle ({_one_line(err)})') from err


# Bytes to plain data.

def _read_bytes(source: Any) -> tuple[str, bytes]:
    """A name for messages, and everything in the file if its beginning may be a pickle's."""
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        local = open_url(path, return_filename=True) if is_url(path, allow_file_urls=True) else path
        if not os.path.isfile(local):
            reason = 'is a folder, not a network pickle' if os.path.isdir(local) else 'no such file'
            raise UserError(f'{path}: {reason}')
        try:
            with open(local, 'rb') as file:
                return path, _read_pickle(file, path)
        except OSError as err:
            raise UserError(f'{path}: cannot be read: {err.strerror}') from err
    name = str(getattr(source, 'name', '<stream>'))
    return name, _read_pickle(source, name)


def _read_pickle(file: IO[bytes], name: str) -> bytes:
    head = file.read(2)
    if not head:
        raise UserError(f'{name}: is empty')
    if len(head) < 2 or head[0] != 0x80 or not 2 <= head[1] <= 5:
        kinds = {b'PK': 'a zip archive or a torch.save file', b'\x89P': 'a PNG image', b'\xff\xd8': 'a JPEG image',
                 b'\x1f\x8b': 'a gzip file', b'<!': 'a web page', b'<h': 'a web page', b've': 'a Git LFS pointer'}
        raise UserError(f'{name}: is {kinds.get(head, "something else")}, not a network pickle')
    if file.seekable():
        file.seek(-2, os.SEEK_CUR)
        return file.read()      # Without joining two parts: that would be one more copy of all the weights.
    return head + file.read()


def _unpickle_safely(data: bytes, name: str) -> Any:
    try:
        return safe_unpickler.loads(data)
    except safe_unpickler.ForbiddenName as err:
        reason = f'is refused: it {err}, which no network of this project needs; {_TRUST_HINT}'
        if 'dnnlib.tflib' in str(err):
            reason = "is a TensorFlow pickle; convert it with StyleGAN2-ADA's legacy.py first"
        raise UserError(f'{name}: {reason}') from None
    except safe_unpickler.Refused as err:
        raise UserError(f'{name}: is refused as damaged, or made to do harm: it {err}') from None
    except MemoryError:
        raise UserError(f'{name}: does not fit into memory') from None
    except Exception as err:    # Whatever a damaged file leads to: there is no list of it.
        raise UserError(f'{name}: is cut off, damaged or no network pickle ({_one_line(err)})') from None


def _one_line(err: Exception) -> str:
    words = ' '.join(f'{type(err).__name__}: {err}'.split())[:200]
    return ''.join(char if char.isprintable() else '?' for char in words)


class _TrustingUnpickler(pickle.Unpickler):
    """The hosts' way, except that tensors from a GPU land on the CPU."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ('torch.storage', '_load_from_bytes'):
            return lambda content: torch.load(io.BytesIO(content), map_location='cpu', weights_only=True)
        return super().find_class(module, name)


def _unpickle_trusting(data: bytes, name: str) -> Any:
    try:
        return _TrustingUnpickler(io.BytesIO(data)).load()
    except Exception as err:    # The file's own code may raise anything.
        raise UserError(f'{name}: does not load even with --trust-pickle ({_one_line(err)})') from err


def _drop_unknown_dataset(content: dict[str, Any], name: str) -> None:
    """A network trained on somebody's own data set class is as good as any; but that class must not get constructed."""
    kwargs = content.get('training_set_kwargs')
    if isinstance(kwargs, dict) and kwargs.get('class_name') not in (None, *KNOWN_DATASETS):
        label = kwargs['class_name'] if isinstance(kwargs['class_name'], str) else '?'
        warnings.warn(f'{name}: its data set is a {ascii(label[:100])}, which is left out', stacklevel=3)
        content['training_set_kwargs'] = None


# Plain data to networks.

class _Rebuilder:
    """Replaces the records of one file by objects; the same record becomes the same object."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.done: dict[int, tuple[Any, Any, int]] = {}     # id -> value, result, number of values inside
        self.num_values = 0
        self.open: set[int] = set()

    def fail(self, reason: str) -> UserError:
        return UserError(f'{self.name}: {reason}')

    def resolve(self, value: Any, depth: int = 0) -> Any:
        """`value` with everything inside it rebuilt. Containers are copied, each once."""
        if not isinstance(value, (dict, list, tuple, set, Record, Array)):
            return bytes(value) if isinstance(value, memoryview) else value
        self.num_values += 1
        if id(value) in self.done:
            _, result, num_values = self.done[id(value)]
            self.num_values += num_values
            if self.num_values > _MAX_VALUES:   # Harmless as long as it is shared, but not once anybody prints it.
                raise self.fail(f'unpacks to more than {_MAX_VALUES:,} values; it is no network pickle')
            return result
        if id(value) in self.open or depth > _MAX_DEPTH:
            raise self.fail('contains itself, or is nested too deeply; it is no network pickle')
        self.open.add(id(value))
        before = self.num_values
        result = self._rebuild(value, depth + 1)
        # With the value, so that its id isn't given to another one.
        self.done[id(value)] = value, result, self.num_values - before
        self.open.remove(id(value))
        return result

    def _rebuild(self, value: Any, depth: int) -> Any:
        if isinstance(value, Record):
            return self._build_network(value, depth)
        if isinstance(value, Array):
            return value.value
        if isinstance(value, dict):
            self._check_named_object(value)
            return type(value)((key, self.resolve(item, depth)) for key, item in value.items())
        return type(value)(self.resolve(item, depth) for item in value)

    def _check_named_object(self, options: dict[Any, Any]) -> None:
        """Options can name a class to construct, and constructors follow: it must be as harmless as the file's own."""
        for key in ('class_name', 'func_name'):
            if key in options and options[key] not in KNOWN_DATASETS:
                named = options[key] if isinstance(options[key], str) else '?'
                module_name, _, class_name = ascii(named[-200:])[1:-1].rpartition('.')
                _find_known_class(self.name, module_name, class_name)

    def _build_network(self, record: Record, depth: int) -> torch.nn.Module:
        parts = list(_walk_modules(record, self.name))
        tensors = {name: tensor for prefix, part in parts for name, tensor in _own_tensors(prefix, part)}
        cls = self._find_class(record, tensors)
        args = self.resolve(record.state.get('_init_args', ()), depth)
        kwargs = dict(self.resolve(record.state.get('_init_kwargs', {}), depth))
        if record.module_name is None and _is_sg3(record):
            kwargs = _sg3_kwargs(record.class_name, kwargs)
        network = self._construct(cls, args, kwargs, tensors)
        self._copy_weights(record, tensors, network, optional=_derived_buffers(parts))
        modes = {prefix.removesuffix('.'): part.state.get('training') for prefix, part in parts}
        for name, module in network.named_modules():
            module.training = bool(modes.get(name, modes['']))
        return network

    def _find_class(self, record: Record, tensors: dict[str, torch.Tensor]) -> type[torch.nn.Module]:
        """Our class for a record; by its recorded module, or by its looks where a host wrote the file."""
        module_name = record.module_name
        if module_name is None:
            module_name = self._guess_module(record, tensors)
        cls = _find_known_class(self.name, module_name, record.class_name)
        known = cls._orig_module_src == record.source or _digest(record.source) in NVIDIA_SOURCES
        if record.module_name is None and not known:
            warnings.warn(f"{self.name}: the code of its {record.class_name} is neither NVIDIA's release nor ours; our "
                          f"{module_name} takes the weights, and may compute something else", stacklevel=2)
        return cls

    def _guess_module(self, record: Record, tensors: dict[str, torch.Tensor]) -> str:
        if not record.source:   # A plain torch module, not a persistent object.
            raise self.fail(f'holds a {record.class_name} where a network is expected; {_TRUST_HINT}')
        if any('phi' in name.split('.') for name in tensors):
            return 'lia_plugin.networks'    # LIA trained in a host's own loop.
        if 'magnitude_ema' in record.source:
            return 'training.networks_stylegan3'
        return 'training.augment' if record.class_name == 'AugmentPipe' else 'training.networks'

    def _construct(self, cls: type[torch.nn.Module], args: Any, kwargs: dict[str, Any],
                   tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
        """Runs our constructor with the file's arguments: guarded, and without touching the random state."""
        total = sum(tensor.numel() for tensor in tensors.values())
        try:
            check_arguments([args, kwargs])
            with torch.random.fork_rng(devices=[]), AllocationGuard(total, len(tensors)):
                return cls(*args, **kwargs)
        except UserError:
            raise
        except Exception as err:    # Hostile or merely foreign arguments can fail anywhere.
            reason = f"{cls.__name__} can't be built with the file's arguments ({_one_line(err)}); {_TRUST_HINT}"
            raise self.fail(reason) from err

    @torch.no_grad()
    def _copy_weights(self, record: Record, tensors: dict[str, torch.Tensor], network: torch.nn.Module,
                      optional: set[str]) -> None:
        own: dict[str, torch.Tensor] = {
            **dict(network.named_parameters(remove_duplicate=False)),
            **dict(network.named_buffers(remove_duplicate=False)),
        }
        derived = _non_persistent_buffers(network)
        missing = [name for name in own if name not in tensors and name not in derived]
        unknown = [name for name in tensors if name not in own and name not in optional]
        wrong = [f'{name} {list(tensors[name].shape)} instead of {list(own[name].shape)}' for name in own
                 if name in tensors and not _fits(tensors[name], own[name])]
        problems = [f'{label} {misc.some_names(names)}' for label, names in
                    (('it lacks', missing), ('it has the unknown', unknown), ('it has', wrong)) if names]
        if problems:
            raise self.fail(f'weights do not fit {record.class_name}: {"; ".join(problems)}; {_TRUST_HINT}')
        for name, target in own.items():
            if name in tensors:
                target.copy_(tensors[name])
                if isinstance(target, torch.nn.Parameter):
                    target.requires_grad_(tensors[name].requires_grad)


def _digest(source: str) -> str:
    return hashlib.sha256(source.encode('utf-8', 'replace')).hexdigest()


def _find_known_class(name: str, module_name: str, class_name: str) -> Any:
    """A persistent network class of our own: no other object of its module, and nothing that it imports, will do."""
    label = f'{name}: holds a {class_name} of {module_name or "no module"}'
    if module_name not in KNOWN_MODULES:
        raise UserError(f'{label}, which is not one of {", ".join(KNOWN_MODULES)}; {_TRUST_HINT}')
    cls = vars(importlib.import_module(module_name)).get(class_name)
    if not (isinstance(cls, type) and persistence.is_persistent(cls) and issubclass(cls, torch.nn.Module)):
        raise UserError(f'{label}, which does not have it; {_TRUST_HINT}')
    return cls


def _fits(tensor: torch.Tensor, target: torch.Tensor) -> bool:
    return tensor.shape == target.shape and tensor.is_floating_point() == target.is_floating_point()


def _walk_modules(root: Record, name: str) -> Iterator[tuple[str, Record]]:
    """(prefix, record) of a module and all its parts: ('', G), ('mapping.', …), ('mapping.fc0.', …)."""
    todo = [('', root, 0)]
    for _ in range(_MAX_PARTS):
        prefix, record, depth = todo.pop()
        yield prefix, record
        children = record.state.get('_modules') or {}
        for key, child in children.items():
            if not _is_proper_name(key) or not isinstance(child, (Record, type(None))) or depth > _MAX_DEPTH:
                raise UserError(f'{name}: {root.class_name} has something that is no module among its parts')
            if child is not None:
                todo.append((f'{prefix}{key}.', child, depth + 1))
        if not todo:
            return
    raise UserError(f'{name}: {root.class_name} has more than {_MAX_PARTS} parts; it is no network of this project')


def _is_proper_name(key: Any) -> bool:
    """Whether a file's name for a part can stand in a message; ours are all of this kind."""
    return isinstance(key, str) and re.fullmatch(r'\w{1,100}', key) is not None


def _own_tensors(prefix: str, part: Record) -> Iterator[tuple[str, torch.Tensor]]:
    for kind in ('_parameters', '_buffers'):
        for key, tensor in (part.state.get(kind) or {}).items():
            if isinstance(tensor, torch.Tensor):
                yield f'{prefix}{key if _is_proper_name(key) else "?"}', tensor


def _derived_buffers(parts: list[tuple[str, Record]]) -> set[str]:
    """Buffers that the file's own code would recompute, so that ours may do without."""
    return {f'{prefix}{key}' for prefix, part in parts for key in part.state.get('_non_persistent_buffers_set') or ()}


def _non_persistent_buffers(network: torch.nn.Module) -> set[str]:
    return {f'{prefix}.{key}'.removeprefix('.') for prefix, part in network.named_modules()
            for key in part._non_persistent_buffers_set}


# StyleGAN3's networks_stylegan2.

def _is_sg3(record: Record) -> bool:
    words = 'update_emas', 'skip_w_avg_update', 'magnitude_ema'     # The last stands in networks_stylegan3 alone.
    return [word in record.source for word in words] == [True, False, False]


def _sg3_kwargs(class_name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Our constructor's arguments for the same network: all defaults said, synthesis options in a dict of their own."""
    kwargs = copy.deepcopy(kwargs)
    if class_name == 'Generator':
        loose = {key: kwargs.pop(key) for key in list(kwargs) if key not in _GENERATOR_KEYS}
        synthesis = {**loose, **kwargs.get('synthesis_kwargs', {})}
        kwargs['mapping_kwargs'] = _sg3_kwargs('MappingNetwork', kwargs.get('mapping_kwargs', {}))
        kwargs['synthesis_kwargs'] = _sg3_kwargs('SynthesisNetwork', synthesis)
        return kwargs
    # How a convolution is fused is not part of the network, and this project's has one way only.
    kwargs.pop('fused_modconv_default', None)
    return {**_SG3_DEFAULTS.get(class_name, {}), **kwargs}
