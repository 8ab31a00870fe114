"""One iteration of training: batches and latents to the device, phases, moving average, ADA.

On a GPU nothing here waits for the device but ADA, every few iterations: work is queued ahead of it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

import dnnlib
from torch_utils import distributed

Rounds = Sequence[torch.Tensor]  # What a process handles one after the other.


class Watch:
    """Sees a loss that is not finite. On a GPU without waiting for it: one iteration later, or when `check` is called.

    later: whether to do so; None = on CUDA.
    """

    def __init__(self, device: torch.device, stage: str, later: bool | None = None) -> None:
        self.stage = stage
        self.later = device.type == 'cuda' if later is None else later
        self.finite = torch.ones([], dtype=torch.bool, pin_memory=device.type == 'cuda')
        self.arrived = torch.cuda.Event() if device.type == 'cuda' else None
        self.noted_at: int | None = None  # Images shown before the iteration that is still to be looked at.

    def note(self, losses: list[torch.Tensor], cur_nimg: int) -> None:
        """Looks at the iteration before, and takes the losses of this one. Raises UserError, as `check` does."""
        self.check()
        if not losses:
            return
        self.finite.copy_(torch.isfinite(torch.stack(losses)).all(), non_blocking=True)
        if self.arrived is not None:
            self.arrived.record(torch.cuda.current_stream(losses[0].device))
        self.noted_at = cur_nimg
        if not self.later:
            self.check()

    def check(self) -> None:
        """UserError if a loss noted so far was NaN or infinite. Before anything is written, and only then, it waits."""
        noted_at, self.noted_at = self.noted_at, None
        if noted_at is None:
            return
        if self.arrived is not None:
            self.arrived.synchronize()
        if self.finite:
            return
        remedy = 'a lower --enc-lr' if self.stage == 'encoder' else 'a lower --glr or --dlr, a higher --gamma'
        stage = '--stage=encoder ' if self.stage == 'encoder' else ''
        raise dnnlib.util.UserError(
            f'training diverged at kimg {noted_at / 1e3:.1f}: a loss is NaN or infinite. The last snapshot is good; '
            f'start from it ({stage}--resume=…pkl) with {remedy}, or --fp32'
        )


def iterate(args: dnnlib.EasyDict, state: Any, training_set: Any, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """All phases that are due, for a batch (uint8 NCHW, float32 labels) of this process."""
    img, c = batch
    real_img = (img.to(args.device, non_blocking=True).to(torch.float32) / 127.5 - 1).split(args.batch_gpu)
    real_c = c.to(args.device, non_blocking=True).split(args.batch_gpu)
    latents = draw_latents(args, state, training_set)
    losses: list[torch.Tensor] = []
    for phase, (gen_z, gen_c) in zip(state.phases, latents, strict=True):
        if state.batch_idx % phase.interval == 0:
            losses += run_phase(args, state, phase, real_img, real_c, gen_z, gen_c)
    state.watch.note(losses, state.cur_nimg)
    state.cur_nimg += args.batch_size
    state.batch_idx += 1
    update_ema(args, state)
    if state.ada_stats is not None and state.batch_idx % args.ada_interval == 0:
        adapt_augmentation(args, state)


def draw_latents(args: dnnlib.EasyDict, state: Any, training_set: Any) -> list[tuple[Rounds, Rounds]]:
    """For each phase, rounds of z and labels. All ranks draw the same and take turns, as they do with images."""
    mine = slice(args.rank, None, args.num_gpus)
    drawn_z, drawn_c = [], []
    for _ in state.phases:
        drawn_z.append(torch.randn([args.batch_size, state.G.z_dim], generator=state.latents)[mine])
        indices = torch.randint(len(training_set), [args.batch_size], generator=state.latents)
        labels = [training_set.get_label(i) for i in indices[mine].tolist()]
        drawn_c.append(torch.from_numpy(np.stack(labels)))
    z, c = (_to_device(torch.stack(drawn), args.device) for drawn in (drawn_z, drawn_c))
    return [(z[i].split(args.batch_gpu), c[i].split(args.batch_gpu)) for i in range(len(state.phases))]


def _to_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    return x.pin_memory().to(device, non_blocking=True) if device.type == 'cuda' else x.to(device)


def run_phase(
    args: dnnlib.EasyDict, state: Any, phase: Any, real_img: Rounds, real_c: Rounds, gen_z: Rounds, gen_c: Rounds
) -> list[torch.Tensor]:
    """Gradients of all rounds, averaged over ranks, and one step of the optimiser. Gives the losses there were."""
    graphs = state.graphs
    if graphs is None:
        phase.opt.zero_grad(set_to_none=True)
    else:
        graphs.begin_phase(phase.name, phase.module)
    phase.module.requires_grad_(True)
    losses = []
    rounds = len(real_img)
    for i in range(rounds):
        inputs = dict(real_img=real_img[i], real_c=real_c[i], gen_z=gen_z[i], gen_c=gen_c[i])
        value = add_gradients(state.loss, graphs, phase.name, inputs, i == rounds - 1, phase.interval / rounds)
        if value is not None:
            losses.append(value.detach().reshape([]))
    phase.module.requires_grad_(False)
    if graphs is not None:
        graphs.end_phase(phase.name, phase.module, bool(losses))
    distributed.all_reduce_gradients(phase.module.parameters(), args.num_gpus)
    _match_strides(phase.module.parameters())
    phase.opt.step()
    return losses


def _match_strides(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Gives gradients their parameters' strides. Autograd leaves those of axes of length 1 as they come, and on CUDA
    fused Adam refuses such gradients: of 1x1 kernels, of a layer with one output."""
    for parameter in parameters:
        grad = parameter.grad
        if grad is not None and grad.stride() != parameter.stride():
            parameter.grad = torch.empty_like(parameter).copy_(grad)


