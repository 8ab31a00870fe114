"""Compares the alias-free networks with the original's: pictures, option by option, and the time they take on a CPU.

    python benchmarks/stylegan3.py --host=../stylegan3

Prints two Markdown tables. Each code base runs in a process of its own, with the same weights and latents; one waits
while the other works, and they take turns in changing order, so that both meet the same drift of a busy machine. On a
CPU the original takes its reference operators. One thread.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import types
from typing import Any

import click

PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BASE: dict[str, Any] = dict(z_dim=512, c_dim=0, w_dim=512, img_resolution=32, img_channels=3, channel_base=2048,
                            channel_max=64)  # fmt: skip
R: dict[str, Any] = dict(conv_kernel=1, use_radial_filters=True)
OPTIONS: dict[str, dict[str, Any]] = {
    'T, defaults': {}, 'R': R, 'T, 5 classes': dict(c_dim=5), 'R, 5 classes, grey': dict(R, c_dim=5, img_channels=1),
    'T, 64×64': dict(img_resolution=64), 'R, 128×128': dict(R, img_resolution=128),
    'num_layers=6': dict(num_layers=6), 'num_critical=0': dict(num_critical=0), 'num_critical=4': dict(num_critical=4),
    'margin_size=0': dict(margin_size=0), 'filter_size=4': dict(filter_size=4), 'filter_size=8': dict(filter_size=8),
    'lrelu_upsampling=1': dict(lrelu_upsampling=1), 'lrelu_upsampling=4': dict(lrelu_upsampling=4),
    'R, lrelu_upsampling=4': dict(R, lrelu_upsampling=4), 'conv_kernel=5': dict(conv_kernel=5),
    'use_radial_filters, conv_kernel=3': dict(use_radial_filters=True), 'conv_clamp=2': dict(conv_clamp=2),
    'conv_clamp=None': dict(conv_clamp=None), 'output_scale=1': dict(output_scale=1),
    'first_cutoff=3, first_stopband=2^2.6, last_stopband_rel=2^0.5': dict(
        first_cutoff=3, first_stopband=2**2.6, last_stopband_rel=2**0.5),
    'mapping: 8 layers, lr_multiplier=0.1': dict(mapping_kwargs=dict(num_layers=8, lr_multiplier=0.1)),
}  # fmt: skip
SPEEDS: dict[str, tuple[int, dict[str, Any]]] = {  # Batch, options.
    'T, 64×64, batch 4': (4, dict(img_resolution=64, channel_base=8192, channel_max=256)),
    'R, 64×64, batch 4': (4, dict(R, img_resolution=64, channel_base=16384, channel_max=512)),
    'T, 256×256, batch 1': (1, dict(img_resolution=256, channel_base=16384, channel_max=512)),
    'R, 256×256, batch 1': (1, dict(R, img_resolution=256, channel_base=32768, channel_max=512)),
}
PICTURES = ('plain', 'truncated', 'turned')


class Worker:
    """One code base: builds generators, draws pictures into files, takes times."""

    def __init__(self, root: str) -> None:
        if importlib.util.find_spec('pkg_resources') is None:  # Gone from setuptools; the original wants one name.
            import packaging.version

            resources: Any = types.ModuleType('pkg_resources')
            resources.parse_version = packaging.version.parse
            sys.modules['pkg_resources'] = resources
        sys.path[0] = root
        import torch

        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        self.is_host = root != PROJECT
        self.G: Any = None
        self.inputs: tuple[Any, Any] = (None, None)

    def build(self, options: dict[str, Any], batch: int, weights: str) -> None:
        """The generator; this project's comes first and writes the weights, the other takes them by name."""
        import torch

        from training import networks_stylegan3

        torch.manual_seed(0)
        self.G = networks_stylegan3.Generator(**{**BASE, **options}).eval()
        if self.is_host:
            self.G.load_state_dict(torch.load(weights))
        else:
            self._stir()
            torch.save(self.G.state_dict(), weights)
        z = torch.randn([batch, self.G.z_dim], generator=torch.Generator().manual_seed(1))
        self.inputs = z, torch.eye(self.G.c_dim)[torch.arange(batch) % self.G.c_dim] if self.G.c_dim else None

    def _stir(self) -> None:
        """As after training: nothing is at zero, and the magnitudes are those of the inputs."""
        import torch

        for name, parameter in self.G.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if '.input.' in name else 0.3))
        self.G.mapping.w_avg.normal_()
        layers = [getattr(self.G.synthesis, name) for name in self.G.synthesis.layer_names]
        for layer in layers:
            layer.magnitude_ema_beta = 0.0
        self.G.synthesis(torch.randn([2, self.G.num_ws, self.G.w_dim]), update_emas=True)

    def draw(self, path: str) -> None:
        import torch

        z, c = self.inputs
        pictures = dict(plain=self.G(z, c), truncated=self.G(z, c, truncation_psi=0.6, truncation_cutoff=4))
        turn = torch.tensor([[1.1, -0.4, 0.13], [0.4, 1.1, -0.21], [0, 0, 1]])
        self.G.synthesis.input.transform.copy_(turn)
        pictures['turned'] = self.G(z, c)
        torch.save(pictures, path)

    def measure(self) -> float:
        """Seconds of one batch."""
        start = time.perf_counter()
        self.G(*self.inputs)
        return time.perf_counter() - start


