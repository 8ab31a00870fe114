"""Everything that differs between the hosts that the plugin lives in: ours, stylegan2-ada-pytorch, stylegan3.

Inside a checkout of NVIDIA's its dnnlib, torch_utils, training, metrics and legacy come first on the path. The plugin
uses them as they are, by names that all three hosts have (a test lists them); what they don't share stands here. Hosts
are told apart by what they have, never by a version.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import glob
import hashlib
import importlib
import importlib.util
import inspect
import itertools
import json
import os
import pickle
import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import click
import torch

import dnnlib
import legacy
from lia_plugin import files

# ---------------------------------------------------------------------------------------------------------------------
# Which host this is


class _UserError(ValueError):
    """An input of the user's is wrong. The message is one line: what, why, and what to do."""


OURS = hasattr(dnnlib.util, 'UserError')
# stylegan3's dnnlib differs from stylegan2-ada-pytorch's by this function.
IS_STYLEGAN3 = not OURS and hasattr(dnnlib.util, 'format_time_brief')
NAME = 'this project' if OURS else 'stylegan3' if IS_STYLEGAN3 else 'stylegan2-ada-pytorch'
UserError: type[ValueError] = getattr(dnnlib.util, 'UserError', _UserError)
atomic_write = getattr(dnnlib.util, 'atomic_write', files.write_then_rename)
file_hash: Callable[[str], str] = getattr(dnnlib.util, 'file_hash', files.file_hash)

# Where NVIDIA's hosts keep the networks that metrics look through; ours says it in the options.
_ADA_DETECTORS = 'https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{}.pt'
_SG3_DETECTORS = 'https://api.ngc.nvidia.com/v2/models/nvidia/research/stylegan3/versions/1/files/metrics/{}.pkl'
_DETECTOR_FILES = dict(inception='inception-2015-12-05', vgg16='vgg16')
# Which of them each family of metrics in NVIDIA's hosts takes, by the letters that its names begin with.
_DETECTOR_FAMILIES = {'fid': 'inception', 'kid': 'inception', 'is': 'inception', 'pr': 'vgg16', 'ppl': 'vgg16'}


def _check_imports() -> None:
    """click.UsageError if the checkout's own code can't be imported; no class of this module is known yet."""
    try:
        importlib.import_module('torch_utils.ops.conv2d_resample')
    except ImportError as error:
        hint = "; pip install 'setuptools<80' brings it" if error.name == 'pkg_resources' else ''
        raise click.UsageError(f"{NAME}'s own code can't be imported here: {one_line(error)}{hint}") from error


def networks_module() -> str:
    """The module with the host's StyleGAN2 generator and discriminator."""
    from lia_plugin.networks import HOST_MODULES

    return next(module for module in HOST_MODULES if importlib.util.find_spec(module) is not None)


def one_line(error: BaseException) -> str:
    """What an error says, short and without line breaks."""
    return ' '.join(str(error).split())[:200] or type(error).__name__


if not OURS:
    _check_imports()


# ---------------------------------------------------------------------------------------------------------------------
# Files


def fetch(path_or_url: str) -> str:
    """The path, or where a URL's file is now. UserError if it can't be had."""
    if not dnnlib.util.is_url(path_or_url, allow_file_urls=True):
        return path_or_url
    try:
        return dnnlib.util.open_url(path_or_url, return_filename=True)
    except (OSError, AssertionError) as error:  # NVIDIA's own; requests' errors are OSErrors.
        raise UserError(f'{path_or_url}: cannot be downloaded ({one_line(error)})') from error


def cached_download(url: str) -> str | None:
    """Path of a URL's file in the download cache, None if it was never downloaded. Never goes online."""
    folder = dnnlib.make_cache_dir_path('downloads')
    prefix = hashlib.md5(url.encode('utf-8'), usedforsecurity=False).hexdigest() + '_'
    if not os.path.isdir(folder):
        return None
    # Downloads under way carry another beginning or ending.
    ending = os.path.splitext(url)[1]
    names = [name for name in sorted(os.listdir(folder)) if name.startswith(prefix) and name.endswith(ending)]
    return os.path.join(folder, names[0]) if names else None


def load_network_pkl(path: str, trust: bool = False) -> dict[str, Any]:
    """Reads a network pickle (path or URL) or an exported folder: the snapshot's dict, modules on the CPU.

    In NVIDIA's checkouts their reader does it, which runs the source inside the file, as everything there does.
    Raises UserError for a missing or foreign file; in our host also for one that needs its own code, unless `trust`.
    """
    if os.path.isdir(path):
        network_folders()   # Which says so where there are none.
        return legacy.load_network_pkl(path)
    if OURS:
        with dnnlib.util.open_url(path, verbose=False) as f:
            return legacy.load_network_pkl(f, trust=trust)
    local = fetch(path)
    if not os.path.isfile(local):
        raise UserError(f'{path}: no such file')
    try:
        with open(local, 'rb') as f:
            return legacy.load_network_pkl(f)
    except Exception as error:  # Damaged pickles raise anything.
        raise UserError(f'{path}: not a network pickle that this checkout can read ({one_line(error)})') from error


