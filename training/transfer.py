"""What a network takes over from another one's weights, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


def describe(network: str, wanted: Iterable[str], there: Iterable[str], fresh: str = 'at random') -> str:
    """One line: which tensors are copied, which are new and what they start from, which of the file's are left.

    `G: 41 of 89 tensors copied; new, at random: mapping.phi (48); not taken over: mapping.fc0 (2), mapping.fc1 (2)`

    Args:
        network: What to call it.
        wanted: Names of the network's tensors.
        there: Names of the tensors in the file.
        fresh: What new ones start from.
    """
    wanted, there = set(wanted), set(there)
    copied, new, left = wanted & there, wanted - there, there - wanted
    tops = [{_part(name, 1) for name in names} for names in (copied, new, left)]
    # Parts that have only one fate are called by their shortest name.
    mixed = {part for part, times in Counter(part for group in tops for part in group).items() if times > 1}
    share = f'all {len(wanted)}' if not new else f'{len(copied)} of {len(wanted)}'
    told = [f'{network}: {share} tensors copied']
    told += [f'new, {fresh}: {_parts(new, mixed)}'] if new else []
    told += [f'not taken over: {_parts(left, mixed)}'] if left else []
    return '; '.join(told)


def _part(name: str, depth: int) -> str:
    return '.'.join(name.split('.')[:depth])


def _parts(names: set[str], mixed: set[str]) -> str:
    counts = Counter(_part(name, 2 if _part(name, 1) in mixed else 1) for name in sorted(names))
    return ', '.join(f'{part} ({count})' for part, count in counts.items())
