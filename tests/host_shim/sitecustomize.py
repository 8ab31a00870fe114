"""Lets programs of NVIDIA's checkouts run on a CPU and today's PyTorch. Only devices and known breaks are replaced:

- `cuda` devices are the CPU, CUDA's events and memory counters do nothing, process groups use gloo, DDP has no GPU;
- `Sampler.__init__` takes the data source that it took before torch 2.13;
- DDP sends buffers round when it wraps a module, as it did before it followed `broadcast_buffers` there too;
- `pkg_resources.parse_version`, which setuptools no longer brings, is packaging's.

Python runs this file first if its folder is on PYTHONPATH, in spawned processes too. `LIA_PLUGIN` names the folder of
our distribution, which then comes behind the checkout on the path; without it there is no plugin. With
`LIA_LEAVE_BREAKS` only devices are replaced.
"""

import os
import sys
import types
from typing import Any

import packaging.version

PLUGIN = os.environ.get('LIA_PLUGIN', '')
if PLUGIN:
    sys.path.append(PLUGIN)
else:
    sys.modules['lia_plugin'] = None  # type: ignore[assignment]  # `import lia_plugin` raises ImportError.

# An editable install of ours would lend its modules to the checkout's packages of the same name.
sys.meta_path[:] = [finder for finder in sys.meta_path if '__editable__' not in getattr(finder, '__module__', '')]

import torch  # noqa: E402

REAL_DEVICE = torch.device


class _AnyDevice(type):
    def __instancecheck__(cls, obj: Any) -> bool:
        return isinstance(obj, REAL_DEVICE)


class _Device(metaclass=_AnyDevice):
    """torch.device, for which every CUDA device is the CPU."""

    def __new__(cls, kind: Any = 'cpu', index: int | None = None) -> Any:
        if isinstance(kind, int) or str(kind).startswith('cuda'):
            return REAL_DEVICE('cpu')
        return kind if isinstance(kind, REAL_DEVICE) else REAL_DEVICE(kind, *([] if index is None else [index]))


class _Event:
    def __init__(self, **_options: Any) -> None:
        pass

    def record(self, _stream: Any = None) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, _other: Any) -> float:
        return 0.0


def _swap_device() -> None:
    _Device.__name__ = _Device.__qualname__ = 'device'
    _Device.__module__ = 'torch'
    torch.device = _Device  # type: ignore[misc, assignment]
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: os.cpu_count() or 1
    torch.cuda.Event = _Event  # type: ignore[misc, assignment]
    torch.cuda.current_stream = lambda device=None: None  # type: ignore[assignment, return-value]
    for name in ('max_memory_allocated', 'max_memory_reserved', 'reset_peak_memory_stats', 'set_device'):
        setattr(torch.cuda, name, lambda device=None: 0)
    torch.Tensor.pin_memory = lambda self, device=None: self  # type: ignore[method-assign, assignment]
    torch.Tensor.cuda = lambda self, *_args, **_kwargs: self  # type: ignore[method-assign, assignment]


def _swap_distributed() -> None:
    start, wrap = torch.distributed.init_process_group, torch.nn.parallel.DistributedDataParallel.__init__

    def start_gloo(backend: str | None = None, **kwargs: Any) -> None:
        start(backend='gloo', **kwargs)

    def wrap_on_cpu(self: Any, module: torch.nn.Module, device_ids: Any = None, **kwargs: Any) -> None:
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, src=0)
        wrap(self, module, **kwargs)

    torch.distributed.init_process_group = start_gloo
    torch.nn.parallel.DistributedDataParallel.__init__ = wrap_on_cpu  # type: ignore[method-assign, assignment]


def _mend_breaks() -> None:
    resources = types.ModuleType('pkg_resources')
    resources.parse_version = packaging.version.parse  # type: ignore[attr-defined]
    sys.modules['pkg_resources'] = resources
    torch.utils.data.Sampler.__init__ = lambda self, data_source=None: None  # type: ignore[method-assign, assignment]


_swap_device()
_swap_distributed()
if not os.environ.get('LIA_LEAVE_BREAKS'):
    _mend_breaks()
