"""The modules and tensors inside a record: what a file says that a network consists of."""

import re
from collections.abc import Iterator
from typing import Any

import torch

from dnnlib.util import UserError

from .safe_unpickler import Record

MAX_DEPTH = 32  # Of modules. Networks have some 6.
MAX_PARTS = 20_000
MAX_TENSORS = 20_000    # StyleGAN2 at 1024² has 300.
MAX_PREFIX = 500    # Characters in front of a tensor's name.


def walk_modules(root: Record, name: str) -> Iterator[tuple[str, Record]]:
    """(prefix, record) of a module and all its parts: ('', G), ('mapping.', …), ('mapping.fc0.', …).

    Raises UserError, with the file's `name` in front, for what can't be a network: endless, or with foreign parts.
    """
    todo = [('', root, 0)]
    for _ in range(MAX_PARTS):
        prefix, record, depth = todo.pop()
        yield prefix, record
        children = record.state.get('_modules') or {}
        for key, child in children.items():
            is_part = is_proper_name(key) and isinstance(child, (Record, type(None)))
            if not is_part or depth > MAX_DEPTH or len(prefix) > MAX_PREFIX:
                raise UserError(f'{name}: {root.class_name} has something that is no module among its parts')
            if child is not None:
                todo.append((f'{prefix}{key}.', child, depth + 1))
        if not todo:
            return
    raise UserError(f'{name}: {root.class_name} has more than {MAX_PARTS} parts; it is no network of this project')


def tensors_of(root: Record, parts: list[tuple[str, Record]], name: str) -> dict[str, torch.Tensor]:
    """All parameters and buffers by their full names. A shared part's count as often as it occurs."""
    tensors: dict[str, torch.Tensor] = {}
    for prefix, part in parts:
        tensors.update(_own_tensors(prefix, part))
        if len(tensors) > MAX_TENSORS:
            raise UserError(f'{name}: {root.class_name} has more than {MAX_TENSORS} tensors; it is no network')
    return tensors


def derived_buffers(parts: list[tuple[str, Record]]) -> set[str]:
    """Buffers that the file's own code would recompute, so that ours may do without."""
    return {f'{prefix}{key}' for prefix, part in parts for key in part.state.get('_non_persistent_buffers_set') or ()}


def is_proper_name(key: Any) -> bool:
    """Whether a file's name for a part can stand in a message; ours are all of this kind."""
    return isinstance(key, str) and re.fullmatch(r'\w{1,100}', key) is not None


def _own_tensors(prefix: str, part: Record) -> Iterator[tuple[str, torch.Tensor]]:
    for kind in ('_parameters', '_buffers'):
        for key, tensor in (part.state.get(kind) or {}).items():
            if isinstance(tensor, torch.Tensor):
                yield f'{prefix}{key if is_proper_name(key) else "?"}', tensor