def network_folders() -> Any:
    """The module that writes and reads networks without pickles. UserError in NVIDIA's checkouts, which have none."""
    try:
        return importlib.import_module('torch_utils.network_folder')
    except ModuleNotFoundError as error:
        if error.name == 'safetensors':
            raise UserError('safetensors is missing: pip install safetensors') from None
        raise UserError('folders without pickles need our own torch_utils: run this outside of the checkout') from None


def save_network_pkl(path: str, data: dict[str, Any]) -> None:
    """Writes a snapshot's dict, whole or not at all, as protocol 4: what the oldest hosts' Python reads."""
    with atomic_write(path) as f:
        pickle.dump(data, f, protocol=4)


# ---------------------------------------------------------------------------------------------------------------------
# Data


def open_data_set(**kwargs: Any) -> Any:
    """The host's data set of these arguments. UserError, in one line, if it can't be opened."""
    try:
        return dnnlib.util.construct_class_by_name(**kwargs)
    except Exception as error:  # NVIDIA's raises OSError, AssertionError, KeyError, BadZipFile …
        if OURS:
            raise
        raise UserError(f'--data: {kwargs.get("path")}: {one_line(error)}; make it with dataset_tool.py') from error


def data_label(opts: Any) -> str | None:
    """What the results of a metric with these options call its data set."""
    from metrics import metric_utils

    if OURS:
        return metric_utils.dataset_label(opts)
    return os.path.splitext(os.path.basename(os.path.abspath(opts.dataset_kwargs['path'])))[0]


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _loader_workers(num_items: int) -> int:
    return 0 if num_items < 4096 else min(3, _usable_cpus())


# Processes that read so many images of a data set, beside the one that uses them.
loader_workers: Callable[[int], int] = getattr(dnnlib.util, 'loader_workers', _loader_workers)


