"""What each part of stage 2's recipe gives: encoders trained for equal CPU time, judged on held-out images.

    python benchmarks/recipes.py --network=stage1.pkl --data=faces32.zip --val=0.1 --seconds=60 --threads=1

Everything is the project's own: options, configuration, start, loss and optimiser are those of `train.py`; only the
loop is this file's, for it ends after so many seconds of CPU time, start included, instead of so many images. Schedules
follow the time. Prints a table, and adds it to `--out`. On a busy machine recipes see more or fewer images in the same
CPU time: read the column kimg too.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
import time
from typing import Any

import numpy as np
import torch

import dnnlib
from lia_plugin import config, images, planning, prior, stages
from lia_plugin.networks import base_code
from lia_plugin.options import Options

# Each recipe differs from the default by what its name says.
RECIPES: dict[str, dict[str, Any]] = {
    'default': {},
    'the head alone begins fitted': dict(enc_start='head'),
    'random start': dict(enc_start='random'),
    'no prior': dict(enc_prior=0.0),
    'constant learning rate': dict(enc_schedule='constant'),
    'learning rate / 4': dict(scale_lr=0.25),
    'no momentum': dict(betas=(0.0, 0.99)),
    "D's features 0.03": dict(percep='disc', enc_percep=0.03),
    "D's features 0.1": dict(percep='disc', enc_percep=0.1),
    "D's judgement 0.02 late": dict(enc_adv=0.02, enc_adv_start=0.5),
    "D's judgement 0.02 from the start": dict(enc_adv=0.02, enc_adv_start=0.0),
    'a quarter of generated images': dict(enc_mix=0.25),
    '… with their codes supervised at 0.02': dict(enc_mix=0.25, enc_latent=0.02),
    'two answers': dict(enc_iters=2),
    'y+': dict(enc_space='y+'),
    'towards z': dict(enc_space='z'),
    "the paper's weights and rate without VGG16": dict(enc_loss='paper', percep='none'),
    'the default before this one': dict(
        enc_start='random', enc_schedule='constant', enc_lr=3e-3, betas=(0.0, 0.99), percep='disc', enc_percep=0.1,
        enc_prior=0.0),
}  # fmt: skip
EMA_SHARE = 0.05  # Half-life of the weights' average, as a share of the images of a run, as train.py has it.


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--network', required=True, help='Snapshot of stage 1')
    parser.add_argument('--data', required=True, help='Data set of which a share is held out')
    parser.add_argument('--val', default='0.1', help='The share held out [0.1]')
    parser.add_argument('--seconds', type=float, default=60, help='CPU time for each recipe [60]')
    parser.add_argument('--recipes', help='Their names, with commas [all]')
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--num', type=int, default=600, help='Held-out images to judge on [600]')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--out', help='Markdown file to add the table to')
    return parser.parse_args()


def load_images(kwargs: dict[str, Any], count: int | None = None) -> torch.Tensor:
    """Pixels of a data set, uint8 NCHW."""
    data = dnnlib.util.construct_class_by_name(**{**kwargs, 'xflip': False})
    count = len(data) if count is None else min(count, len(data))
    return torch.from_numpy(np.stack([data[i][0] for i in range(count)]))


class Trial:
    """One recipe: networks, loss and optimiser as train.py would make them."""

    def __init__(self, args: argparse.Namespace, changes: dict[str, Any]) -> None:
        changes = dict(changes)
        scale, betas = changes.pop('scale_lr', 1.0), changes.pop('betas', None)
        said = Options(data=args.data, val=args.val, stage='encoder', resume=args.network, batch=args.batch,
                       device='cpu', metrics='none', enc_kimg=1, seed=args.seed, **changes)  # fmt: skip
        plan = planning.plan(said, dry=True)
        self.stage = stage = plan['encoder']
        common = {k: plan['data'][v] for k, v in dict(
            c_dim='label_dim', img_resolution='resolution', img_channels='num_channels').items()}  # fmt: skip
        self.began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            init = os.path.join(folder, 'init.pkl')
            stages.prepare_encoder_stage(args.network, init, stage['G_kwargs']['encoder_kwargs'], seed=args.seed,
                                         start=plan['encoder_start'])  # fmt: skip
            data = planning.host.load_network_pkl(init)
            self.G = copy.deepcopy(data['G']).train().requires_grad_(False)
            self.D = copy.deepcopy(data['D']).train().requires_grad_(False)
            loss = dict(stage['loss_kwargs'], percep_network=init if stage['loss_kwargs']['percep'] == 'disc' else None)
            self.loss = dnnlib.util.construct_class_by_name(device=torch.device('cpu'), G=self.G, D=self.D, **loss)
        self.ema = copy.deepcopy(self.G).eval()
        assert common['img_resolution'] == self.G.img_resolution
        G_opt, D_opt = (dict(stage[key]) for key in ('G_opt_kwargs', 'D_opt_kwargs'))
        G_opt['lr'] *= scale
        G_opt['betas'] = betas or tuple(G_opt['betas'])
        every = stage['D_reg_interval']
        share = 1.0 if every is None else every / (every + 1)  # Lazy regularisation slows it, as in the loop.
        D_opt.update(lr=D_opt['lr'] * share, betas=tuple(beta**share for beta in D_opt['betas']))
        self.opt = dnnlib.util.construct_class_by_name(self.G.encoder.parameters(), **{**G_opt, **self._length(G_opt)})
        self.D_opt = dnnlib.util.construct_class_by_name(self.D.parameters(), **{**D_opt, **self._length(D_opt)})

    @staticmethod
    def _length(kwargs: dict[str, Any]) -> dict[str, int]:
        return dict(total_steps=1000) if 'total_steps' in kwargs else {}

    def set_progress(self, share: float) -> None:
        """Where the schedules of loss and optimisers stand."""
        self.loss.shown = share * self.loss.total_kimg * 1000
        for group in (*self.opt.param_groups, *self.D_opt.param_groups):
            if 'steps' in group:
                group['steps'] = round(share * 1000)

    def phase(
        self, name: str, module: torch.nn.Module, opt: torch.optim.Optimizer, batch: dict[str, Any], gain: float = 1
    ) -> None:
        opt.zero_grad(set_to_none=True)
        module.requires_grad_(True)
        value = self.loss.accumulate_gradients(phase=name, gain=gain, **batch)
        module.requires_grad_(False)
        if value is not None:
            opt.step()


def train(trial: Trial, pixels: torch.Tensor, args: argparse.Namespace) -> int:
    """Trains for the CPU time that is left; gives the number of images seen."""
    stream = torch.Generator().manual_seed(args.seed)
    labels = torch.zeros([args.batch, 0])
    seen = step = 0
    ready = time.process_time()
    left = args.seconds - (ready - trial.began)  # The start has taken its part; schedules begin now.
    if left <= 0:
        raise SystemExit(f'--seconds: {args.seconds:g} is less than the start alone took, {ready - trial.began:.1f}')
    while (share := (time.process_time() - ready) / left) < 1:
        trial.set_progress(share)
        img = pixels[torch.randint(len(pixels), [args.batch], generator=stream)]
        mirrored = torch.rand([args.batch, 1, 1, 1], generator=stream) < 0.5
        img = images.to_float(torch.where(mirrored, img.flip(3), img))
        z = torch.randn([args.batch, trial.G.z_dim], generator=stream)
        batch = dict(real_img=img, real_c=labels, gen_z=z, gen_c=labels)
        trial.phase('Gboth', trial.G, trial.opt, batch)
        every = trial.stage['D_reg_interval']
        trial.phase('Dboth' if every is None else 'Dmain', trial.D, trial.D_opt, batch)
        if every is not None and step % every == 0:
            trial.phase('Dreg', trial.D, trial.D_opt, batch, gain=every)
        seen, step = seen + args.batch, step + 1
        decay = 0.5 ** (args.batch / max(EMA_SHARE * seen / max(share, 1e-3), 1e-8)) if share > 0.1 else 0.0
        with torch.no_grad():
            for average, p in zip(trial.ema.parameters(), trial.G.parameters(), strict=True):
                average.lerp_(p, 1 - decay)
            for average, b in zip(trial.ema.buffers(), trial.G.buffers(), strict=True):
                average.copy_(b)
    return seen


@torch.no_grad()
def judge(G: Any, pixels: torch.Tensor) -> dict[str, float]:
    """Errors of reconstructions, of the base code's too, and ‖z‖² in units of its mean under the prior."""
    sums = dict(mse=0.0, base=0.0, length=0.0)
    for part in pixels.split(50):
        img = images.to_float(part)
        y = G.encode(img)
        for name, code in (('mse', y), ('base', base_code(y))):
            recon = G.decode(code, noise_mode='const').clamp(-1, 1)
            sums[name] += float((recon - img).square().mean(dim=[1, 2, 3]).sum())
        sums['length'] += float(prior.squared_norm(G.mapping.y_to_z(base_code(y))).sum()) / G.z_dim
    return {name: value / len(pixels) for name, value in sums.items()}


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    names = [name.strip() for name in args.recipes.split(',')] if args.recipes else list(RECIPES)
    info = planning.describe_data(Options(data=args.data, val=args.val))
    said = Options(data=args.data, val=args.val, seed=args.seed)
    held_out = config.val_set_kwargs(said, info)
    assert held_out is not None, '--val names a share'
    pixels, judged = load_images(config.training_set_kwargs(said, info)), load_images(held_out, args.num)
    lines = [f'| recipe ({args.seconds:g} s of CPU time each) | kimg | held-out MSE | of the base code | ‖z‖² / d |',
             '|---|---|---|---|---|']  # fmt: skip
    print('\n'.join(lines), flush=True)
    for name in names:
        torch.manual_seed(args.seed)
        trial = Trial(args, RECIPES[name])
        seen = train(trial, pixels, args)
        found = judge(trial.ema, judged)
        base = f'{found["base"]:.4f}' if abs(found['base'] - found['mse']) > 1e-9 else ''
        lines.append(f'| {name} | {seen / 1000:.1f} | {found["mse"]:.4f} | {base} | {found["length"]:.1f} |')
        print(lines[-1], flush=True)
    if args.out:
        with open(args.out, 'a', encoding='utf-8') as file:
            file.write('\n'.join(lines) + '\n')


if __name__ == '__main__':
    main()