def add_gradients(
    loss: Any, graphs: Any, phase: str, inputs: dict[str, torch.Tensor], sync: bool, gain: float
) -> torch.Tensor | None:
    """The loss's gradients of one round: by `graphs` where there are some and the loss can be recorded."""
    if graphs is None or not hasattr(loss, 'add_gradients'):
        return loss.accumulate_gradients(phase=phase, sync=sync, gain=gain, **inputs)
    depends_on = loss.begin(phase, len(inputs['real_img']))
    # Networks here are never wrapped in DDP, so that `sync` says nothing, and all rounds share a graph.
    work = functools.partial(loss.add_gradients, phase, sync=True, gain=gain)
    return work(**inputs) if depends_on is None else graphs.run((phase, gain, depends_on), work, inputs)


def update_ema(args: dnnlib.EasyDict, state: Any) -> None:
    """Moves G_ema's parameters. Its buffers are plain copies, made when somebody looks (`_finish_ema`)."""
    half_life = args.ema_kimg * 1000
    if args.ema_rampup is not None:
        half_life = min(half_life, (state.cur_nimg - state.start_nimg) * args.ema_rampup)
    decay = 0.5 ** (args.batch_size / max(half_life, 1e-8))
    average = torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
    average(list(state.G_ema.parameters()), [p.detach() for p in state.G.parameters()], 0)


def adapt_augmentation(args: dnnlib.EasyDict, state: Any) -> None:
    """ADA (Karras et al. 2020, section 3.1): nudges p so that the discriminator's mean sign on reals meets its aim."""
    assert state.ada_stats is not None and state.augment_pipe is not None, 'only called with both'
    p: Any = state.augment_pipe.p
    state.ada_stats.update()
    direction = np.sign(state.ada_stats['Loss/signs/real'] - args.ada_target)
    step = direction * args.batch_size * args.ada_interval / (args.ada_kimg * 1000)
    if np.isfinite(step):
        p.add_(float(step)).clamp_(min=0)
