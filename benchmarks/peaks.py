"""What a machine can do at best, measured, and how much arithmetic a piece of work needs, counted."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

aten: Any = torch.ops.aten


def seconds_of(work: Callable[[], Any], device: torch.device, least: float = 0.05, most: int = 200) -> float:
    """Of one call: as many as `least` seconds take, in one go, after an untimed one."""
    def wait() -> None:
        if device.type == 'cuda':
            torch.cuda.synchronize(device)

    def run(calls: int) -> float:
        wait()
        start = time.perf_counter()
        for _ in range(calls):
            work()
        wait()
        return (time.perf_counter() - start) / calls

    run(1)
    once = run(1)
    return run(max(1, min(most, int(least / max(once, 1e-6)))))


@torch.no_grad()
def measure_peaks(device: torch.device | str, repeats: int = 5) -> dict[str, float]:
    """The best of some runs. GFLOP/s of PyTorch's matmul and 3x3 convolution by type, GB/s (read + written) of copies.

    The copies: of 128 MB on a CPU and 1 GB on CUDA, and of what caches hold, 2 and 16 MB.
    """
    device = torch.device(device)
    cuda = device.type == 'cuda'
    n, batch = (8192, 32) if cuda else (1536, 8)
    found: dict[str, float] = {}

    def best(work: Callable[..., Any], *args: torch.Tensor) -> float:
        return min(seconds_of(lambda: work(*args), device, least=0.03) for _ in range(repeats))

    types = {'fp32': torch.float32, 'bf16': torch.bfloat16, **({'fp16': torch.float16} if cuda else {})}
    for name, dtype in types.items():
        a = torch.randn([n, n], device=device, dtype=dtype)
        found[f'matmul {name}'] = 2 * n**3 / best(torch.matmul, a, a) / 1e9
        x = torch.randn([batch, 256, 32, 32], device=device, dtype=dtype).to(memory_format=torch.channels_last)
        w = torch.randn([256, 256, 3, 3], device=device, dtype=dtype).to(memory_format=torch.channels_last)
        flops = 2 * batch * 32**2 * 256**2 * 9
        found[f'conv {name}'] = flops / best(lambda x, w: functional.conv2d(x, w, padding=1), x, w) / 1e9
    for name, size in [('copy', 2**30 if cuda else 2**27), ('copy in cache', 2**24 if cuda else 2**21)]:
        a = torch.randn([size // 4], device=device)
        found[name] = 2 * size / best(torch.Tensor.copy_, torch.empty_like(a), a) / 1e9
    return found


def said(peaks: dict[str, float]) -> str:
    return ', '.join(f'{name} {value:.0f} {"GB/s" if "copy" in name else "GFLOP/s"}' for name, value in peaks.items())


class CountFlops(TorchDispatchMode):
    """Counts the arithmetic of matrix products and convolutions in a context: `.flops`, twice the multiplications.

    Depthwise convolutions are left out, for they are filters, that other kernels do by other means. Of autograd
    functions with kernels of their own it sees nothing: count with LIA_KERNELS=off.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet in (aten.mm, aten.bmm):
            self.flops += 2 * result.numel() * args[0].shape[-1]
        elif packet in (aten.addmm, aten.baddbmm):
            self.flops += 2 * result.numel() * args[1].shape[-1]
        elif packet is aten.convolution:
            self.flops += _convolution(args[0].shape, args[1].shape, result.shape, args[6], args[8])
        elif packet is aten.convolution_backward:
            grad, x, w = args[:3]
            self.flops += _convolution(x.shape, w.shape, grad.shape, args[7], args[9]) * sum(args[10][:2])
        return result


def _convolution(x: Any, w: Any, y: Any, transposed: bool, groups: int) -> int:
    if groups > 1 and w[1] == 1:
        return 0
    positions = prod((x if transposed else y)[2:])
    return 2 * x[0] * positions * prod(w)
