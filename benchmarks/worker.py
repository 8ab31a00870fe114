"""One code base at work: builds networks and losses, then times what it is told to, one line of JSON in, one out.

`iteration.py` starts it once for this project and, to compare, once more for a stylegan2-ada-pytorch checkout: both
have modules of the same names. The only argument is a JSON object, see `Worker`. (`namespaces.py` lets both live in one
process, where `turns.LocalSide` holds such a worker.)
"""

from __future__ import annotations

import copy
import importlib
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from common import PROJECT, peak_memory, reset_peak_memory

PLUGINS = ('bias_act_plugin', 'upfirdn2d_plugin')  # The CUDA kernels that a stylegan2-ada-pytorch checkout builds.
MIN_SECONDS, MAX_CALLS = 0.15, 20  # A measurement repeats short work until it lasts so long, up to so many times.
# A rate of zero costs the same, and keeps the weights of both sides equal.
ADAM: dict[str, Any] = dict(lr=0.0, betas=(0.0, 0.99), eps=1e-8)


class Worker:
    """Networks, losses and inputs of one code base, and the pieces of work to time, by name.

    Args:
        root: Folder that dnnlib, torch_utils and training come from.
        weights: File to write the initial weights to; a host reads them from there, so this project comes first.
        device, resolution, channel_base, channel_max, batch, latent: What to build.
        precision: fp32; fp16, in the highest resolutions (CUDA only), as both code bases train by default; bf16, which
            the original hasn't: it takes fp16 on CUDA, else fp32.
        first: whether to write the weights.
        graphs: whether this project replays recorded phases, on CUDA.
        nhwc: whether this project's float16 layers are in channels_last.
        tf32: whether this project may round the factors of float32 products. The original may not.
    """

    def __init__(self, root: str, weights: str, device: str, precision: str = 'fp32', first: bool = True,
                 tf32: bool = False, graphs: bool = False, nhwc: bool = False, **size: int) -> None:
        import torch

        self.root, self.is_host, self.first = root, root != PROJECT, first
        self.device, self.size, self.tf32 = torch.device(device), SimpleNamespace(**size), tf32 and root == PROJECT
        half = self.device.type == 'cuda' and precision != 'fp32'
        self.graphs = self._make_graphs() if graphs and root == PROJECT else None
        self.precision = dict(num_fp16_res=4, conv_clamp=256) if half else dict(num_fp16_res=0, conv_clamp=None)
        self.last = dict(fp16_channels_last=True) if half and nhwc and root == PROJECT else {}
        self.missing: dict[str, str] = {}  # Work that this code base can't do, and why.
        self._set_up_torch(precision)
        torch.manual_seed(0)
        self.nets = self._networks()
        self._exchange_weights(weights)
        self._draw_inputs()
        self.work = self._gan_work()
        self._add_encoder_work()
        self.seconds: dict[str, float] = {}  # Of one call, as last measured.

    # -----------------------------------------------------------------------------------------------------------------
    # Set up

    def _set_up_torch(self, precision: str) -> None:
        """The same switches on both sides: those that the training loops set."""
        import torch

        if not self.is_host:
            from torch_utils import precision as choices

            choices.choose(precision)

        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = self.tf32
        for name in ('conv2d_gradfix', 'grid_sample_gradfix'):
            op = importlib.import_module(f'torch_utils.ops.{name}')
            if not os.path.abspath(op.__file__ or '').startswith(os.path.abspath(self.root) + os.sep):
                raise ImportError(f'torch_utils came from {op.__file__}, not from {self.root}')
            setattr(op, 'enabled', True)  # noqa: B010  A switch that both have.
        if self.is_host and self.device.type == 'cuda':
            require_plugins()
        warnings.simplefilter('ignore')  # Not before: a failed build says why in a warning.

    def _make_graphs(self) -> Any:
        from training import cuda_graphs

        return cuda_graphs.make('on', self.device, self.size.resolution)

    def _networks(self) -> dict[str, Any]:
        from training import networks

        size = self.size
        image = dict(c_dim=0, img_resolution=size.resolution, img_channels=3)
        widths = dict(channel_base=size.channel_base, channel_max=size.channel_max, **self.precision)
        G = networks.Generator(z_dim=size.latent, w_dim=size.latent, mapping_kwargs=dict(num_layers=2),
                               synthesis_kwargs=dict(widths, **self.last), **image)
        D = networks.Discriminator(block_kwargs=self.last, epilogue_kwargs=dict(mbstd_group_size=4), **widths, **image)
        nets = {'G': G, 'D': D}
        try:
            from lia_plugin import networks as lia_networks
            from lia_plugin.loss import EncoderLoss  # noqa: F401  To know now whether this host lets it in.

            nets['E'] = lia_networks.Generator(
                z_dim=size.latent, w_dim=size.latent, synthesis_kwargs=dict(widths, **self.last), **image,
                encoder_kwargs=dict(channel_base=size.channel_base, channel_max=size.channel_max, **self.precision),
            )
        except ImportError as error:
            self.missing['encoder step'] = str(error).split(' (')[0]  # Without the path.
        if self.first:
            _stir([G, D])
        return {name: net.train().requires_grad_(False).to(self.device) for name, net in nets.items()}

    def _exchange_weights(self, path: str) -> None:
        import torch

        if not self.first:
            weights = torch.load(path, map_location=self.device, weights_only=True)
            for name, net in self.nets.items():
                net.load_state_dict(weights[name])
        else:
            torch.save({name: net.state_dict() for name, net in self.nets.items()}, path)

    def _draw_inputs(self) -> None:
        import torch

        self.img, self.z = (x.to(self.device) for x in self.draw(0))
        self.c = torch.empty([self.size.batch, 0], device=self.device)

    def draw(self, seed: int) -> tuple[Any, Any]:
        """Images [batch, 3, resolution, resolution] in [-1, 1], and latents [batch, latent], on the CPU."""
        import torch

        side, stream = self.size.resolution, torch.Generator().manual_seed(1 + seed)
        # Smooth, as pictures are: of white noise D's statistics are unlike those of any training.
        coarse = torch.randn([self.size.batch, 3, side // 4, side // 4], generator=stream)
        img = torch.nn.functional.interpolate(coarse, scale_factor=4, mode='bilinear').clamp(-1, 1)
        return img, torch.randn([self.size.batch, self.size.latent], generator=stream)

    # -----------------------------------------------------------------------------------------------------------------
    # The work

    def _gan_work(self) -> dict[str, Callable[[], Any]]:
        import torch

        G, D = self.nets['G'], self.nets['D']
        loss = self._loss()
        average = copy.deepcopy(G).eval()
        return {
            'G eval': torch.no_grad()(lambda: average(self.z, self.c, noise_mode='const')),
            'D forward': torch.no_grad()(lambda: D(self.img, self.c)),
            'Gmain': lambda: self._phase(loss, 'Gmain', G, 1),
            'Greg': lambda: self._phase(loss, 'Greg', G, 4),
            'Dmain': lambda: self._phase(loss, 'Dmain', D, 1),
            'Dreg': lambda: self._phase(loss, 'Dreg', D, 16),
            'update': self._host_update(G, D, average) if self.is_host else self._own_update(G, D, average),
        }

    def _loss(self, **kwargs: Any) -> Any:
        from training.loss import StyleGAN2Loss

        G, D = self.nets['G'], self.nets['D']
        return StyleGAN2Loss(device=self.device, G_mapping=G.mapping, G_synthesis=G.synthesis, D=D, r1_gamma=1,
                             **kwargs)

    def _phase(self, loss: Any, name: str, module: Any, interval: int) -> None:
        """What a training loop does in a phase, but for the optimiser's step."""
        if self.graphs is not None:
            return self._recorded_phase(loss, name, module, interval)
        for parameter in module.parameters():
            parameter.grad = None
        module.requires_grad_(True)
        loss.accumulate_gradients(phase=name, real_img=self.img, real_c=self.c, gen_z=self.z, gen_c=self.c, sync=True,
                                  gain=interval)
        module.requires_grad_(False)

    def _recorded_phase(self, loss: Any, name: str, module: Any, interval: int) -> None:
        """The same, replayed. The first calls of a phase run as they are, and one records it: not to be timed."""
        from training import cuda_graphs, iteration

        phase = f'{type(loss).__name__} {name}'
        inputs = dict(real_img=self.img, real_c=self.c, gen_z=self.z, gen_c=self.c)
        for _ in range(1 if phase in self.graphs.idle else cuda_graphs.WARM_UP + 2):
            self.graphs.begin_phase(phase, module)
            module.requires_grad_(True)
            iteration.add_gradients(loss, self.graphs, name, inputs, True, interval)
            module.requires_grad_(False)
            self.graphs.end_phase(phase, module, True)

    def _own_update(self, G: Any, D: Any, average: Any) -> Callable[[], None]:
        """Steps of both optimisers and the moving average, by the training loop's own functions."""
        from torch_utils import distributed
        from training import iteration, training_loop

        kwargs = dict(class_name='torch.optim.Adam', **ADAM)
        optimizers = [(net, training_loop._optimizer(net, kwargs)) for net in (G, D)]
        args: Any = SimpleNamespace(ema_kimg=10, ema_rampup=None, batch_size=self.size.batch)
        state: Any = SimpleNamespace(G=G, G_ema=average, cur_nimg=0, start_nimg=0)

        def update() -> None:
            for net, optimizer in optimizers:
                distributed.all_reduce_gradients(net.parameters(), 1)
                iteration._match_strides(net.parameters())
                optimizer.step()
            iteration.update_ema(args, state)

        return update

    def _host_update(self, G: Any, D: Any, average: Any) -> Callable[[], None]:
        """The same as the original's loop does it, whose steps can't be called one by one."""
        import torch

        optimizers = [(net, torch.optim.Adam(net.parameters(), **ADAM)) for net in (G, D)]
        weight = 1 - 0.5 ** (self.size.batch / 10_000)

        def update() -> None:
            for net, optimizer in optimizers:
                for parameter in net.parameters():
                    if parameter.grad is not None:
                        torch.nan_to_num(parameter.grad, nan=0, posinf=1e5, neginf=-1e5, out=parameter.grad)
                optimizer.step()
            with torch.no_grad():
                for slow, fast in zip(average.parameters(), G.parameters()):
                    slow.copy_(fast.lerp(slow, 1 - weight))
                for slow, fast in zip(average.buffers(), G.buffers()):
                    slow.copy_(fast)

        return update

    def _add_encoder_work(self) -> None:
        if 'E' not in self.nets:
            return
        from lia_plugin.loss import EncoderLoss
        from lia_plugin.perceptual import DiscriminatorFeatures

        G, D = self.nets['E'], self.nets['D']
        # The default recipe of stage 2. Its features are D's, which training takes from a pickle.
        loss = EncoderLoss(self.device, G_mapping=G.mapping, G_synthesis=G.synthesis, D=D, percep='none',
                           percep_weight=0.1, adv_weight=0.02, latent_weight=0.1, mix=0.5)
        loss.percep = DiscriminatorFeatures(D, exact=False).to(self.device)
        self.work['encoder step'] = lambda: self._phase(loss, 'Gmain', G, 1)

    # -----------------------------------------------------------------------------------------------------------------
    # Commands

    def facts(self) -> dict[str, Any]:
        """What a table's head says."""
        import torch

        name = torch.cuda.get_device_name(self.device) if self.device.type == 'cuda' else ''
        return dict(work=list(self.work), missing=self.missing, torch=torch.__version__, gpu=name,
                    threads=torch.get_num_threads())

    def fingerprint(self) -> dict[str, list[float]]:
        """Some numbers of each network's output, by which to see that both code bases compute the same."""
        images, logits = self.work['G eval'](), self.work['D forward']()
        values = images.flatten()
        return dict(images=values[:: math.ceil(len(values) / 4096)].tolist(), logits=logits.flatten().tolist())

    def warm_up(self, *names: str) -> dict[str, float]:
        """Does all or the named work twice, untimed, in training's order: buffers, kernels, gradients."""
        for _ in range(2):
            for name in names or self.work:
                self.seconds[name] = self._time(name, 1)
        return self.seconds

    def measure(self, name: str) -> float:
        """Seconds of one call."""
        if name == 'G eval':  # Who draws draws many batches from the same weights; `update` has changed them.
            self._time(name, 2)
        calls = min(math.ceil(MIN_SECONDS / max(self.seconds[name], 1e-4)), MAX_CALLS)
        self.seconds[name] = self._time(name, calls)
        return self.seconds[name]

    def reset_peak(self) -> None:
        import torch

        if self.device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            reset_peak_memory()

    def peak(self) -> float:
        """Most memory so far, in MB: of a GPU what tensors held, else what the process held."""
        import torch

        if self.device.type == 'cuda':
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        return peak_memory()

    def count_flops(self) -> dict[str, int]:
        """Arithmetic of one call of each piece, without filters. Of this project only with its kernels off."""
        from peaks import CountFlops

        counts = {}
        for name, work in self.work.items():
            with CountFlops() as counter:
                work()
            counts[name] = counter.flops
        return counts

    def gradients(self, path: str, options: dict[str, Any]) -> None:
        """Writes outputs and the gradients of all phases to a file, see `gradients.write`."""
        import gradients

        gradients.write(self, path, **options)

    def profile(self, names: list[str], top: int) -> list[tuple[str, float, int]]:
        """(operator, milliseconds of its own, calls) of the costliest in one call of each named piece."""
        from torch.profiler import ProfilerActivity, profile

        cuda = self.device.type == 'cuda'
        with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda) as record:
            for name in names:
                self.work[name]()
            self._wait()
        kind = 'self_device_time_total' if cuda else 'self_cpu_time_total'
        rows = [(event.key, getattr(event, kind) / 1e3, event.count) for event in record.key_averages()]
        return sorted(rows, key=lambda row: -row[1])[:top]

    def _time(self, name: str, calls: int) -> float:
        import torch

        torch.manual_seed(2)  # Style mixing and noise draw the same on both sides.
        work = self.work[name]
        self._wait()
        start = time.perf_counter()
        for _ in range(calls):
            work()
        self._wait()
        return (time.perf_counter() - start) / calls

    def _wait(self) -> None:
        import torch

        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)


