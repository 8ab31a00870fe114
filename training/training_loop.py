"""The training loop. It knows neither the model nor the loss: both come by class name.

API of stylegan2-ada-pytorch's training_loop, on any device, with exact resumption (`resume_state`) added.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import dnnlib
import legacy
from torch_utils import distributed, misc, torchrun, training_stats
from torch_utils import precision as precision_of
from training import checkpoint, data_loading, image_cache, iteration, reports
from training import cuda_graphs as graphs_of
from training.transfer import describe


@dataclasses.dataclass
class Phase:
    """One optimiser step's worth of work: which part of the loss, on which module, every how many iterations."""

    name: str
    module: torch.nn.Module
    opt: torch.optim.Optimizer
    interval: int = 1


@dataclasses.dataclass
class State:
    """All that changes while training; a checkpoint holds exactly this, and random state."""

    G: torch.nn.Module
    D: torch.nn.Module
    G_ema: torch.nn.Module
    augment_pipe: torch.nn.Module | None
    loss: Any
    phases: list[Phase]
    latents: torch.Generator  # Draws z and labels, in step on all ranks.
    stats: training_stats.Collector
    ada_stats: training_stats.Collector | None
    watch: iteration.Watch
    graphs: graphs_of.Graphs | None
    start_nimg: int  # Images shown before this stage began.
    cur_nimg: int
    cur_tick: int = 0
    tick_start_nimg: int = 0
    batch_idx: int = 0


def training_loop(
    run_dir: str = '.',  # Where everything is written.
    training_set_kwargs: dict[str, Any] = {},  # noqa: B006  Training set: class_name and arguments.
    data_loader_kwargs: dict[str, Any] = {},  # noqa: B006  Arguments of torch.utils.data.DataLoader.
    G_kwargs: dict[str, Any] = {},  # noqa: B006  Generator: class_name and arguments.
    D_kwargs: dict[str, Any] = {},  # noqa: B006  Discriminator: class_name and arguments.
    G_opt_kwargs: dict[str, Any] = {},  # noqa: B006  Its optimiser.
    D_opt_kwargs: dict[str, Any] = {},  # noqa: B006  Its optimiser.
    augment_kwargs: dict[str, Any] | None = None,  # Augmentation pipe. None = no augmentation.
    loss_kwargs: dict[str, Any] = {},  # noqa: B006  Loss: class_name and arguments.
    metrics: list[str] = [],  # noqa: B006  Metrics evaluated at each snapshot.
    random_seed: int = 0,
    num_gpus: int = 1,  # Processes that train together.
    rank: int = 0,  # Which of them this is.
    batch_size: int = 4,  # Images of one iteration, over all processes.
    batch_gpu: int = 4,  # Images that one process handles at a time.
    ema_kimg: float = 10,  # Half-life of G_ema, in thousands of images.
    ema_rampup: float | None = None,  # Limit the half-life to this share of the images shown so far. None = no limit.
    G_reg_interval: int | None = 4,  # Regularise G every so many iterations. None = together with the main loss.
    D_reg_interval: int | None = 16,  # Regularise D every so many iterations. None = together with the main loss.
    augment_p: float = 0,  # Initial augmentation probability.
    ada_target: float | None = None,  # Aim of the ADA heuristic. None = fixed p.
    ada_interval: int = 4,  # Adjust p every so many iterations.
    ada_kimg: float = 500,  # Thousands of images in which p may go from 0 to 1.
    total_kimg: float = 25000,  # Stop when this many thousand images were shown, `start_kimg` included.
    kimg_per_tick: float = 4,  # Length of a tick.
    image_snapshot_ticks: int | None = 50,  # Write image grids every so many ticks. None = never.
    network_snapshot_ticks: int | None = 50,  # Write pickles and the exact state every so many ticks. None = at end.
    resume_pkl: str | None = None,  # Network pickle whose weights to start from.
    cudnn_benchmark: bool = True,
    allow_tf32: bool = False,
    precision: str | None = None,  # fp32, bf16, fp16: see torch_utils.precision. None = fp16 on CUDA, else fp32.
    abort_fn: Callable[[], bool] | None = None,  # Asked each iteration; True stops the run. Must agree on all ranks.
    progress_fn: Callable[[float, float], None] | None = None,  # Told (thousands of images shown, total).
    device: torch.device | str | None = None,  # None = CUDA if there, else CPU.
    stage: str = 'gan',  # Its name in statistics and checkpoints.
    start_kimg: float = 0,  # Count images from here.
    val_set_kwargs: dict[str, Any] | None = None,  # Held-out set for metrics that ask for one. None = training set.
    resume_state: str | None = None,  # Checkpoint of this very run, to go on exactly.
    snapshot_fns: list[dict[str, Any]] = [],  # noqa: B006  func_name, arguments; get G, run_dir, kimg, device.
    metric_kwargs: dict[str, Any] = {},  # noqa: B006  Further arguments of metric_main.calc_metric.
    trust_pickle: bool = False,  # Run the code inside `resume_pkl`.
    cuda_graphs: str = 'off',  # auto, on: record phases and replay them, see training.cuda_graphs.
    cache: str | int = 'auto',  # Keep decoded images in memory: 'off', 'auto' = if all fit, or up to so many bytes.
) -> str | None:
    """Trains, and gives the path of the last snapshot; None if it was interrupted (the state is saved then).

    Images are NCHW float32 in [-1, 1]. Raises UserError if a loss stops being finite; what is on disk then stays good.
    """
    args = dnnlib.EasyDict(locals())
    args.device = device = pick_device(device, rank)
    _seed(args)
    training_set = dnnlib.util.construct_class_by_name(**training_set_kwargs)
    state = _construct(args, training_set)
    reporter = reports.Reporter(args, training_set)
    batches = _start_or_resume(args, state, training_set, reporter)

    compute = precision_of.using(precision)
    with compute, _closed_at_end(batches, training_set), _interruptible(abort_fn) as interrupted:
        return _train(args, state, training_set, batches, reporter, interrupted)


