"""Pickles that carry their own source: the format of StyleGAN2-ADA and StyleGAN3, version 6.

A `persistent_class` is pickled as the text of its whole module, its class name and its state, so that NVIDIA's tools
open our snapshots without knowing us. This side writes. Reading with plain `pickle` runs the embedded source, here as
there; `torch_utils.network_pickle.load` is the reader that runs nothing.
"""

import copy
import inspect
import io
import pickle
import sys
import types
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

import dnnlib

FORMAT_VERSION = 6
_ANONYMOUS = '_imported_module_'     # How modules begin that exist only as a source out of a pickle; as in the hosts.

_T = TypeVar('_T')
_Hook = Callable[[dnnlib.EasyDict], dnnlib.EasyDict]

# What a process has seen, in both directions. Equal source is the same module, so classes stay comparable.
_persistent_classes: set[type] = set()
_hooks: list[_Hook] = []
_source_of: dict[types.ModuleType, str] = {}
_module_of: dict[str, types.ModuleType] = {}
_recorded_name_of: dict[types.ModuleType, str] = {}


def persistent_class(cls: type[_T]) -> type[_T]:
    """Class decorator: instances remember their constructor's arguments and are pickled with their module's source.

    The module may import only what its readers have: stdlib, numpy, torch, `torch_utils`, `dnnlib`; and base classes
    and members out of the same module must be persistent, too. Instances gain `init_args` and `init_kwargs`.
    """
    if is_persistent(cls):
        return cls
    module = sys.modules[cls.__module__]
    source = _get_source(module)
    # None = from a file that didn't say: the name that it has here would mean nothing to the next reader.
    module_name = _recorded_name_of.get(module, None if _is_anonymous(module) else module.__name__)

    class Persistent(cls):  # type: ignore[valid-type,misc]
        _orig_module_src = source
        _orig_class_name = cls.__name__
        _orig_module_name = module_name

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._init_args, self._init_kwargs = copy.deepcopy((args, kwargs))
            if cls.__name__ not in vars(module):
                raise ValueError(f'{cls.__qualname__}: a persistent class must stand at the top level of its module')
            _check_picklable(self, _get_state(self))

        @property
        def init_args(self) -> tuple[Any, ...]:
            return copy.deepcopy(self._init_args)

        @property
        def init_kwargs(self) -> dnnlib.EasyDict:
            return dnnlib.EasyDict(copy.deepcopy(self._init_kwargs))

        def __reduce__(self) -> tuple[Any, ...]:
            # The key order is the hosts'; `module_name` comes after it, where they don't look.
            meta = {
                'type': 'class', 'version': FORMAT_VERSION, 'module_src': self._orig_module_src,
                'class_name': self._orig_class_name, 'state': _get_state(self), 'module_name': self._orig_module_name,
            }
            return _reconstruct_persistent_obj, (meta,), None

        def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
            return self.__reduce__()

    Persistent.__name__ = Persistent.__qualname__ = cls.__name__
    Persistent.__doc__ = cls.__doc__
    _persistent_classes.add(Persistent)
    return Persistent


def _is_anonymous(module: types.ModuleType) -> bool:
    return module.__name__.startswith(_ANONYMOUS)


def is_persistent(obj: Any) -> bool:
    """Whether `obj` is a persistent class or a direct instance of one."""
    cls = obj if isinstance(obj, type) else type(obj)
    return cls in _persistent_classes


def import_hook(hook: _Hook) -> None:
    """Registers `hook(meta) -> meta`, called for each persistent object that `pickle` rebuilds from its own source.

    `meta` has type, version, module_src, class_name, state and, in files written here, module_name.
    """
    if not callable(hook):
        raise TypeError(f'hook: expected a function of one argument, got {type(hook).__name__}')
    _hooks.append(hook)


def _get_state(obj: Any) -> Any:
    """What pickle would store of an object without slots. (Only Python ≥ 3.11 gives each object a __getstate__.)"""
    custom = getattr(obj, '__getstate__', None)
    return vars(obj) if custom is None else custom()


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> Any:
    """Rebuilds an object by running the source it came with. Stands by this name in every pickle of the family."""
    record = dnnlib.EasyDict(meta)
    record.state = dnnlib.EasyDict(record.state)
    for hook in _hooks:
        record = hook(record)
        if record is None:
            raise TypeError('import hook: expected the meta data back, got None')
    if record.type != 'class' or record.version != FORMAT_VERSION:
        raise pickle.UnpicklingError(f'unknown kind of persistent object: {record.type!r}, version {record.version}')
    module = _src_to_module(record.module_src, record.get('module_name'))
    cls = persistent_class(vars(module)[record.class_name])
    obj: Any = object.__new__(cls)
    restore = getattr(obj, '__setstate__', None)
    if restore is None:
        vars(obj).update(record.state)
    else:
        restore(record.state)
    return obj


def _get_source(module: types.ModuleType) -> str:
    """The module's text, read once: later edits of the file must not reach pickles of the code that is running."""
    if module not in _source_of:
        source = inspect.getsource(module)
        _source_of[module] = source
        _module_of.setdefault(source, module)
    return _source_of[module]


def _src_to_module(source: str, module_name: str | None = None) -> types.ModuleType:
    """The module with exactly this source; the text is executed if there is none yet. Only for trusted files.

    `module_name` is where the source says it came from: its classes go on saying so when they are pickled again.
    """
    if source in _module_of:
        return _module_of[source]
    module = types.ModuleType(f'{_ANONYMOUS}{uuid.uuid4().hex}')
    sys.modules[module.__name__] = module   # Before it runs: its classes look themselves up there.
    _source_of[module], _module_of[source] = source, module
    if module_name is not None:
        _recorded_name_of[module] = module_name
    try:
        exec(source, vars(module))
    except BaseException:
        del sys.modules[module.__name__], _source_of[module], _module_of[source]
        _recorded_name_of.pop(module, None)
        raise
    return module


class _Probe(pickle.Pickler):
    """A pickler that steps over the bulk: tensors and arrays always pickle, and persistent members were checked."""

    def __init__(self, file: io.BytesIO, owner: Any) -> None:
        super().__init__(file, protocol=4)
        self.owner = owner

    def persistent_id(self, obj: Any) -> str | None:
        if isinstance(obj, (torch.Tensor, np.ndarray)) or (is_persistent(obj) and obj is not self.owner):
            return ''
        return None


def _check_picklable(obj: Any, state: Any) -> None:
    """Raises at construction, where the culprit is in sight, what would else raise at the first snapshot."""
    try:
        _Probe(io.BytesIO(), obj).dump(state)
    except Exception as err:
        raise TypeError(f'{type(obj).__name__}: a persistent object must be picklable: {err}') from err
