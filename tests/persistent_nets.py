"""Small persistent networks for the tests of pickling: their source travels, so they import no more than hosts have."""

from typing import Any

import torch

from torch_utils import persistence


@persistence.persistent_class
class Layer(torch.nn.Module):
    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn([in_features, out_features]))
        self.register_buffer('shift', torch.zeros([out_features]))
        self.register_buffer('nothing', None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.shift


@persistence.persistent_class
class Net(torch.nn.Module):
    def __init__(self, width: int, depth: int = 1, options: Any = None) -> None:
        super().__init__()
        self.gain = 0.5
        self.layers = torch.nn.Sequential(*[Layer(width, width) for _ in range(depth)])
        self.head = torch.nn.Linear(width, 2)
        self.register_buffer('step', torch.zeros([], dtype=torch.int64))
        self.register_buffer('derived', torch.arange(width), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x)) * self.gain


@persistence.persistent_class
class Plain:
    """Persistent, but no network."""

    def __init__(self, value: Any) -> None:
        self.value = value