def _stir(nets: list[Any]) -> None:
    """As after some training: noise counts, and biases are not zero."""
    for net in nets:
        for name, parameter in net.named_parameters():
            if name.endswith('noise_strength'):
                parameter.data.fill_(0.1)
            elif name.endswith('.bias') and 'affine' not in name:
                parameter.data.normal_(0, 0.1)


def require_plugins() -> None:
    """Builds and loads the host's CUDA kernels. RuntimeError if one fails: its slow reference would then be timed."""
    ops = [importlib.import_module(f'torch_utils.ops.{name.removesuffix("_plugin")}') for name in PLUGINS]
    loaded = [op._init() for op in ops]
    cache = importlib.import_module('torch_utils.custom_ops')._cached_plugins
    absent = [name for name, there in zip(PLUGINS, loaded) if not there or name not in cache]
    if absent:
        raise RuntimeError(f"the host's own {' and '.join(absent)} did not load, so ratios would say nothing")


def serve(config: dict[str, Any], kind: Any = Worker) -> None:
    """Answers `[command, argument, …]` with `{"result": …}` or `{"error": …}`, until the pipe is closed."""
    # Whatever a library prints must not get between the answers.
    answers = os.fdopen(os.dup(1), 'w', buffering=1)
    os.dup2(2, 1)
    worker: Any = None
    for line in sys.stdin:
        command, *args = json.loads(line)
        try:
            if worker is None:
                worker = kind(**config)
            answer = {'result': getattr(worker, command)(*args)}
        except Exception as error:
            answer = {'error': f'{type(error).__name__}: {error}'}
        answers.write(json.dumps(answer) + '\n')


def folders(root: str) -> list[str]:
    """Where packages come from: the code base, then the plugin's own home."""
    return [root] + [PROJECT] * (root != PROJECT)


if __name__ == '__main__':
    given = json.loads(sys.argv[1])
    sys.path[0:0] = folders(given['root'])
    serve(given)