def _train(
    args: dnnlib.EasyDict, state: State, training_set: Any, batches: data_loading.Batches, reporter: reports.Reporter,
    interrupted: Callable[[], bool],
) -> str | None:
    """Iterations and what is due between them. Gives what `training_loop` does."""
    while True:
        done, aborted = state.cur_nimg >= args.total_kimg * 1000, interrupted()
        if not done and not aborted:
            iteration.iterate(args, state, training_set, next(batches))
            done = state.cur_nimg >= args.total_kimg * 1000
        reporter.progress(state.cur_nimg)
        tick_over = state.cur_tick == 0 or state.cur_nimg >= state.tick_start_nimg + args.kimg_per_tick * 1000
        if not (done or aborted or tick_over):
            continue
        if aborted and not done:
            _save(args, state, reporter)
            reporter.close()
            return None
        _maintain(args, state, reporter, done)
        if done:
            reporter.close()
            return reporter.last_snapshot


def pick_device(device: torch.device | str | None, rank: int) -> torch.device:
    """The device asked for; by default this rank's GPU if there is one, else Apple's, else the CPU."""
    if device is None:
        device = 'cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu'
    device = torch.device(device)
    return distributed.own_device(device, rank)


def _seed(args: dnnlib.EasyDict) -> None:
    np.random.seed(args.random_seed * args.num_gpus + args.rank)
    torch.manual_seed(args.random_seed * args.num_gpus + args.rank)
    torch.backends.cudnn.benchmark = args.cudnn_benchmark
    torch.backends.cuda.matmul.allow_tf32 = args.allow_tf32
    torch.backends.cudnn.allow_tf32 = args.allow_tf32


# ---------------------------------------------------------------------------------------------------------------------
# Set up


def _construct(args: dnnlib.EasyDict, training_set: Any) -> State:
    common = dict(
        c_dim=training_set.label_dim, img_resolution=training_set.resolution, img_channels=training_set.num_channels
    )
    build = dnnlib.util.construct_class_by_name
    G = build(**args.G_kwargs, **common).train().requires_grad_(False)
    D = build(**args.D_kwargs, **common).train().requires_grad_(False)
    G_ema = copy.deepcopy(G).eval()
    modules = {'G': G, 'D': D, 'G_ema': G_ema}
    if args.resume_pkl is not None and args.resume_state is None:
        _transfer(args, modules)
    for module in modules.values():
        module.to(args.device)
        distributed.broadcast_module(module)
    augment_pipe = _construct_augment(args)
    halves = dict(G_mapping=G.mapping, G_synthesis=G.synthesis, D=D, augment_pipe=augment_pipe)
    phases = _phases('G', G, args.G_opt_kwargs, args.G_reg_interval)
    phases += _phases('D', D, args.D_opt_kwargs, args.D_reg_interval)
    adaptive = augment_pipe is not None and args.ada_target is not None
    start_nimg = round(args.start_kimg * 1000)
    return State(
        G, D, G_ema, augment_pipe, build(device=args.device, **halves, **args.loss_kwargs), phases,
        latents=torch.Generator().manual_seed(args.random_seed),
        stats=training_stats.Collector(regex='.*'),
        ada_stats=training_stats.Collector(regex='Loss/signs/real') if adaptive else None,
        watch=iteration.Watch(args.device, args.stage),
        graphs=graphs_of.make(args.cuda_graphs, args.device, training_set.resolution),
        start_nimg=start_nimg, cur_nimg=start_nimg, tick_start_nimg=start_nimg,
    )  # fmt: skip


