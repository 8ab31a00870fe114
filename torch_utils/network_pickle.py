"""Network snapshots: written as the hosts write them, read without running anything that stands in the file.

Reading takes the pickle apart into plain data and records (`safe_unpickler`), builds each network from this project's
own class of that name with the recorded constructor arguments, and gives it the file's weights: strictly, by name and
shape. NVIDIA's ADA pickles and those of StyleGAN3, alias-free or not, load the same way.
"""

import hashlib
import importlib
import io
import os
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import torch

from dnnlib.util import UserError, atomic_write, is_url, open_url

from . import host_dialects, misc, persistence, safe_unpickler
from .allocation_guard import AllocationGuard, check_arguments
from .pickle_records import derived_buffers, tensors_of, walk_modules
from .safe_unpickler import Array, Record

KNOWN_MODULES = ('training.networks', 'training.networks_stylegan3', 'training.augment', 'lia_plugin.networks',
                 'lia_plugin.bigan_networks')
KNOWN_DATASETS = ('training.dataset.ImageFolderDataset',)

# NVIDIA's own sources; another one under the same names may compute something else with the same weights.
NVIDIA_SOURCES = {
    '53b4e1ec457171d4e2c1454d48013765ab626141c35cdd383b020950effe11a5': 'StyleGAN2-ADA networks',
    '77eb17876bc7ba87cdc9281caf925daf507ce0937b84d0f32134d4d08e13061e': 'StyleGAN2-ADA augment',
    'b6f14e8fa2a95de4d38218fef31380c6a70de770f585107e209ff83075c307ef': 'StyleGAN3 networks_stylegan2',
    '06082fb3e8929e477f58fb8bc78e7ecb9a9209eb01444272d1d153c85a6a89f7': 'StyleGAN3 networks_stylegan3',
    '43c6b98bc68d5d214dd2e2775a10eb007dee034c005766fbc310005147bfb788': 'StyleGAN3 augment',
}

_MAX_DEPTH = 64     # Of containers. Networks' arguments have some 4.
_MAX_VALUES = 1_000_000
_MAX_NETWORKS = 256
TRUST_HINT = 'if you trust whoever made the file, --trust-pickle runs the code inside it'


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
    if isinstance(content, (torch.nn.Module, Record)):
        content = {'G_ema': content}    # One network, pickled by itself. Whether it is a generator, its readers see.
    if not isinstance(content, dict):
        raise UserError(f'{name}: holds a {type(content).__name__}, expected the dict of a network snapshot')
    if trust:
        return content
    try:
        drop_unknown_dataset(content, name)
        return Rebuilder(name, len(data)).resolve(content)
    except UserError:
        raise
    except Exception as err:    # Well-formed, but not the data that networks are made of.
        raise UserError(f'{name}: is damaged or no network pickle ({one_line(err)})') from err


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
        except MemoryError:
            raise UserError(f'{path}: does not fit into memory') from None
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
        reason = f'is refused: it {err}, which no network of this project needs; {TRUST_HINT}'
        if 'dnnlib.tflib' in str(err):
            reason = "is a TensorFlow pickle; convert it with StyleGAN2-ADA's legacy.py first"
        raise UserError(f'{name}: {reason}') from None
    except safe_unpickler.Refused as err:
        raise UserError(f'{name}: is refused as damaged, or made to do harm: it {err}') from None
    except MemoryError:
        raise UserError(f'{name}: does not fit into memory') from None
    except Exception as err:    # Whatever a damaged file leads to: there is no list of it.
        raise UserError(f'{name}: is cut off, damaged or no network pickle ({one_line(err)})') from None


def one_line(err: Exception) -> str:
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
        raise UserError(f'{name}: does not load even with --trust-pickle ({one_line(err)})') from err


