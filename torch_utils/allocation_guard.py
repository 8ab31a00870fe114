"""A limit on what a constructor allocates, for arguments that come out of a file."""

import math
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

MAX_INT = 1 << 20   # Of an argument. Sizes, counts and channel bases of networks stay far below.
MAX_TEXT = 1000     # Characters of an argument: errors quote what they didn't expect ...
MAX_VALUES = 10_000     # ... and may quote all of it.


def check_arguments(value: Any) -> None:
    """Raises ValueError for arguments that no network has, before a constructor can stumble over them.

    Those are integers that would already be too much as the length of a plain list, and text or collections that would
    be too much to quote in an error.
    """
    todo, count = [value], 0
    while todo:
        item = todo.pop()
        count += 1
        if isinstance(item, int) and not -MAX_INT <= item <= MAX_INT:
            raise ValueError(f'an argument is beyond {MAX_INT:,}')
        if isinstance(item, (str, bytes, bytearray)) and len(item) > MAX_TEXT:
            raise ValueError(f'an argument is a text of more than {MAX_TEXT:,} characters')
        if isinstance(item, (np.ndarray, torch.Tensor)) and math.prod(item.shape) > MAX_VALUES:
            raise ValueError(f'an argument is an array of more than {MAX_VALUES:,} numbers')
        if isinstance(item, torch.nn.Module):
            raise ValueError('an argument is a network')
        if isinstance(item, (list, tuple, set, dict)):
            if count + len(todo) + 2 * len(item) > MAX_VALUES:
                raise ValueError(f'they are more than {MAX_VALUES:,} values')
            todo.extend(item)
            todo.extend(item.values() if isinstance(item, dict) else ())


class AllocationGuard(TorchFunctionMode):
    """Inside it, a constructor that asks for far more than `num_elements` in `num_tensors` fails with a ValueError.

    Weights are zeros there instead of random: they would be drawn only to be overwritten, in half of the loading time.
    """

    SIZED = {torch.empty, torch.zeros, torch.ones, torch.randn, torch.rand, torch.full, torch.eye}
    SPANS = {torch.arange, torch.linspace, torch.logspace}

    def __init__(self, num_elements: int, num_tensors: int) -> None:
        super().__init__()
        self.largest = 2 * num_elements + (1 << 20)
        self.elements_left = 16 * self.largest
        self.calls_left = 200 * (num_tensors + 10)  # Our constructors need some 5 for each tensor.

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._charge(_requested_elements(func, args, kwargs))
        if func is torch.randn:
            func, kwargs = torch.zeros, {key: item for key, item in kwargs.items() if key != 'generator'}
        result = func(*args, **kwargs)
        if isinstance(result, torch.Tensor):
            self._charge(result.numel())
        return result

    def _charge(self, num_elements: float) -> None:
        self.calls_left -= 1
        self.elements_left -= int(min(num_elements, 1 << 62))
        if num_elements > self.largest or self.elements_left < 0 or self.calls_left < 0:
            raise ValueError('they ask for far more than the weights in the file')


def _requested_elements(func: Any, args: Any, kwargs: dict[str, Any]) -> float:
    """How many elements a factory function is about to allocate; 0 for everything else."""
    if func in AllocationGuard.SIZED:
        size = kwargs.get('size', args[0] if args and isinstance(args[0], (list, tuple)) else args)
        numbers = [number for number in size if isinstance(number, int)]
        return math.prod(numbers * 2 if func is torch.eye and len(numbers) == 1 else numbers)
    if func in AllocationGuard.SPANS:
        return max((abs(float(arg)) for arg in args if isinstance(arg, (int, float))), default=0)
    return 0