def _construct_augment(args: dnnlib.EasyDict) -> torch.nn.Module | None:
    if args.augment_kwargs is None or (args.augment_p <= 0 and args.ada_target is None):
        return None
    pipe = dnnlib.util.construct_class_by_name(**args.augment_kwargs).train().requires_grad_(False).to(args.device)
    pipe.p.copy_(torch.as_tensor(args.augment_p))
    return pipe


def _transfer(args: dnnlib.EasyDict, modules: dict[str, torch.nn.Module]) -> None:
    """Copies what the pickle has by name, and says on rank 0 what was copied and what was not."""
    data = legacy.load_network_pkl(args.resume_pkl, trust=args.trust_pickle)
    distributed.print0(f'Weights from {args.resume_pkl}:')
    for name, module in modules.items():
        given = data['G_ema'] if name == 'G' and data['G'] is None else data[name]
        if given is None:
            raise dnnlib.util.UserError(f'{args.resume_pkl}: holds no {name}; give a training snapshot')
        source = dict(misc.named_params_and_buffers(given))
        wanted = dict(misc.named_params_and_buffers(module))
        clash = next((k for k, v in wanted.items() if k in source and source[k].shape != v.shape), None)
        if clash is not None:
            raise dnnlib.util.UserError(
                f'{args.resume_pkl}: {name}.{clash} is {list(source[clash].shape)}, this configuration has '
                f'{list(wanted[clash].shape)}; give the options that the pickle was trained with'
            )
        misc.copy_params_and_buffers(given, module, require_all=False)
        label = name if given is data[name] else f'{name} (from G_ema)'
        distributed.print0(describe(label, wanted, source))


def _phases(name: str, module: torch.nn.Module, opt_kwargs: dict[str, Any], reg_interval: int | None) -> list[Phase]:
    """Phases of one network; with lazy regularisation the optimiser is slowed to match (StyleGAN2, appendix B)."""
    kwargs = dict(opt_kwargs)
    # Floats only: torch from 2.6 on refuses betas that mix them with integers, as configurations from JSON do.
    kwargs['betas'] = tuple(float(beta) for beta in kwargs.get('betas', (0.9, 0.999)))
    if reg_interval is None:
        return [Phase(f'{name}both', module, _optimizer(module, kwargs))]
    share = reg_interval / (reg_interval + 1)
    kwargs['lr'] = kwargs['lr'] * share
    kwargs['betas'] = tuple(beta**share for beta in kwargs['betas'])
    opt = _optimizer(module, kwargs)
    return [Phase(f'{name}main', module, opt), Phase(f'{name}reg', module, opt, reg_interval)]


def _optimizer(module: torch.nn.Module, kwargs: dict[str, Any]) -> torch.optim.Optimizer:
    if kwargs.get('class_name') == 'torch.optim.Adam':
        kwargs = {'fused': True, **kwargs}  # One kernel for all parameters, on the CPU too: 2.4 times faster there.
    return dnnlib.util.construct_class_by_name(module.parameters(), **kwargs)


def _start_or_resume(
    args: dnnlib.EasyDict, state: State, training_set: Any, reporter: reports.Reporter
) -> data_loading.Batches:
    """The stream of batches from where the state stands. Nothing draws random numbers between here and the loop."""
    saved = checkpoint.load(args.resume_state, args.stage) if args.resume_state is not None else None
    if saved is not None:
        state.cur_nimg = saved['progress']['cur_nimg']
    with _looking(args):
        kept = image_cache.keep(training_set, args.cache, args.rank)
        reporter.start(state.G, state.G_ema, state.cur_nimg, fresh=saved is None)
        distributed.print0(kept, flush=True)
    if saved is not None:
        checkpoint.restore(saved, state, args.rank, args.device)
        reporter.last_snapshot = saved['last_snapshot']
    with _looking(args):
        reporter.batches = _batches(args, training_set, state.cur_nimg - state.start_nimg)
    return reporter.batches