def drop_unknown_dataset(content: dict[str, Any], name: str) -> None:
    """A network trained on somebody's own data set class is as good as any; but that class must not get constructed."""
    kwargs = content.get('training_set_kwargs')
    if isinstance(kwargs, dict) and kwargs.get('class_name') not in (None, *KNOWN_DATASETS):
        label = kwargs['class_name'] if isinstance(kwargs['class_name'], str) else '?'
        warnings.warn(f'{name}: its data set is a {ascii(label[:100])}, which is left out', stacklevel=3)
        content['training_set_kwargs'] = None


# Plain data to networks.

class Rebuilder:
    """Replaces the records of one file by objects; the same record becomes the same object."""

    def __init__(self, name: str, num_bytes: int) -> None:
        self.name = name
        self.networks_left = _MAX_NETWORKS
        self.bytes_left = 4 * num_bytes + (64 << 20)    # Half precision in the file becomes twice as much.
        self.known_sources: dict[str, bool] = {}
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
            result = type(value)((key, self.resolve(item, depth)) for key, item in value.items())
            return host_dialects.our_options(result) if 'class_name' in result else result
        return type(value)(self.resolve(item, depth) for item in value)

    def _check_named_object(self, options: dict[Any, Any]) -> None:
        """Options can name a class to construct, and constructors follow: it must be as harmless as the file's own."""
        for key in ('class_name', 'func_name'):
            if key in options and options[key] not in KNOWN_DATASETS:
                named = options[key] if isinstance(options[key], str) else '?'
                module_name, _, class_name = ascii(named[-200:])[1:-1].rpartition('.')
                if (key, module_name) == ('class_name', host_dialects.SG3_MODULE):
                    module_name = host_dialects.OUR_MODULE
                _find_known_class(self.name, module_name, class_name)

    def _build_network(self, record: Record, depth: int) -> torch.nn.Module:
        parts = list(walk_modules(record, self.name))
        tensors = tensors_of(record, parts, self.name)
        self._charge(sum(tensor.numel() for tensor in tensors.values()))
        cls = self._find_class(record, tensors)
        self._warn_of_unknown_sources(record, parts)
        args, kwargs = self._arguments(cls, record, depth)
        network = self._construct(cls, args, kwargs, tensors)
        self._copy_weights(record, tensors, network, optional=derived_buffers(parts))
        modes = {prefix.removesuffix('.'): part.state.get('training') for prefix, part in parts}
        for name, module in network.named_modules():
            module.training = bool(modes.get(name, modes['']))
        return network

    def _charge(self, num_elements: int) -> None:
        """Networks that share their tensors take no space in the file, but each takes its own here."""
        self.networks_left -= 1
        self.bytes_left -= 4 * num_elements
        if self.networks_left < 0 or self.bytes_left < 0:
            raise self.fail('is refused as made to do harm: its networks unpack to much more than its own size')

    def _arguments(self, cls: Any, record: Record, depth: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The recorded constructor's arguments, in the words of our constructor."""
        args = self.resolve(record.state.get('_init_args', ()), depth)
        kwargs = dict(self.resolve(record.state.get('_init_kwargs', {}), depth))
        with self._building(cls):
            check_arguments([args, kwargs])
            if record.module_name is not None:  # Our own writing.
                return args, kwargs
            if cls._orig_module_name == host_dialects.OUR_MODULE and host_dialects.is_sg3(record):
                return (), host_dialects.sg3_kwargs(record.class_name, host_dialects.by_name(cls, args, kwargs))
            synthesis = (record.state.get('_modules') or {}).get('synthesis')
            if cls._orig_module_name == 'lia_plugin.networks' and isinstance(synthesis, Record):
                options = dict(self.resolve(synthesis.state.get('_init_kwargs', {}), depth))
                check_arguments(options)
                return (), host_dialects.lia_kwargs(host_dialects.by_name(cls, args, kwargs), synthesis, options)
        return args, kwargs

    def _find_class(self, record: Record, tensors: dict[str, torch.Tensor]) -> type[torch.nn.Module]:
        """Our class for a record; by its recorded module, or by its looks where a host wrote the file."""
        module_name = record.module_name
        if module_name is None:
            module_name = self._guess_module(record, tensors)
        cls = _find_known_class(self.name, module_name, record.class_name)
        return cls

    def _warn_of_unknown_sources(self, record: Record, parts: list[tuple[str, Record]]) -> None:
        """A host's file doesn't say where its code comes from; if it is edited, its networks may not be ours.

        LIA's generator has code of two modules, its own and the synthesis network's: all of it counts.
        """
        for _, part in parts if record.module_name is None else ():
            if part.source in self.known_sources or not part.source:
                continue
            known = _digest(part.source) in NVIDIA_SOURCES or part.source in map(_source_of, KNOWN_MODULES)
            self.known_sources[part.source] = known
            if not known:
                warnings.warn(f"{self.name}: the code of its {part.class_name} is neither NVIDIA's release nor ours; "
                              'our class takes the weights, and may compute something else', stacklevel=2)

    def _guess_module(self, record: Record, tensors: dict[str, torch.Tensor]) -> str:
        if not record.source:   # A plain torch module, not a persistent object.
            raise self.fail(f'holds a {record.class_name} where a network is expected; {TRUST_HINT}')
        if any('phi' in name.split('.') for name in tensors):
            return 'lia_plugin.networks'    # LIA trained in a host's own loop.
        if 'magnitude_ema' in record.source:
            return 'training.networks_stylegan3'
        return 'training.augment' if record.class_name == 'AugmentPipe' else 'training.networks'

    def _construct(self, cls: type[torch.nn.Module], args: Any, kwargs: dict[str, Any],
                   tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
        """Runs our constructor with the file's arguments: guarded, and without touching the random state."""
        total = sum(tensor.numel() for tensor in tensors.values())
        with self._building(cls), torch.random.fork_rng(devices=[]), AllocationGuard(total, len(tensors)):
            return cls(*args, **kwargs)

    @contextmanager
    def _building(self, cls: type[torch.nn.Module]) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as err:    # Hostile or merely foreign arguments can fail anywhere.
            reason = f"{cls.__name__} can't be built with the file's arguments ({one_line(err)}); {TRUST_HINT}"
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
            raise self.fail(f'weights do not fit {record.class_name}: {"; ".join(problems)}; {TRUST_HINT}')
        for name, target in own.items():
            if name in tensors:
                target.copy_(tensors[name])
                if isinstance(target, torch.nn.Parameter):
                    target.requires_grad_(tensors[name].requires_grad)


def _digest(source: str) -> str:
    return hashlib.sha256(source.encode('utf-8', 'replace')).hexdigest()


def _source_of(module_name: str) -> str:
    """The source of a known module as it stands in pickles that were written here."""
    objects: list[Any] = list(vars(importlib.import_module(module_name)).values())
    return next(obj for obj in objects if persistence.is_persistent(obj))._orig_module_src


def _find_known_class(name: str, module_name: str, class_name: str) -> Any:
    """A persistent network class of our own: no other object of its module, and nothing that it imports, will do."""
    label = f'{name}: holds a {class_name} of {module_name or "no module"}'
    if module_name not in KNOWN_MODULES:
        raise UserError(f'{label}, which is not one of {", ".join(KNOWN_MODULES)}; {TRUST_HINT}')
    cls = vars(importlib.import_module(module_name)).get(class_name)
    if not (isinstance(cls, type) and persistence.is_persistent(cls) and issubclass(cls, torch.nn.Module)):
        raise UserError(f'{label}, which does not have it; {TRUST_HINT}')
    return cls


def _fits(tensor: torch.Tensor, target: torch.Tensor) -> bool:
    return tensor.shape == target.shape and tensor.is_floating_point() == target.is_floating_point()


def _non_persistent_buffers(network: torch.nn.Module) -> set[str]:
    return {f'{prefix}.{key}'.removeprefix('.') for prefix, part in network.named_modules()
            for key in part._non_persistent_buffers_set}
