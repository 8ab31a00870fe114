"""Unpickling of network snapshots into plain data, tensors and inert records, and nothing else.

A name in the file can only be one of the exact (module, name) pairs below, and stands for a function of ours: nothing
is imported and nothing from the file runs. `pickle_machine` does the rest.
"""

import itertools
import math
import re
import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import dnnlib

from .pickle_machine import (
    PERSISTENT_ID,
    Array,
    Budget,
    DType,
    ForbiddenName,
    Global,
    Machine,
    Record,
    Refused,
    Source,
    plain_key,
    to_array,
)

__all__ = ['Array', 'ForbiddenName', 'Record', 'Refused', 'loads']

_MAX_SOURCE = 1 << 20   # Characters of a network's source; NVIDIA's longest has 40,000.
_STORAGE_MAGIC = 0x1950A86A20F9469CFC6C     # torch.save before version 1.6, which the pickling of storages still uses.
_STORAGE_DTYPES = {
    'torch FloatStorage': torch.float32, 'torch DoubleStorage': torch.float64, 'torch HalfStorage': torch.float16,
    'torch BFloat16Storage': torch.bfloat16, 'torch LongStorage': torch.int64, 'torch IntStorage': torch.int32,
    'torch ShortStorage': torch.int16, 'torch CharStorage': torch.int8, 'torch ByteStorage': torch.uint8,
    'torch BoolStorage': torch.bool,
}

# Parts of torch that networks are made of. They become records as persistent objects do.
_TORCH_MODULES = {
    'container': 'Sequential ModuleList ModuleDict ParameterList ParameterDict',
    'linear': 'Linear Identity', 'conv': 'Conv1d Conv2d ConvTranspose2d', 'flatten': 'Flatten Unflatten',
    'batchnorm': 'BatchNorm1d BatchNorm2d', 'normalization': 'LayerNorm GroupNorm', 'instancenorm': 'InstanceNorm2d',
    'activation': 'ReLU LeakyReLU PReLU ELU SELU GELU SiLU Tanh Sigmoid Softplus Softmax',
    'pooling': 'AvgPool2d MaxPool2d AdaptiveAvgPool2d AdaptiveMaxPool2d', 'upsampling': 'Upsample',
    'dropout': 'Dropout Dropout2d', 'sparse': 'Embedding',
}


def loads(data: bytes) -> Any:
    """What the pickle holds: plain values, tensors, and Records and Arrays in place of objects.

    Raises Refused for what isn't permitted, and whatever exception comes along for a damaged file.
    """
    budget = Budget(len(data))
    return Machine(Source(data), _make_globals(budget), budget).run()


# The permitted names, and what they do here.

def _make_globals(budget: Budget) -> dict[str, Global]:
    """All of them: 'module name' -> what stands for it."""
    table: dict[str, Callable[..., Any]] = {
        'torch_utils.persistence _reconstruct_persistent_obj': _rebuild_record,
        'dnnlib.util EasyDict': _rebuild_easy_dict,
        'collections OrderedDict': lambda items=(): _rebuild_ordered_dict(items, budget),
        'torch._utils _rebuild_parameter': _rebuild_parameter,
        'torch._utils _rebuild_tensor_v2': _rebuild_tensor,
        'torch.storage _load_from_bytes': lambda content: _read_storage(content, budget),
        'torch Size': _rebuild_size,
        'numpy dtype': _rebuild_dtype,
        'numpy ndarray': _never_called,
        '_codecs encode': lambda text, encoding: _encode(text, encoding, budget),
    }
    for core in ('numpy.core', 'numpy._core'):
        table[f'{core}.multiarray scalar'] = _rebuild_scalar
        table[f'{core}.multiarray _reconstruct'] = lambda cls, shape, kind: Array()
        table[f'{core}.numeric _frombuffer'] = lambda content, dtype, shape, order: _rebuild_array(
            content, dtype, shape, order, budget)
    for builtins in ('builtins', '__builtin__'):
        table[f'{builtins} set'] = lambda items=(): _rebuild_set(items, budget)
    for file, names in _TORCH_MODULES.items():
        for name in names.split():
            table[f'torch.nn.modules.{file} {name}'] = lambda name=name: Record(name)
    return {name: Global(name, call) for name, call in table.items()}


def _never_called(*_args: Any) -> None:
    raise Refused('calls numpy.ndarray')


def _rebuild_record(meta: Any) -> Record:
    if type(meta) not in (dict, dnnlib.EasyDict) or meta.get('type') != 'class' or meta.get('version') != 6:
        raise Refused('has a persistent object of an unknown version')
    record = Record(meta['class_name'], meta.get('module_name'), meta['module_src'], meta['state'])
    if not isinstance(record.source, str) or not isinstance(record.state, dict) or len(record.source) > _MAX_SOURCE:
        raise Refused('has a persistent object without state, or without a source of reasonable length')
    names = [record.class_name, *([] if record.module_name is None else [record.module_name])]
    # ASCII: no name that merely looks like another one.
    if not all(isinstance(name, str) and re.fullmatch(r'[\w.]{1,100}', name, re.ASCII) for name in names):
        raise Refused('has a persistent object of no proper class')
    if str(record.module_name).startswith('_imported_module_'):
        record.module_name = None   # It was unpickled from its source before, in a process that didn't know its name.
    return record