def _batches(args: dnnlib.EasyDict, training_set: Any, shown: int) -> data_loading.Batches:
    """Endless (uint8 NCHW, float32 labels) of this rank, after the first `shown` images of all ranks."""
    sampler = misc.InfiniteSampler(
        training_set, rank=args.rank, num_replicas=args.num_gpus, seed=args.random_seed,
        start=shown // args.num_gpus,
    )  # fmt: skip
    batch = args.batch_size // args.num_gpus
    return data_loading.stream(training_set, sampler, batch, args.device, **args.data_loader_kwargs)


@contextlib.contextmanager
def _closed_at_end(batches: data_loading.Batches, training_set: Any) -> Iterator[None]:
    """Neither processes nor images stay behind, whatever ends the loop."""
    try:
        yield
    finally:
        batches.close()
        image_cache.release(training_set)


# ---------------------------------------------------------------------------------------------------------------------
# Between ticks


def _maintain(args: dnnlib.EasyDict, state: State, reporter: reports.Reporter, done: bool) -> None:
    """End of a tick: the line, pictures, snapshot, metrics, statistics, and last the state to resume from."""
    # Tick 0 is the first iteration alone: nothing worth a file, unless it is all there was.
    state.watch.check()  # What is on disk stays good.
    saving = done or state.cur_tick > 0 and _due(args.network_snapshot_ticks, state.cur_tick, done)
    with _looking(args):
        _finish_ema(state)
        reporter.tick(state.cur_tick, state.cur_nimg, state.augment_pipe)
        if _due(args.image_snapshot_ticks, state.cur_tick, done):
            reporter.images(state.G_ema, state.cur_nimg)
        if saving:
            reporter.snapshot(state, state.cur_nimg)
            reporter.evaluate(state.G_ema, state.cur_nimg)
        reporter.statistics(state.stats, state.cur_nimg)
    state.cur_tick += 1
    state.tick_start_nimg = state.cur_nimg
    if saving:
        checkpoint.save(os.path.join(args.run_dir, checkpoint.FILE), args, state, reporter.last_snapshot)
    reporter.end_maintenance()


def _finish_ema(state: State) -> None:
    for name, buffer in state.G.named_buffers():
        if name.endswith('w_avg'):  # Each process has followed its own share; the mean of all follows the whole batch.
            buffer.copy_(distributed.mean_over_ranks(buffer))
    for ema, buffer in zip(state.G_ema.buffers(), state.G.buffers(), strict=True):
        ema.copy_(buffer)


def _due(every: int | None, tick: int, done: bool) -> bool:
    return done or (every is not None and tick % every == 0)


def _save(args: dnnlib.EasyDict, state: State, reporter: reports.Reporter) -> None:
    """What an interrupted run leaves: a snapshot to use and the state to go on from."""
    state.watch.check()
    with _looking(args):
        _finish_ema(state)
        reporter.snapshot(state, state.cur_nimg)
    checkpoint.save(os.path.join(args.run_dir, checkpoint.FILE), args, state, reporter.last_snapshot)


@contextlib.contextmanager
def _looking(args: dnnlib.EasyDict) -> Iterator[None]:
    """For pictures and metrics: they must not change what training draws, so that torch's random state is put back.

    They show the network as commands use it if nothing is said, which is not in bfloat16.
    """
    before = checkpoint.random_state(args.device)
    try:
        with precision_of.using(None if args.precision == 'bf16' else args.precision):
            yield
    finally:
        checkpoint.set_random_state(before, args.device)


@contextlib.contextmanager
def _interruptible(abort_fn: Callable[[], bool] | None) -> Iterator[Callable[[], bool]]:
    """Gives a function that tells, alike on all ranks, whether to stop. The first Ctrl-C asks for it, a second breaks.

    SIGTERM and SIGUSR1 are what schedulers send, and count as Ctrl-C.
    """
    asked, when = False, 0.0

    def ask(signum: int, frame: Any) -> None:
        nonlocal asked, when
        if asked and signum == signal.SIGINT and time.monotonic() - when > 1:  # Else one that came by two ways.
            raise KeyboardInterrupt
        again, asked, when = asked, True, time.monotonic()
        if again or torchrun.failing():  # Then torchrun ends what is left.
            return
        distributed.print0('\nStopping after this iteration and saving …', flush=True)

    def interrupted() -> bool:
        return distributed.any_rank(asked or (abort_fn is not None and abort_fn()))

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ValueError):  # Only a main thread may handle signals; elsewhere abort_fn remains.
            for number in torchrun.SIGNALS:
                stack.callback(signal.signal, number, signal.signal(number, ask))
        yield interrupted