def batches(
    data_set: Any, items: Sequence[int], batch_size: int, device: torch.device | str
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(uint8 images NCHW, labels) of the items in their order, all of them, on the device."""
    if hasattr(data_set, 'stream'):
        with contextlib.closing(data_set.stream(items, batch_size, torch.device(device))) as made_ahead:
            yield from made_ahead
        return
    if hasattr(data_set, 'close'):
        data_set.close()  # Forked workers must not share one open file.
    loader: Any = torch.utils.data.DataLoader(
        data_set, batch_size=batch_size, sampler=items, num_workers=loader_workers(len(items)))
    try:
        for pixels, labels in loader:
            yield pixels.to(device), labels.to(device)
    except UserError as error:  # A worker's error has its traceback before the message.
        raise UserError(re.sub(r'^\S*UserError: ', '', str(error).strip().splitlines()[-1])) from error


def image_names(data_set: Any) -> list[str]:
    """File name, inside the folder or zip, of each item of a data set."""
    if hasattr(data_set, 'image_name'):
        return [data_set.image_name(i) for i in range(len(data_set))]
    return [data_set._image_fnames[data_set.get_details(i).raw_idx] for i in range(len(data_set))]


def check_images(data_set: Any) -> None:
    """UserError if an image's header doesn't fit the others. NVIDIA's data sets find that out as they read."""
    if hasattr(data_set, 'check_headers'):
        data_set.check_headers()


def parse_labels(data: bytes, where: str) -> Mapping[str, int | list[float]] | None:
    """Content of a dataset.json → image name → class number or vector; None if it has no labels.

    Raises UserError, that begins with `where`, if it is damaged.
    """
    if OURS:
        from training.image_archive import parse_labels as parse

        return parse(data, where)
    try:
        labels = json.loads(data)['labels']
        return None if labels is None else {name: label for name, label in labels}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{where}: must be {{"labels": [[name, label], …]}} ({one_line(error)})') from error


def convert_data_set() -> tuple[Any, Callable[..., Any]]:
    """Our converter's options and function. UserError in NVIDIA's checkouts, which have a script of their own."""
    if not OURS:
        raise UserError(f'dataset_tool: this is a checkout of {NAME}; use its own dataset_tool.py')
    from training.dataset_convert import Options, convert

    return Options, convert


def said_precision(network: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a synthesis network or discriminator, with what its own host has by default and this one otherwise.

    NVIDIA's two hosts differ in `num_fp16_res` and `conv_clamp`, which pickles may leave unsaid. Our reader says them.
    """
    if OURS:
        return dict(kwargs)
    blocks = [getattr(network, f'b{res}') for res in network.block_resolutions]
    built = dict(num_fp16_res=sum(block.use_fp16 for block in blocks), conv_clamp=blocks[-1].conv1.conv_clamp)
    foreign = () if IS_STYLEGAN3 else ('fused_modconv_default',)  # It changes no picture.
    return {**built, **{key: value for key, value in kwargs.items() if key not in foreign}}


def augpipe(name: str) -> dict[str, Any]:
    """Arguments of the augmentation pipe that `--augpipe` stands for."""
    if OURS:
        from training.augment import augpipe_specs

        return dict(augpipe_specs[name])
    # NVIDIA's stand inside a function of its train.py. Each word is a letter of the names: b, g, c, f, n, c.
    words = dict(
        blit=['xflip', 'rotate90', 'xint'], geom=['scale', 'rotate', 'aniso', 'xfrac'],
        color=['brightness', 'contrast', 'lumaflip', 'hue', 'saturation'], filter=['imgfilter'], noise=['noise'],
        cutout=['cutout'],
    )  # fmt: skip
    chosen = [name] if name in words else list(words)[: len(name)]
    return {keyword: 1 for word in chosen for keyword in words[word]}


# ---------------------------------------------------------------------------------------------------------------------
# Inference


def weight_keeper(network: Any) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Gives a region in which our kernels keep what they make of a network's weights; elsewhere it does nothing."""
    if not OURS:
        return contextlib.nullcontext
    from torch_utils.ops import kept

    store = kept.Store([*network.parameters(), *network.buffers()])
    return lambda: kept.using(store)


def free_memory() -> int:
    """Bytes of the machine's memory that this process can still take; control groups limit them, too."""
    if OURS:
        from dnnlib import memory

        return memory.free_bytes()
    return int(_hidden_memory_module().free_bytes())


@functools.cache
def _hidden_memory_module() -> Any:
    """Our dnnlib's memory.py, which a checkout's dnnlib hides, by its path: it is installed beside the plugin."""
    path = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'dnnlib', 'memory.py')
    spec = importlib.util.spec_from_file_location('_lia_memory', path)
    assert spec is not None and spec.loader is not None, 'it ends in .py'
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except FileNotFoundError:
        raise UserError(f'{path}: is missing, so that free memory cannot be read: install the whole distribution, or '
                        'give --batch=N') from None
    return module


# ---------------------------------------------------------------------------------------------------------------------
# Training


def check_training_options(options: Any) -> None:
    """UserError for what NVIDIA's loops can't do: they take no more than their own arguments."""
    if OURS:
        return
    no_gpu = options.device not in ('auto', 'cuda') or not torch.cuda.is_available()
    refused = dict(
        cfg=(options.cfg != 'lia', "is this checkout's own business: use its train.py"),
        val=(options.val not in (None, 'none'),
             'this loop measures on what it trains on; calc_metrics --data=… takes other images'),
        cache=(options.cache not in ('auto', 'off'), 'this loop decodes images each time it shows them; leave it out'),
        detector=(options.detector is not None, 'this loop has its own Inception'),
        allow_tf32=(options.allow_tf32 and IS_STYLEGAN3, "stylegan3's loop has no such switch"),
        cuda_graphs=(options.cuda_graphs not in (None, 'off'), f"{NAME}'s loop captures nothing; ours does"),
        device=(no_gpu, f"{NAME}'s loop needs a CUDA GPU; outside of this checkout ours takes any device"),
    )
    for name, (is_wrong, why) in refused.items():
        if is_wrong:
            raise UserError(f'--{name.replace("_", "-")}: {why}')
    _check_loop()


def _check_loop() -> None:
    """UserError if the checkout's loop can't run with what is installed: tried out, for versions tell little."""
    from torch_utils import misc

    try:
        misc.InfiniteSampler(dataset=[0])
    except TypeError as error:
        raise UserError(f"{NAME}'s InfiniteSampler doesn't work with PyTorch {torch.__version__}; take one below 2.13, "
                        'or train outside of this checkout') from error


def resolve_precision(choice: str | None, device: torch.device, says: bool = True) -> str | None:
    """What `--precision=choice` comes to on a device: fp32, bf16, fp16; None if nothing was said.

    What auto has come to is told in one line, if it says so, and what is slow here. Raises UserError for what the
    device can't, and in NVIDIA's checkouts for everything.
    """
    if choice is None:
        return None
    if not OURS:
        raise UserError(f'--precision: {NAME} has no such choice; its networks compute as they were made to')
    from torch_utils import precision

    resolved = precision.resolve(choice, device)
    if choice == 'auto' and says:
        click.echo(f'--precision=auto: {precision.described(resolved, device)}', err=True)
    if says and (why := precision.is_slow(resolved, device)) is not None:
        click.echo(f'--precision={resolved}: {why}', err=True)
    return resolved


def describe_precision(choice: str | None, device: torch.device) -> str:
    """What a choice that `resolve_precision` gave means, for people, and whether it is slow here."""
    from torch_utils import precision

    why = precision.is_slow(choice, device)
    return precision.described(choice, device) + (f'; {why}' if why else '')


def computes_in_bfloat16() -> bool:
    """Whether that was chosen for this process; never in NVIDIA's checkouts."""
    if not OURS:
        return False
    from torch_utils import precision

    return precision.chosen() == 'bf16'


@contextlib.contextmanager
def using_precision(choice: str | None, device: torch.device) -> Iterator[None]:
    """Networks compute in this inside. Says and raises what `resolve_precision` does."""
    resolved = resolve_precision(choice, device)
    if not OURS:
        yield
        return
    from torch_utils import precision

    with precision.using(resolved):
        yield


def default_val(val: str | None) -> str | None:
    """What `--val` means if it isn't said: None (a share) in our host, 'none' in those that can't hold out images."""
    return val if OURS or val is not None else 'none'


def adapt_stage(stage: dict[str, Any]) -> dict[str, Any]:
    """A stage's arguments with this host's names for the networks."""
    module = networks_module()
    if module == 'training.networks':
        return stage
    renamed = dict(stage)
    for key in ('G_kwargs', 'D_kwargs'):
        class_name = stage[key]['class_name']
        renamed[key] = {**stage[key], 'class_name': re.sub(r'^training\.networks\.', f'{module}.', class_name)}
    return renamed


def place_stage(kwargs: dict[str, Any], state_file: str) -> dict[str, Any]:
    """The loop's arguments completed: where the stage writes, and what it goes on from.

    Our loop goes on from its exact state. NVIDIA's keep none, and count from 0: the newest snapshot of the stage gives
    the weights, the kimg that are left are trained in a folder of their own.
    """
    if OURS:
        state = os.path.join(kwargs['run_dir'], state_file)
        return {**kwargs, 'resume_state': state if os.path.exists(state) else None}
    base = os.path.join(kwargs['run_dir'], kwargs['stage'])
    folders = sorted(glob.glob(glob.escape(base) + '-part*'))
    done: float = 0
    newest = None
    for folder in folders:
        snapshot, kimg = newest_snapshot(folder)
        if snapshot is not None and kimg > 0:
            newest, done = snapshot, done + kimg
    total = kwargs['total_kimg'] - kwargs.get('start_kimg', 0)
    if newest is not None:
        print(f'Going on from {newest}: its weights; optimisers start afresh, for {NAME} keeps none', flush=True)
        kwargs = {**_further_on(kwargs, done), 'resume_pkl': newest}
    return {**kwargs, 'run_dir': f'{base}-part{len(folders):02d}', 'start_kimg': 0, 'total_kimg': max(total - done, 0)}


def _further_on(kwargs: dict[str, Any], done_kimg: float) -> dict[str, Any]:
    """The same arguments for a stage of which so much is over: schedules of loss and optimisers begin there."""
    moved = dict(kwargs)
    for key in ('G_opt_kwargs', 'D_opt_kwargs'):
        if 'total_steps' in kwargs.get(key, {}):
            moved[key] = {**kwargs[key], 'first_step': round(done_kimg * 1000 / kwargs['batch_size'])}
    if 'total_kimg' in kwargs.get('loss_kwargs', {}):
        moved['loss_kwargs'] = {**kwargs['loss_kwargs'], 'first_kimg': done_kimg}
    return moved


def newest_snapshot(folder: str) -> tuple[str | None, int]:
    """Path of the newest network-snapshot-KKKKKK.pkl in a folder, and its kimg; (None, 0) if there is none."""
    names = sorted(name for name in os.listdir(folder) if re.fullmatch(r'network-snapshot-\d{6,}\.pkl', name))
    if not names:
        return None, 0
    return os.path.join(folder, names[-1]), int(re.findall(r'\d+', names[-1])[0])


def run_loop(kwargs: dict[str, Any], rank: int, device: torch.device) -> str | None:
    """Runs the host's training loop on this process's device.

    Gives the path of the last snapshot; None if it was interrupted.
    """
    from training.training_loop import training_loop

    if OURS:
        return training_loop(**kwargs, rank=rank, device=device)
    known = set(inspect.signature(training_loop).parameters)
    own = {'stage', 'start_kimg', 'val_set_kwargs', 'snapshot_fns', 'metric_kwargs', 'trust_pickle', 'allow_tf32',
           'precision', 'cache', 'cuda_graphs'}
    unknown = set(kwargs) - known - own
    assert not unknown, f'{NAME} has no {unknown}, and check_training_options did not say so'
    os.makedirs(kwargs['run_dir'], exist_ok=True)
    with _interruptible() as interrupted:
        watch = _Watch(kwargs, device) if rank == 0 else None
        passed = {k: v for k, v in kwargs.items() if k in known}
        training_loop(**passed, rank=rank, abort_fn=interrupted, progress_fn=watch)
        return None if interrupted() else newest_snapshot(kwargs['run_dir'])[0]


class _Watch:
    """What NVIDIA's loops tell at each tick: adds the time that is left, and pictures of new snapshots."""

    def __init__(self, kwargs: dict[str, Any], device: torch.device) -> None:
        self.kwargs, self.device = kwargs, device
        self.start = time.time()
        self.seen: str | None = None

    def __call__(self, kimg: float, total: float) -> None:
        if kimg > 0:
            left = (time.time() - self.start) * max(total - kimg, 0) / kimg
            eta = dnnlib.util.format_time(left)
            print(f'{self.kwargs["stage"]}: {kimg:g} of {total:g} kimg, eta {eta}', flush=True)
        snapshot, at = newest_snapshot(self.kwargs['run_dir'])
        if snapshot is None or snapshot == self.seen or not self.kwargs.get('snapshot_fns'):
            return
        self.seen = snapshot
        G = load_network_pkl(snapshot)['G_ema'].to(self.device)
        for function in self.kwargs['snapshot_fns']:
            dnnlib.util.call_func_by_name(
                G=G, run_dir=self.kwargs['run_dir'], kimg=at, device=self.device, **function)


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Gives a function that tells, alike on all ranks, whether to stop: NVIDIA's loops ask at the end of a tick.

    The first Ctrl-C asks for it, a second breaks.
    """
    asked, me = False, os.getpid()

    def ask(_signum: int, _frame: Any) -> None:
        nonlocal asked
        if os.getpid() != me:  # A data loader's worker, which has inherited this and must live on for now.
            return
        if asked:
            raise KeyboardInterrupt
        asked = True
        print('\nStopping at the end of this tick …', flush=True)

    def interrupted() -> bool:
        if not _is_distributed():
            return asked
        flag = torch.tensor(float(asked), device='cuda' if torch.distributed.get_backend() == 'nccl' else 'cpu')
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


# ---------------------------------------------------------------------------------------------------------------------
# Several processes


def together(command: Callable[[], int]) -> int:
    """Runs a command whose processes torchrun has started: in the first one, while the others wait for their share."""
    if OURS:
        from torch_utils import torchrun

        return torchrun.run(command)
    if os.environ.get('RANK') != '0':
        return 2  # The first one says why.
    raise UserError(f"torchrun: {NAME}'s loop starts its processes itself, on one machine: leave torchrun out and say "
                    f'--gpus={os.environ["WORLD_SIZE"]}; outside of this checkout ours takes torchrun')


def number_of_processes(said: int | None) -> int:
    """What `--gpus` means, None = not said: so many processes, or those that torchrun has started."""
    started = int(os.environ['WORLD_SIZE']) if started_by_torchrun() else None
    if started is not None and said not in (None, started):
        raise UserError(f'--gpus: {said} asked for, torchrun started {started} processes; leave --gpus out')
    return started or said or 1


def started_by_torchrun() -> bool:
    """Whether this process is one of those of torchrun, or of whatever sets its variables."""
    return all(name in os.environ for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT'))


def processes_here(processes: int) -> int:
    """How many of a command's processes work on this machine."""
    return int(os.environ.get('LOCAL_WORLD_SIZE', processes)) if started_by_torchrun() else processes


def check_devices(name: str, processes: int) -> str:
    """The device's name. UserError unless so many processes can use it: as many GPUs as work on this machine."""
    device = torch.device(name)
    here = processes_here(processes)
    if device.type == 'cuda' and processes > 1 and (device.index is not None or here > torch.cuda.device_count()):
        there = torch.cuda.device_count() if device.index is None else f'{device} alone'
        raise UserError(f'--gpus: {here} asked for, there is {there}')
    if device.type == 'mps' and processes > 1:
        raise UserError('--gpus: one process can use mps; --device=cpu takes several')
    check_processes('--gpus', here)
    return name


MOST_A_CPU = 32  # Processes: with more a machine would be busy for minutes with starting them.


def check_processes(option: str, here: int) -> None:
    """UserError for more processes on this machine than its CPUs can do anything with."""
    cpus = _usable_cpus()
    if here > MOST_A_CPU * cpus:
        raise UserError(f'{option}: {here} processes on this machine, which has {cpus} CPUs for them; '
                        f'{MOST_A_CPU * cpus} at most')


def own_device(device: str, rank: int) -> torch.device:
    """'cuda' → the GPU of the process with this number; any other device is itself."""
    own = torch.device(device)
    if own.type != 'cuda' or own.index is not None:
        return own
    return torch.device('cuda', int(os.environ['LOCAL_RANK']) if started_by_torchrun() else rank)


def spawn(fn: Callable[..., Any], world_size: int, args: tuple[Any, ...], device: str) -> Any:
    """Runs `fn(rank, world_size, *args)` in that many processes that form a group; gives rank 0's result.

    UserError, too, where one of several processes had not enough memory.
    """
    if world_size > 1:
        from lia_plugin.memory import tell_lack

        fn = functools.partial(tell_lack, fn)
    if OURS:
        from torch_utils import distributed, torchrun

        team = torchrun.team()
        if team is not None and world_size > 1:
            return team.dispatch(fn, args, device)
        return distributed.spawn(fn, world_size, args, device=device)
    if world_size == 1:
        return fn(0, 1, *args)
    with tempfile.TemporaryDirectory() as folder, _first_ctrl_c_is_the_childrens():
        try:
            torch.multiprocessing.start_processes(
                _run_rank, args=(fn, world_size, args, device, folder), nprocs=world_size, start_method='spawn')
        except torch.multiprocessing.ProcessRaisedException as error:
            told = re.search(r'UserError: (.*)\s*$', str(error))
            raise UserError(told[1]) if told else error from None
        except torch.multiprocessing.ProcessExitedException as error:
            raise UserError(f'rank {error.error_index} died ({one_line(error)}); all {world_size} processes were '
                            'stopped') from None
        result = os.path.join(folder, 'result.pkl')
        if not os.path.exists(result):  # Stopped before there was anything to save.
            raise KeyboardInterrupt
        with open(result, 'rb') as f:
            return pickle.load(f)  # Our own child's, out of our own folder.


@contextlib.contextmanager
def _first_ctrl_c_is_the_childrens() -> Iterator[None]:
    """They get it too, and need their time to finish. The second one breaks here."""
    count = 0

    def ask(_signum: int, _frame: Any) -> None:
        nonlocal count
        count += 1
        if count > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _run_rank(
    rank: int, fn: Callable[..., Any], world_size: int, args: tuple[Any, ...], device: str, folder: str
) -> None:
    from torch_utils import training_stats

    meeting = 'file:///' + os.path.join(os.path.abspath(folder), 'group').replace('\\', '/').lstrip('/')
    on_gpu = device.startswith('cuda')
    backend = 'nccl' if on_gpu and os.name != 'nt' else 'gloo'
    torch.distributed.init_process_group(backend=backend, init_method=meeting, rank=rank, world_size=world_size)
    own = torch.device('cuda', rank) if on_gpu else torch.device('cpu')
    training_stats.init_multiprocessing(rank=rank, sync_device=own)
    result = fn(rank, world_size, *args)
    if rank == 0:
        with open(os.path.join(folder, 'result.pkl'), 'wb') as f:
            pickle.dump(result, f)
    # Nobody leaves while another may still be talking to it. Told by files: who comes out of a collective first and
    # goes closes a connection that gloo may not have done with in the others.
    with open(os.path.join(folder, f'done{rank}'), 'w'):
        pass
    while not all(os.path.exists(os.path.join(folder, f'done{other}')) for other in range(world_size)):
        time.sleep(0.02)
    torch.distributed.destroy_process_group()


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def lost_process() -> type[Exception] | tuple[()]:
    """What `spawn` raises if one of its processes fails or dies; in NVIDIA's checkouts that is a UserError."""
    if not OURS:
        return ()
    from torch_utils.distributed import LostProcess

    return LostProcess


def rank() -> int:
    """This process's number among those that work together."""
    return torch.distributed.get_rank() if _is_distributed() else 0


def world_size() -> int:
    """Number of processes that work together."""
    return torch.distributed.get_world_size() if _is_distributed() else 1


def gather_objects(value: Any) -> list[Any]:
    """Every process's value, in order of rank, in all of them."""
    values = [value] * world_size()
    if _is_distributed():
        torch.distributed.all_gather_object(values, value)
    return values


def gather_on_first(value: Any) -> list[Any] | None:
    """Every process's value, in order of rank, in the first one; None in the others."""
    if not _is_distributed():
        return [value]
    values: list[Any] | None = [None] * world_size() if rank() == 0 else None
    torch.distributed.gather_object(value, values)
    return values


@contextlib.contextmanager
def first_on_machine() -> Iterator[None]:
    """One process of each machine goes through the body before the others: it downloads, and they find the file."""
    here = int(os.environ['LOCAL_RANK']) if started_by_torchrun() else rank()
    if _is_distributed() and here != 0:
        torch.distributed.barrier()
    yield
    if _is_distributed() and here == 0:
        torch.distributed.barrier()


def loss_must_sync() -> bool:
    """Whether a loss has to keep equal on all ranks what the host didn't wrap in DDP: weights and gradients.

    stylegan2-ada-pytorch leaves all exchange to DDP, and reads pickles on rank 0 alone; our loop and stylegan3's send
    all weights round at the start and average all gradients themselves.
    """
    if not _is_distributed():
        return False
    from training import training_loop

    return 'DistributedDataParallel' in inspect.getsource(training_loop)


@torch.no_grad()
def broadcast_weights(*modules: Any) -> None:
    """Gives every rank the parameters and buffers of rank 0."""
    for module in modules:
        for tensor in itertools.chain(module.parameters(), module.buffers()):
            torch.distributed.broadcast(tensor, src=0)


@torch.no_grad()
def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Averages over all ranks the gradients that are there, in one message."""
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return
    flat = torch.cat([g.flatten() for g in grads])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(part.view_as(grad))


# ---------------------------------------------------------------------------------------------------------------------
# Metrics


_own_metrics: dict[str, Callable[..., Any]] = {}  # Those of the plugin: NVIDIA's registries don't give functions back.


def register_metric(fn: Callable[[Any], dict[str, float]]) -> None:
    """Adds a metric to the host's registry. ValueError if the name is taken."""
    from metrics import metric_main

    if not OURS and metric_main.is_valid_metric(fn.__name__) and fn.__name__ not in _own_metrics:
        raise ValueError(f'metric {fn.__name__}: {NAME} has one of that name')
    _own_metrics[fn.__name__] = metric_main.register_metric(fn)


def metric_function(name: str) -> Callable[..., Any]:
    """The function of a registered metric; of NVIDIA's own ones, a stand-in without traits. UserError if unknown."""
    from metrics import metric_main

    if OURS:
        return metric_main.get_metric(name)
    if not metric_main.is_valid_metric(name):
        raise UserError(f'--metrics: {name}: unknown; there are {", ".join(metric_main.list_valid_metrics())}')
    return _own_metrics.get(name, _metric_of_the_checkout)


def _metric_of_the_checkout(_opts: Any) -> dict[str, float]:
    """A metric of this checkout."""
    raise AssertionError('only asked for its traits')


def check_metric_options(metrics: Iterable[str], given: Mapping[str, Any]) -> None:
    """UserError for options of calc_metrics that NVIDIA's metrics can't take.

    `given` are `num, batch, detector, seed` as the user said them, None = not said.
    """
    if OURS:
        from metrics import metric_main

        metric_main.check_detector(metrics, given.get('detector'))
        return
    for name in ('batch', 'detector', 'seed'):
        if given.get(name):
            raise UserError(f'--{name}: metrics of {NAME} take no such option; leave it out')
    wrong = [name for name in metrics if not getattr(metric_function(name), 'held_out', False)]
    if given.get('num') is not None and wrong:
        raise UserError(f'--num: {wrong[0]} has a number of images of its own in {NAME}; leave it out')


# Of the metric that is being computed in a host whose own options have no place for them.
_call: contextvars.ContextVar[tuple[dict[Any, Any], dict[str, Any]] | None] = contextvars.ContextVar(
    'shared and notes', default=None)


def calc_metric(
    name: str, dataset_kwargs: Mapping[str, Any], verbose: bool, options: Mapping[str, Any], shared: dict[Any, Any],
    **common: Any,
) -> dict[str, Any]:
    """Computes a metric in this host.

    Args:
        dataset_kwargs: Data set.
        options: What only our host's metrics take: num, batch, detector, seed.
        shared: What the metrics of one command share: see `metric_option`. The same dict for all of them.
        common: G, num_gpus, rank, device.
    """
    from metrics import metric_main, metric_utils

    kwargs = dict(dataset_kwargs)
    if OURS:
        common = {**common, **options, 'shared': shared}
    elif options.get('num') is not None:
        kwargs['max_size'] = min(options['num'], kwargs.get('max_size') or options['num'])
    progress = metric_utils.ProgressMonitor(verbose=verbose)
    notes: dict[str, Any] = {}
    token = _call.set((shared, notes))
    try:
        result = metric_main.calc_metric(metric=name, dataset_kwargs=kwargs, progress=progress, **common)
    except OSError as error:
        if OURS:
            raise
        # Most often a detector that NVIDIA's code can't download.
        raise UserError(f'--metrics: {name}: {one_line(error)}') from error
    finally:
        _call.reset(token)
    result.update(notes)
    return result


def metric_option(opts: Any, name: str) -> Any:
    """An option of a metric's that not every host has; None if unsaid.

    num, batch and seed are our host's. `shared` is a dict that all metrics of a command get: they keep there what
    others can use, under tuples, and find there, under its name, what the command says of all of them: `metrics`, their
    names; `training_set`, its arguments; the plugin's own options.
    """
    found = getattr(opts, name, None)
    if found is not None:
        return found
    call = _call.get()
    shared = getattr(opts, 'shared', None) if OURS or call is None else call[0]
    if name == 'shared':
        return shared
    return None if shared is None else shared.get(name)


def say(opts: Any, results: dict[str, float], n: int, **notes: Any) -> dict[str, float]:
    """Results with what must stand beside them: as notes where the host takes them or our command adds them, else n as
    a number of its own."""
    call = _call.get()
    place = getattr(opts, 'notes', None if call is None else call[1])
    if place is None:
        return {**results, f'{next(iter(results))}_n': n}
    place.update(n=n, **notes)
    return results


def needed_detector(metric: str) -> str | None:
    """'inception' or 'vgg16', whose features a metric looks at (in our host, or at those of `--detector`), or None."""
    fn = metric_function(metric)
    if fn is not _metric_of_the_checkout:
        return getattr(fn, 'needs_detector', None)
    letters = re.match('[a-z]*', metric)
    return _DETECTOR_FAMILIES.get(letters[0] if letters else '')


def fetch_detectors(metrics: Iterable[str], source: str | None, verbose: bool = True) -> None:
    """Gets the networks that metrics look through, so that they are here when they are needed.

    `source` is what `--detector` says, None = each metric's own; `verbose` shows downloads. UserError for a network
    that can't be had or used.
    """
    names = list(metrics)
    needed = {name: needed_detector(name) for name in names}
    if OURS:
        from metrics import detectors, metric_main

        metric_main.check_detector(names, source)
    for network in sorted({network for network in needed.values() if network is not None}):
        if OURS:
            detectors.get_feature_detector(source or detectors.URLS[network], verbose=verbose)
        else:
            fetch(detector_url(network))


def detector_url(network: str) -> str:
    """Where NVIDIA keeps its 'inception' or 'vgg16' for this host's metrics."""
    return (_SG3_DETECTORS if IS_STYLEGAN3 else _ADA_DETECTORS).format(_DETECTOR_FILES[network])


def inception_url(opts: Any) -> str:
    """The feature network of Fréchet distances: the one asked for in our host, each checkout's own in the others."""
    return getattr(opts, 'detector', None) or detector_url('inception')


def sliced_wasserstein() -> Any:
    """Our host's module of the sliced Wasserstein distance. UserError in NVIDIA's checkouts, which have none."""
    if not OURS:
        raise UserError(f'--metrics: {NAME} has no sliced Wasserstein distance: run this outside of the checkout')
    return importlib.import_module('metrics.sliced_wasserstein')


def plain(value: Any) -> Any:
    """EasyDict → dict, all the way down: what goes into JSON and pickles must need no class of a host."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def feature_detector(url: str, device: torch.device | str) -> tuple[Any, str]:
    """A detector as metrics have it, uint8 NCHW → [N, features], and its name. UserError if it can't be had."""
    from metrics import metric_utils

    if url.startswith('random:') and not OURS:
        raise UserError(f"--detector: {url}: NVIDIA's checkouts have none of random weights; give a file or a URL")
    try:
        found = metric_utils.get_feature_detector(url if OURS else fetch(url), torch.device(device))
    except UserError:
        raise
    except Exception as error:  # NVIDIA's: no file, no TorchScript, no pickle, …
        raise UserError(f'--detector: {url}: cannot be used in {NAME} ({one_line(error)})') from error
    return found, metric_utils.get_feature_detector_name(url)


def local_detector() -> str | None:
    """A detector that needs no download; None where there is none."""
    return 'random:0' if OURS else None


def describe_transfer(network: str, wanted: Iterable[str], there: Iterable[str], fresh: str) -> list[str]:
    """Which tensors of a pickle a network takes over, as lines for people; none where the host can't tell."""
    if not OURS:
        return []
    from training.transfer import describe

    return [describe(network, wanted, there, fresh)]
