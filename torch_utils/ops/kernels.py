"""Which compiled kernels serve a tensor."""

from typing import Any

import torch

from torch_utils.ops import cpu_kernels, cuda_kernels


def compiled(x: torch.Tensor) -> Any:
    """The kernels that can work on x, `cpu_kernels` or `cuda_kernels`; None if PyTorch's operators have to."""
    return cuda_kernels if cuda_kernels.usable(x) else cpu_kernels if cpu_kernels.usable(x) else None


def library_for(device: torch.device) -> Any:
    """The compiled kernels for tensors of this device, or None."""
    if device.type == 'cpu':
        return cpu_kernels.library()
    return cuda_kernels.library(device) if device.type == 'cuda' else None