def _rebuild_easy_dict() -> dnnlib.EasyDict:
    return dnnlib.EasyDict()


def _rebuild_ordered_dict(items: Any, budget: Budget) -> OrderedDict[Any, Any]:
    budget.spend(200 * len(items))
    return OrderedDict((plain_key(key), value) for key, value in items)


def _rebuild_set(items: Any, budget: Budget) -> set[Any]:
    budget.spend(100 * len(items))
    return set(map(plain_key, items))


def _encode(text: Any, encoding: Any, budget: Budget) -> bytes:
    """How protocol 2 writes bytes."""
    if encoding not in ('latin1', 'latin-1') or type(text) is not str:
        raise Refused('encodes text in some unusual way')
    budget.spend(len(text))
    return text.encode('latin1')


def _rebuild_dtype(code: Any, *_flags: Any) -> DType:
    if type(code) is not str or not re.fullmatch(r'[biuf][1248]', code):
        raise Refused(f'has NumPy data of type {ascii(code[:40]) if type(code) is str else "?"}')
    return DType(code)


def _rebuild_scalar(dtype: Any, content: Any) -> bool | int | float:
    """NumPy's scalars come back as Python's, so that they aren't carried on into our own pickles."""
    return np.frombuffer(content, dtype=dtype.to_numpy(), count=1)[0].item()


def _rebuild_array(content: Any, dtype: DType, shape: Any, order: Any, budget: Budget) -> Array:
    budget.spend(len(content))
    return Array(to_array(content, dtype, shape, order))


def _rebuild_tensor(storage: Any, offset: int, size: Any, stride: Any, requires_grad: Any = False,
                    *_hooks: Any) -> torch.Tensor:
    flat = storage.flat
    numbers = [*size, *stride, offset]
    if len(numbers) > 33 or not all(type(number) is int and 0 <= number < 1 << 48 for number in numbers):
        raise Refused('has a tensor of no proper size')
    # Broadcast views exist, but not beyond all measure.
    if math.prod(size) > max(flat.numel(), 1 << 24):
        raise Refused('has a tensor larger than its data')
    return torch.as_strided(flat, size, stride, offset).requires_grad_(bool(requires_grad))


def _rebuild_size(sizes: Any) -> tuple[Any, ...]:
    if type(sizes) is not tuple:
        raise Refused(f'has a size that is a {type(sizes).__name__}')
    return sizes


def _rebuild_parameter(data: Any, requires_grad: Any, _hooks: Any = None) -> torch.nn.Parameter:
    if not isinstance(data, torch.Tensor):
        raise Refused(f'makes a parameter of a {type(data).__name__}')
    return torch.nn.Parameter(data.detach(), requires_grad=bool(requires_grad))


# Storages: torch's stream before version 1.6, inside the bytes that torch.storage._load_from_bytes is given.

class _Storage:
    """The flat content of tensors, apart from tensors so that neither passes for the other."""

    def __init__(self, flat: torch.Tensor) -> None:
        self.flat = flat


class _StorageKey:
    """A storage's persistent id; older files leave out its last entry."""

    def __init__(self, kind: str, dtype: Any, key: str, _device: str, length: int, view: None = None) -> None:
        if kind != 'storage' or type(dtype) is not Global or view is not None:
            raise Refused('has a tensor of an unknown kind')
        self.dtype: torch.dtype = dtype.call()
        self.key, self.length = key, length


_STORAGE_GLOBALS = {
    PERSISTENT_ID: Global('storage', _StorageKey),
    **{name: Global(name, lambda dtype=dtype: dtype) for name, dtype in _STORAGE_DTYPES.items()},
}


def _read_storage(content: Any, budget: Budget) -> _Storage:
    """Magic number, version, system, the storage's id, all keys: five pickles; then the length and the raw content."""
    budget.spend(len(content))
    source = Source(content)
    magic, version, system, storage, keys = (
        Machine(source, _STORAGE_GLOBALS, budget).run() for _ in itertools.repeat(None, 5))
    if magic != _STORAGE_MAGIC or version != 1001 or not system.get('little_endian', True):
        raise Refused('has tensors of an unknown format')
    if type(storage) is not _StorageKey or keys != [storage.key]:
        raise Refused('has something else where a tensor belongs')
    (length,) = struct.unpack('<q', source.read(8))
    raw = bytearray(source.read(length * storage.dtype.itemsize))   # The one copy: torch wants to be able to write.
    if length != storage.length or len(raw) != length * storage.dtype.itemsize:
        raise EOFError('tensor data are cut off')
    return _Storage(torch.frombuffer(raw, dtype=storage.dtype) if raw else torch.empty(0, dtype=storage.dtype))
