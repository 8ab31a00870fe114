"""What a run shows and leaves behind: tick lines, progress, image grids, snapshots, metrics, stats.jsonl."""

from __future__ import annotations

import copy
import json
import os
import sys
import time
from typing import Any

import numpy as np
import PIL.Image
import psutil
import torch
import tqdm

import dnnlib
from metrics import metric_main, metric_utils
from torch_utils import misc, network_pickle, training_stats

# What NVIDIA's tools may find in a pickle's training_set_kwargs: they hand all of it to their own data set class.
HOST_SET_KEYS = ('class_name', 'path', 'use_labels', 'max_size', 'xflip', 'resolution', 'random_seed')


class Reporter:
    """Reports of one training run; files are written and lines printed on rank 0 only.

    `args` are training_loop's arguments. Grids fill a 4K screen, as the host's do, but show 144 images at most.
    """

    def __init__(self, args: dnnlib.EasyDict, training_set: Any) -> None:
        self.args = args
        self.training_set = training_set
        self.first = args.rank == 0
        self.last_snapshot: str | None = None
        self.stats_metrics: dict[str, float] = {}
        self.grid_size = grid_size(training_set)
        self.bar: tqdm.tqdm | None = None
        self.stats_file: Any = None
        self.tensorboard: Any = None
        self.batches: Any = None  # Where the loop gets its images from; tells how long it waited for them.
        self.waits = Waits()

    def start(self, G: torch.nn.Module, G_ema: torch.nn.Module, cur_nimg: int, fresh: bool) -> None:
        """Opens the files, says what is trained; a fresh run also gets its first grids."""
        self.start_time = self.tick_time = time.time()
        self.start_nimg = self.tick_nimg = self.cur_nimg = cur_nimg
        self.maintenance_time = 0.0
        if not self.first:
            return
        args = self.args
        shown = self.training_set
        print(f'{len(shown)} images of {shown.image_shape}, labels {shown.label_shape}')
        lengths = f'kimg {cur_nimg / 1e3:g} to {args.total_kimg:g}'
        print(f'Stage {args.stage}: {lengths} on {args.device}, batch {args.batch_size}')
        print(f'{count(G)} parameters to train in G')
        stats_path = os.path.join(args.run_dir, 'stats.jsonl')
        drop_later_ticks(stats_path, cur_nimg)
        self.stats_file = open(stats_path, 'a')
        self.tensorboard = _tensorboard(args.run_dir)
        if fresh:
            self._first_grids(G_ema)
        left = max(args.total_kimg * 1000 - cur_nimg, 0)
        self.bar = tqdm.tqdm(total=left, unit='img', unit_scale=True, leave=False, dynamic_ncols=True, disable=None)

    def _first_grids(self, G_ema: torch.nn.Module) -> None:
        images = np.stack([self.training_set[i][0] for i in self._grid_indices()])
        save_grid(images, os.path.join(self.args.run_dir, 'reals.png'), self.grid_size)
        if self._draws_fakes(G_ema):
            self._fakes(G_ema, 'fakes_init.png')

    def _grid_indices(self) -> list[int]:
        order = np.random.RandomState(self.args.random_seed).permutation(len(self.training_set))
        count = self.grid_size[0] * self.grid_size[1]
        return [int(i) for i in np.resize(order, count)]

    @staticmethod
    def _draws_fakes(G: Any) -> bool:
        # A synthesis network without parameters is frozen: its pictures were drawn by the stage that trained it.
        return any(True for _ in G.synthesis.parameters())

    @torch.no_grad()
    def _fakes(self, G_ema: Any, name: str) -> None:
        count = self.grid_size[0] * self.grid_size[1]
        z = torch.from_numpy(np.random.RandomState(self.args.random_seed).randn(count, G_ema.z_dim).astype(np.float32))
        c = torch.from_numpy(np.stack([self.training_set.get_label(i) for i in self._grid_indices()]))
        size = max(self.args.batch_gpu, 16)  # No gradients are kept: what training fits, this fits too.
        rounds = zip(z.split(size), c.split(size), strict=True)
        device = self.args.device
        fakes = torch.cat([G_ema(z=z.to(device), c=c.to(device), noise_mode='const').cpu() for z, c in rounds])
        save_grid(metric_utils.to_uint8(fakes).numpy(), os.path.join(self.args.run_dir, name), self.grid_size)

    def images(self, G_ema: torch.nn.Module, cur_nimg: int) -> None:
        """Grids of this tick: fakes while synthesis learns, and whatever `snapshot_fns` draw."""
        if not self.first:
            return
        if self._draws_fakes(G_ema):
            self._fakes(G_ema, f'fakes{cur_nimg // 1000:06d}.png')
        for kwargs in self.args.snapshot_fns:
            dnnlib.util.call_func_by_name(
                G=G_ema, run_dir=self.args.run_dir, kimg=cur_nimg // 1000, device=self.args.device, **kwargs
            )

    def snapshot(self, state: Any, cur_nimg: int) -> None:
        """Writes network-snapshot-KKKKKK.pkl in the host's format, atomically."""
        kimg = cur_nimg // 1000
        if state.start_nimg:  # Never the name of the snapshot that this stage started from.
            kimg = max(kimg, state.start_nimg // 1000 + 1)
        path = os.path.join(self.args.run_dir, f'network-snapshot-{kimg:06d}.pkl')
        self.last_snapshot = path
        if not self.first:
            return
        set_kwargs = {k: v for k, v in self.args.training_set_kwargs.items() if k in HOST_SET_KEYS}
        data: dict[str, Any] = dict(training_set_kwargs=set_kwargs)
        for name in ('G', 'D', 'G_ema', 'augment_pipe'):
            module = getattr(state, name)
            data[name] = None if module is None else copy.deepcopy(module).eval().requires_grad_(False).cpu()
        network_pickle.save(path, data)

    def evaluate(self, G_ema: torch.nn.Module, cur_nimg: int) -> None:
        """Metrics at a snapshot, on the held-out set if there is one and the metric asks for it."""
        args = self.args
        if self.first and args.metrics:
            print(f'Evaluating {", ".join(args.metrics)} …', flush=True)
        # Metrics that look at the same reconstructions share one pass, and may ask what all of them are measured on.
        shared: dict[Any, Any] = dict(metrics=list(args.metrics), training_set=dict(args.training_set_kwargs))
        for metric in args.metrics:
            held_out = getattr(metric_main.get_metric(metric), 'held_out', False) and args.val_set_kwargs is not None
            set_kwargs = args.val_set_kwargs if held_out else args.training_set_kwargs
            result = metric_main.calc_metric(
                metric=metric, G=G_ema, dataset_kwargs=dict(set_kwargs), num_gpus=args.num_gpus, rank=args.rank,
                device=args.device, shared=shared, **args.metric_kwargs,
            )  # fmt: skip
            if self.first:
                metric_main.report_metric(result, run_dir=args.run_dir, snapshot_pkl=self.last_snapshot)
            self.stats_metrics.update(result.results)

    def progress(self, cur_nimg: int) -> None:
        self.cur_nimg = cur_nimg
        if self.bar is not None:
            self.bar.update(cur_nimg - self.start_nimg - self.bar.n)
        if self.args.progress_fn is not None:
            self.args.progress_fn(cur_nimg / 1e3, self.args.total_kimg)

    def tick(self, tick: int, cur_nimg: int, augment_pipe: Any) -> None:
        """The host's line of a tick, with the time that is left at its end."""
        now = time.time()
        self.tick_end = now
        kimg, seconds = (cur_nimg - self.tick_nimg) / 1e3, now - self.tick_time
        p = float(augment_pipe.p) if augment_pipe is not None else 0.0
        waited, self.batches.waited = self.batches.waited, 0.0
        share = training_stats.report('Timing/data_wait', min(waited / max(seconds, 1e-8), 1.0))
        training_stats.report('Timing/data_wait_sec', waited)
        report = training_stats.report0
        fields = [
            f'tick {report("Progress/tick", tick):<5d}',
            f'kimg {report("Progress/kimg", cur_nimg / 1e3):<8.1f}',
            f'time {dnnlib.util.format_time(report("Timing/total_sec", now - self.start_time)):<12s}',
            f'sec/tick {report("Timing/sec_per_tick", seconds):<7.1f}',
            f'sec/kimg {report("Timing/sec_per_kimg", seconds / max(kimg, 1e-8)):<7.2f}',
            f'maintenance {report("Timing/maintenance_sec", self.maintenance_time):<6.1f}',
            f'wait {100 * share:.1f}%'.ljust(11),
            f'cpumem {report("Resources/cpu_mem_gb", psutil.Process().memory_info().rss / 2**30):<6.2f}',
            f'gpumem {report("Resources/peak_gpu_mem_gb", _peak_gpu_gb(self.args.device)):<6.2f}',
            f'augment {report("Progress/augment", p):.3f}',
            f'eta {self._eta(cur_nimg, now)}',
        ]
        if self.first:
            tqdm.tqdm.write(' '.join(fields))
            advice = self.waits.advice(tick, waited, seconds, self.batches)
            if advice is not None:
                tqdm.tqdm.write(advice)
            sys.stdout.flush()

    def _eta(self, cur_nimg: int, now: float) -> str:
        shown = cur_nimg - self.start_nimg
        left = max(self.args.total_kimg * 1000 - cur_nimg, 0)
        return dnnlib.util.format_time((now - self.start_time) * left / shown) if shown else '?'

    def statistics(self, collector: Any, cur_nimg: int) -> None:
        """One line of stats.jsonl: every statistic's mean, std and number since the last tick, and new metrics."""
        collector.update()
        if not self.first:
            return
        # A name without values is one of an earlier stage in this process.
        fields: dict[str, Any] = {k: v for k, v in collector.as_dict().items() if v['num']}
        fields.update(stage=self.args.stage, timestamp=time.time())
        for name, value in self.stats_metrics.items():
            fields[f'Metrics/{name}'] = dict(num=1, mean=value, std=0.0)
        self.stats_file.write(json.dumps(fields) + '\n')
        self.stats_file.flush()
        if self.tensorboard is not None:
            for name, value in fields.items():
                if isinstance(value, dict):
                    self.tensorboard.add_scalar(name, value['mean'], global_step=cur_nimg // 1000)
            self.tensorboard.flush()
        self.stats_metrics = {}

    def end_maintenance(self) -> None:
        """Starts the next tick's clocks; what came since the line was printed was maintenance."""
        now = time.time()
        self.maintenance_time = now - self.tick_end
        self.tick_time = now
        self.tick_nimg = self.cur_nimg

    def close(self) -> None:
        for thing in (self.bar, self.stats_file, self.tensorboard):
            if thing is not None:
                thing.close()


class Waits:
    """How long the loop waits for images, while that won't end by itself; says once what to do."""

    LIMIT = 0.05  # A share of the time, …
    LEAST = 5.0  # … and seconds, from which on it is worth a word.

    def __init__(self) -> None:
        self.waited = self.seconds = 0.0
        self.said = False

    def advice(self, tick: int, waited: float, seconds: float, batches: Any) -> str | None:
        """A line after this tick, or None. Tick 0, when all starts, doesn't count."""
        if tick == 0 or batches.is_filling:
            return None
        self.waited, self.seconds = self.waited + waited, self.seconds + seconds
        share = self.waited / max(self.seconds, 1e-8)
        if self.said or self.waited < self.LEAST or share < self.LIMIT:
            return None
        self.said = True
        return f'The loop waited {100 * share:.0f} % of its time for images: {batches.remedy()}'


def drop_later_ticks(path: str, cur_nimg: int) -> None:
    """Takes out of stats.jsonl the ticks that a killed run wrote after its last state: they will come again."""
    if not os.path.exists(path):
        return
    with open(path) as f:
        lines = f.readlines()
    # Statistics are averaged in float32.
    kept = [line for line in lines if _kimg_of(line) <= cur_nimg / 1e3 * (1 + 1e-6)]
    if len(kept) < len(lines):
        with dnnlib.util.atomic_write(path, 'w') as f:
            f.writelines(kept)


def _kimg_of(line: str) -> float:
    try:
        return float(json.loads(line)['Progress/kimg']['mean'])
    except (ValueError, KeyError, TypeError):  # Cut off by the kill.
        return float('inf')


def count(module: torch.nn.Module) -> str:
    """Number of parameters with thousands marked."""
    return f'{sum(p.numel() for p in misc.params_and_buffers(module) if isinstance(p, torch.nn.Parameter)):,}'


def grid_size(training_set: Any) -> tuple[int, int]:
    """Columns and rows that fill 3840×2160 pixels, 7 to 16 by 4 to 9: a CPU has to draw them too."""
    columns = int(np.clip(3840 // training_set.image_shape[2], 7, 16))
    rows = int(np.clip(2160 // training_set.image_shape[1], 4, 9))
    return columns, rows


def save_grid(images: np.ndarray, path: str, size: tuple[int, int]) -> None:
    """uint8 [columns · rows, channels, height, width] → one PNG."""
    columns, rows = size
    _, channels, height, width = images.shape
    grid = images.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    grid = grid.reshape(rows * height, columns * width, channels)
    with dnnlib.util.atomic_write(path) as f:
        PIL.Image.fromarray(grid[:, :, 0] if channels == 1 else grid).save(f, format='PNG')


def _peak_gpu_gb(device: torch.device) -> float:
    if device.type != 'cuda':
        return 0.0
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def _tensorboard(run_dir: str) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print('TensorBoard is not installed: no event files; stats.jsonl has the same numbers')
        return None
    try:
        return SummaryWriter(run_dir)
    except UnicodeEncodeError:
        print("Skipping TensorBoard: it can't write to a folder whose name is not UTF-8", flush=True)
        return None
