"""What an operator is asked for: which gradients, and whether numbers or only a record of itself."""

from typing import Any

import torch
from torch.autograd import forward_ad


def is_asked(ctx: Any, index: int, before: int | None = None) -> bool:
    """Whether the gradient of input `index` leads to anything that the backward pass under way is about.

    To be called in `backward` of a torch.autograd.Function. Its `needs_input_grad` only says whether the input can have
    a gradient: within `torch.autograd.grad(logits, [images])` it is True for weights, too, whose gradients, the larger
    half of the work, would be thrown away. PyTorch's own operators leave them out by what is asked here.
    before: how many tensors were given before it, if there was a None or a number among them; None = as many as inputs.
    """
    if not ctx.needs_input_grad[index]:
        return False
    node = ctx.next_functions[index if before is None else before][0]
    if node is None:
        return False
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:  # It doesn't answer about a leaf whose gradient is asked for itself.
        return True


def is_recorded() -> bool:
    """Whether operators are being recorded, by torch.compile, torch.export (ONNX) or torch.jit.trace, or transformed,
    by torch.func (vmap, grad, jvp …) or forward-mode differentiation.

    Then only PyTorch's own ones will do, without numbers read out of tensors; derivatives are up to the recorder.
    """
    return (torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.compiler.is_exporting()
            or forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None)
