"""Whether networks that NVIDIA's code pickled give the same pictures and logits here, option by option.

    python benchmarks/fidelity.py --host=stylegan2-ada-pytorch --host=stylegan3 --out=fidelity.md

In each host's checkout, untouched and in a process of its own on the CPU, networks are built for every case of
`fidelity_cases.py`, pickled and run; here the pickles are read by the safe reader and run with the same inputs. The
table has the largest difference of any output, in units of that output's standard deviation.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import click
import fidelity_cases
import fidelity_worker
import torch

import legacy
from dnnlib.util import UserError

GOAL = 1e-4
NAMES = {'ada': 'stylegan2-ada-pytorch', 'sg3': 'stylegan3'}
NOTE = '''Pickles written by NVIDIA's own code, read by `legacy.load_network_pkl`. Largest difference of any output of a
network (pictures with constant, random and no noise, truncated and not, in eval and in train mode; ws and w_avg; LIA's
y and z; logits; augmented pictures), in units of that output's standard deviation. Weights, biases, w_avg and noise
strengths are random. Precision, clamps and decay of every layer are compared, too. In G, D and augment both sides
compute in float32. "As it runs" is what the same calls give without asking for float32: with float16 layers
stylegan2-ada-pytorch then computes in true half precision even on a CPU; this project and stylegan3 compute in float32
there.'''
COLUMNS = {'G': 'G', 'D': 'D', 'A': 'augment', 'half': 'as it runs'}


@dataclasses.dataclass
class Row:
    """A case's result: column → largest difference, or why there is none."""

    host: str
    name: str
    differences: dict[str, float] = dataclasses.field(default_factory=dict)
    refused: str | None = None
    warned: str | None = None

    @property
    def is_good(self) -> bool:
        strict = [value for column, value in self.differences.items() if column != 'half']
        return self.refused is None and self.warned is None and all(value < GOAL for value in strict)


def make_pickles(root: str, cases: list[dict[str, Any]], folder: str) -> None:
    """Runs the host's code on all cases. ClickException if it can't."""
    with open(os.path.join(folder, 'cases.json'), 'w', encoding='utf-8') as file:
        json.dump(cases, file)
    # PYTHONSAFEPATH would keep the host's own root away; PYTHONPATH could bring something else before it.
    env = {key: value for key, value in os.environ.items() if key not in ('PYTHONPATH', 'PYTHONSAFEPATH')}
    command = [sys.executable, fidelity_worker.__file__, os.path.abspath(root), folder]
    done = subprocess.run(command, cwd=root, env=dict(env, CUDA_VISIBLE_DEVICES='', PYTHONDONTWRITEBYTECODE='1'))
    if done.returncode:
        raise click.ClickException(f'{root}: its code does not run here, exit code {done.returncode}')


def compare(case: dict[str, Any], kind: str, path: str) -> Row:
    """Reads and runs one pickle, and holds the outputs against the host's."""
    row = Row(NAMES[kind], case['name'])
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            data = legacy.load_network_pkl(path)
        row.warned = str(caught[0].message) if caught else None
    except UserError as error:
        row.refused = str(error).split(': ', 1)[1]
        return row
    theirs = torch.load(path.replace('.pkl', '.pt'), weights_only=True)
    ours = fidelity_worker.outputs(data, case, kind)
    if set(ours) != set(theirs):
        row.refused = f'gives {sorted(set(ours) ^ set(theirs))} on one side only'
        return row
    for key, expected in theirs.items():
        column = 'half' if key.endswith('as it runs') else key[0]
        row.differences[column] = _larger(row.differences.get(column, 0.0), difference(ours[key], expected))
    return row


def difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest absolute difference, in units of the expected values' standard deviation."""
    if got.shape != expected.shape:
        return math.inf
    scale = float(expected.double().std()) if expected.numel() > 1 else float(expected.abs())
    return float((got.double() - expected.double()).abs().max()) / max(scale, 1e-12)


def _larger(a: float, b: float) -> float:
    return math.nan if math.isnan(b) or math.isnan(a) else max(a, b)


def table(rows: list[Row]) -> list[str]:
    lines = ['| option | ' + ' | '.join(COLUMNS.values()) + ' |', '| --- |' + ' ---: |' * len(COLUMNS)]
    for row in rows:
        cells = [_number(row.differences.get(column)) for column in COLUMNS]
        if row.refused:
            cells[0] = f'refused: {row.refused}'
        note = ' (with a warning)' if row.warned else ''
        lines.append(f'| {row.name}{note} | ' + ' | '.join(cells) + ' |')
    return lines


def _number(value: float | None) -> str:
    return '' if value is None else 'no half precision' if math.isnan(value) else f'{value:.1e}'


def report(results: dict[str, list[Row]]) -> str:
    lines = [f'# Fidelity of the safe reader, {datetime.date.today().isoformat()}', '']
    command = f'python benchmarks/fidelity.py {" ".join(f"--host={name}" for name in results)}'
    version = torch.__version__.split('+')[0]
    lines += [f'PyTorch {version}, {platform.machine()} CPU. Made by `{command}`.', '', NOTE, '']
    for name, rows in results.items():
        bad = [row.name for row in rows if not row.is_good]
        worst = max((value for row in rows for key, value in row.differences.items() if key != 'half'), default=0)
        lines += [f'## {name}', '', f'{len(rows)} pickles, {len(rows) - len(bad)} below {GOAL:g} without a warning; '
                  f'largest difference in float32: {worst:.1e}.', '', *table(rows), '']
    return '\n'.join(lines)


def run_host(root: str, only: str | None = None) -> tuple[str, list[Row]]:
    """All cases of one host: its name and the rows."""
    kind = fidelity_worker.kind_of(root)
    chosen = [case for case in fidelity_cases.CASES if kind in case.hosts and (only is None or only in case.name)]
    cases = [{**dataclasses.asdict(case), 'arguments': case.arguments()} for case in chosen]
    with tempfile.TemporaryDirectory() as folder:
        make_pickles(root, cases, folder)
        rows = [compare(case, kind, os.path.join(folder, f'{index}.pkl')) for index, case in enumerate(cases)]
    return NAMES[kind], rows


@click.command()
@click.option('--host', 'hosts', required=True, multiple=True, metavar='DIR', help='A checkout of NVIDIA; may repeat.',
              type=click.Path(exists=True, file_okay=False))
@click.option('--out', metavar='FILE', type=click.Path(dir_okay=False), help='Write the table here, not to stdout.')
@click.option('--only', metavar='TEXT', help='Only cases with this in their name.')
def main(hosts: tuple[str, ...], out: str | None, only: str | None) -> None:
    """Compare networks pickled by NVIDIA's code with what this project makes of them."""
    torch.set_num_threads(1)
    results = dict(run_host(root, only) for root in hosts)
    text = report(results)
    if out:
        with open(out, 'w', encoding='utf-8') as file:
            file.write(text)
    else:
        print(text)
    bad = [f'{row.host}, {row.name}' for rows in results.values() for row in rows if not row.is_good]
    if bad:
        raise click.ClickException(f'{len(bad)} cases differ, warn or are refused: {"; ".join(bad)}')


if __name__ == '__main__':
    main()