class Side:
    """A process with a Worker."""

    def __init__(self, root: str) -> None:
        env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': ''}
        self.process = subprocess.Popen([sys.executable, __file__, '--worker', root], env=env, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, *command: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None, 'both are pipes'
        self.process.stdin.write(json.dumps(command) + '\n')
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise click.ClickException('--host: a worker ended; its last lines stand above')
        return json.loads(line)


def serve(root: str) -> None:
    worker = Worker(root)
    answers = os.fdopen(os.dup(1), 'w', buffering=1)
    os.dup2(2, 1)  # Whatever a library prints must not get between the answers.
    for line in sys.stdin:
        name, *args = json.loads(line)
        answers.write(json.dumps(getattr(worker, name)(*args)) + '\n')


def difference_rows(sides: list[Side], folder: str) -> list[str]:
    import torch

    rows = ['| option | ' + ' | '.join(PICTURES) + ' |', '| --- |' + ' ---: |' * len(PICTURES)]
    for name, options in OPTIONS.items():
        files = [os.path.join(folder, f'{i}.pt') for i in range(2)]
        for side, file in zip(sides, files, strict=True):
            side.ask('build', options, 3, os.path.join(folder, 'weights.pt'))
            side.ask('draw', file)
        ours, theirs = (torch.load(file) for file in files)
        errors = [float((ours[key] - theirs[key]).abs().max() / theirs[key].std()) for key in PICTURES]
        rows.append(f'| {name} | ' + ' | '.join(f'{error:.1e}' for error in errors) + ' |')
    return rows


def speed_rows(sides: list[Side], folder: str, rounds: int) -> list[str]:
    rows = ['| network | this project, ms | original, ms | times faster | quartiles |', '| --- |' + ' ---: |' * 4]
    for name, (batch, options) in SPEEDS.items():
        for side in sides:
            side.ask('build', options, batch, os.path.join(folder, 'weights.pt'))
            side.ask('measure')
        times: list[dict[int, float]] = []
        for _ in range(rounds):
            order = random.sample(range(2), 2)
            times.append({index: sides[index].ask('measure') for index in order})
        ratios = [pair[1] / pair[0] for pair in times]
        low, middle, high = statistics.quantiles(ratios, n=4, method='inclusive')
        medians = [statistics.median(pair[index] for pair in times) * 1e3 for index in range(2)]
        rows.append(f'| {name} | {medians[0]:.0f} | {medians[1]:.0f} | {middle:.1f} | {low:.1f}–{high:.1f} |')
    return rows


@click.command()
@click.option('--host', type=click.Path(exists=True, file_okay=False), help='A checkout of stylegan3')
@click.option('--rounds', type=click.IntRange(min=2), default=7, show_default=True, help='Measurements of each time')
@click.option('--worker', hidden=True)
def main(host: str | None, rounds: int, worker: str | None) -> None:
    """Compares alias-free networks with the original's."""
    if worker is not None:
        return serve(worker)
    if host is None or not os.path.isfile(os.path.join(host, 'training', 'networks_stylegan3.py')):
        raise click.UsageError(f'--host: {host or "not given"}, expected a checkout of stylegan3 to compare with')
    import torch

    random.seed(0)
    sides = [Side(PROJECT), Side(os.path.abspath(host))]
    with tempfile.TemporaryDirectory() as folder:
        click.echo('\n'.join(difference_rows(sides, folder)) + '\n')
        click.echo('\n'.join(speed_rows(sides, folder, rounds)) + '\n')
    click.echo(f'{platform.machine()}, 1 thread, torch {torch.__version__}, load average {os.getloadavg()[0]:.1f}, '
               f'{rounds} rounds, {datetime.date.today()}.')


if __name__ == '__main__':
    main()
