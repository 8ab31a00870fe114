"""What `invert` does once its options are known: networks, batch after batch, and what is written at the end."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import click
import numpy as np
import torch

from lia_plugin import (
    calibration,
    cropping,
    delta,
    host,
    inversion,
    memory,
    perceptual,
    results,
    spaces,
    tuning,
    video,
)  # fmt: skip
from lia_plugin.initial_codes import StartingPoint, layered, read_codes
from lia_plugin.invert_options import InvertOptions
from lia_plugin.inverter import Inverter
from lia_plugin.network_hash import generator_hash
from lia_plugin.tally import Tally
from lia_plugin.target_batches import Group, Progress, read_batches, stack_images
from lia_plugin.targets import Target

CROPS = 8  # Crops of one picture that are judged at once, at least, where --batch says nothing.


class Done(NamedTuple):
    """A batch and what became of it, on the CPU."""

    group: Group
    c: torch.Tensor | None
    result: inversion.InvertedBatch

    @property
    def img(self) -> torch.Tensor:
        return stack_images(self.group)


# ---------------------------------------------------------------------------------------------------------------------
# Networks


def load_networks(network: str, device: torch.device, trust: bool, needs_encoder: bool = True) -> dict[str, Any]:
    """A snapshot's dict, its G_ema frozen and on the device.

    Raises:
        UserError: there is none, or one that can't invert images by itself if `needs_encoder`.
    """
    contents = host.load_network_pkl(network, trust=trust)
    G = contents.get('G_ema')
    if G is None:
        raise host.UserError(f'{network}: holds no generator (G_ema)')
    if needs_encoder:
        inversion.check_invertible(G, network)
    return {**contents, 'G_ema': G.eval().requires_grad_(False).to(device)}


def load_lpips(source: str | None, device: torch.device) -> tuple[perceptual.Perceptual | None, str | None]:
    """The extractor and its name; (None, None) if it is unwanted, or not asked for and not in the cache."""
    if source == 'none':
        return None, None
    found = source or perceptual.cached_vgg16()
    if found is None:
        return None, None
    try:
        return perceptual.VGG16Features(found).to(device), found
    except host.UserError as error:
        raise host.UserError(f'{error}; or do without it: --lpips=none') from None


def load_calibration(source: str | None, network: str, G: Any) -> calibration.Calibration | None:
    """The calibration named, or the one beside the network; None if it is unwanted, or not named and not there."""
    if source == 'none' or (source is None and not spaces.has_prior(G)):
        return None
    found = source or calibration.beside(network)
    if found is None:
        return None
    try:
        return calibration.load(found, G)
    except host.UserError as error:
        raise host.UserError(f'--calibration: {error}; or do without it: --calibration=none') from None


def load_percep(asked: InvertOptions, D: Any, device: torch.device) -> tuple[perceptual.Perceptual | None, str]:
    """ε of the optimisation's loss and its name; what is not asked for is D's features, where there is a D."""
    if not asked.optimises:
        return None, 'none'
    name = asked.percep or ('disc' if D is not None else 'none')
    if name == 'disc':
        if D is None:
            raise host.UserError(f'--percep=disc: {asked.network}: holds no discriminator; another one or none will do')
        return perceptual.DiscriminatorFeatures(D).to(device), name
    if name == 'none' and asked.percep_weight:
        raise host.UserError(f'--percep-weight: {asked.network}: holds no discriminator; say whose features: --percep')
    given = asked.lpips_source not in (None, 'none')
    vgg16 = asked.lpips_source if given else perceptual.cached_vgg16()
    return perceptual.make_perceptual(name, device=device, vgg16=vgg16 or perceptual.VGG16_URL), name


# ---------------------------------------------------------------------------------------------------------------------
# The job


class Job:
    """One call of the command: everything is loaded and checked by the constructor, `run` does the work."""

    def __init__(
        self, asked: InvertOptions, items: Sequence[Target], device: torch.device, mine: Sequence[int] | None = None
    ) -> None:
        """`mine` are places of the items that `run` inverts, where processes share them. None = all."""
        self.asked, self.items, self.device = asked, items, device
        self.mine = list(items) if mine is None else [items[place] for place in mine]
        self.kept: list[Done] = []  # What waits for the tuning.
        if asked.tune_save == 'delta' or asked.delta is not None:
            delta.load_safetensors()
        by_encoder = asked.refine is None and asked.init in (None, 'encoder')
        self.contents = load_networks(asked.network, device, asked.trust_pickle, needs_encoder=by_encoder)
        self.G = self.contents['G_ema']
        asked.check_network(self.G)
        if asked.delta is not None:
            delta.apply_delta(self.G, asked.delta, asked.network)
        self.start = asked.start(self.G)
        init, space = self._read_start()
        # w of a stock network needs no label: its synthesis knows no classes.
        self.labels = inversion.target_labels(self.G, asked.class_idx, items) if spaces.has_prior(self.G) else None
        self.lpips, self.lpips_name = load_lpips(asked.lpips_source, device)
        self.percep, self.percep_name = load_percep(asked, self.contents.get('D'), device)
        if asked.save_video not in (None, 'auto'):
            video.check_format(asked.save_video)
        self.cropper = cropping.open_cropper(
            self.G, self.labels, asked.align, asked.checks_alignment(self.G), asked.batch or CROPS, items)
        self.settings = asked.refine_settings(space, self.percep_name, self.start)
        self.tune_settings = asked.tune_settings(self.percep_name)
        self.inverter = Inverter(
            self.G, space, init, self.settings, self.percep, self.lpips,
            load_calibration(asked.calibration_file, asked.network, self.G), asked.trunc, asked.noise_mode,
        )  # fmt: skip
        self.writer = self.open_writer()

    def open_writer(self) -> results.InversionWriter:
        """One that knows of no image yet."""
        single = len(self.items) == 1
        return results.InversionWriter(self.asked.outdir, single, self.captions(), generator_hash(self.G))

    def _read_start(self) -> tuple[str | dict[str, StartingPoint], str]:
        """Where codes start, those of a file by their images' names; and the space that they are looked for in."""
        if self.start in ('encoder', 'mean'):
            return self.start, self.asked.chosen_space(self.G)
        codes = read_codes(self.start, self.G, [item.name for item in self.items])
        has_layers = layered(codes)
        space = self.asked.chosen_space(self.G, has_layers)
        if has_layers and space != 'y+':
            click.echo(f'--init={self.start}: has a code for each layer; --space={space} takes its base code (layer 0) '
                       'alone', err=True)  # fmt: skip
        return codes, space

    def captions(self) -> list[str]:
        """What stands above the pictures of one image."""
        start = self.start if self.start in ('encoder', 'mean') else 'start'
        stages = ['original']
        if self.settings is not None:
            stages += [start, 'refined']
        else:
            stages.append('reconstruction')
        return [*stages, 'tuned'] if self.asked.tune is not None else stages

    def run(self) -> None:
        """Inverts this process's images and writes what comes of it."""
        self.places = {item.name: i for i, item in enumerate(self.items)}
        self.batch = self._set_up()
        tally = Tally() if host.world_size() > 1 else None
        with self.writer, Progress(len(self.items), self.asked.refine, tally) as progress:
            for group in read_batches(self.mine, self.batch, self.cropper, self.writer, progress):
                for done in self._in_parts(group, progress):
                    if self.tune_settings is None:
                        self.writer.add(done.group, done.result, done.c)
                    else:
                        self.kept.append(done)
            progress.wait()
            if tally is None:
                self.tune(self.kept)

    def _set_up(self) -> int:
        """Passes one image through the networks. Gives the number of images at once: as asked for, or as fit."""
        img = torch.zeros([1, self.G.img_channels, self.G.img_resolution, self.G.img_resolution], device=self.device)
        name = self.items[0].name
        c = None if self.labels is None else self.labels[name][None].to(self.device)
        count = len(self.mine)
        try:
            if self.asked.batch is None and count > 1:
                work = functools.partial(self.inverter.rehearse, img, c, [name])
                sharers = host.processes_here(host.world_size()) if self.device.type == 'cpu' else 1
                return min(memory.batch_size(self.device, work, sharers=sharers), count)
            self.inverter.rehearse(img, c, [name], steps=0)
        except Exception as error:
            if memory.is_out_of_memory(error):
                raise self._no_memory() from error
            raise
        return self.asked.batch or 1

    def _no_memory(self) -> Exception:
        return host.UserError(f'{self.asked.network}: not enough memory on {self.device} for one image')

    def _in_parts(self, group: Group, progress: Progress) -> Iterator[Done]:
        """Inverts a group, in smaller ones where memory is not enough for it. The next groups are told so, too."""
        first = 0
        while first < len(group):
            part = group[first : first + self.batch]
            try:
                done = self._invert(part, progress)
            except Exception as error:
                if not memory.is_out_of_memory(error):
                    raise
                if len(part) == 1:
                    raise self._no_memory() from error
                self.batch = len(part) // 2
            else:
                first += len(part)
                yield done
                continue
            memory.release(self.device)  # Out of `except`, whose error holds what there was.
            click.echo(f'not enough memory on {self.device} for {len(part)} images at once; going on with {self.batch}',
                       err=True)  # fmt: skip

    def _invert(self, group: Group, progress: Progress) -> Done:
        img = stack_images(group).to(self.device)
        names = [target.name for target, _ in group]
        c = None if self.labels is None else torch.stack([self.labels[name] for name in names])
        there = None if c is None else c.to(self.device)
        # By the first image, not by what was drawn before: the same noise whoever inverts the batch.
        words = np.random.SeedSequence([self.asked.seed, self.places[names[0]]]).generate_state(1)
        torch.manual_seed(int(words[0]))
        recorder = video.Recorder(img, self.asked.refine or 0) if self.asked.save_video else None

        def callback(step: int, losses: torch.Tensor, recon: torch.Tensor) -> None:
            progress.step(len(group), step)
            if recorder is not None:
                recorder(step, losses, recon)

        result = self.inverter(img, there, names, callback)
        progress.done(len(group))
        if recorder is not None:
            self._save_videos(names, recorder)
        return Done(group, c, on_cpu(result))

    def _save_videos(self, names: Sequence[str], recorder: video.Recorder) -> None:
        kind = self.asked.save_video if self.asked.save_video in video.FORMATS else video.best_format()
        os.makedirs(self.asked.outdir, exist_ok=True)
        for i, name in enumerate(names):
            video.save_video(os.path.join(self.asked.outdir, f'{name}_refine.{kind}'), recorder.frames(i))

    def tune(self, kept: Sequence[Done]) -> None:
        """Tunes the generator for all images, saves it, and writes the images as it draws them."""
        if not kept:
            return
        from tqdm import tqdm

        assert self.tune_settings is not None, 'or nothing would have been kept'
        labels = [done.c for done in kept if done.c is not None]
        noises = [done.result.noise for done in kept if done.result.noise is not None]
        noise = {name: torch.cat([part[name] for part in noises]) for name in noises[0]} if noises else None
        with tqdm(total=self.tune_settings.steps, desc='Tuning', unit='step', disable=None) as bar:

            def callback(_step: int, loss: float) -> None:
                bar.update()
                bar.set_postfix(loss=f'{loss:.4f}')

            tuned = tuning.tune(
                self.G, torch.cat([done.img for done in kept]), torch.cat([done.result.ws for done in kept]),
                torch.cat(labels) if labels else None, noise,
                settings=self.tune_settings, percep=self.percep, callback=callback,
            )  # fmt: skip
        for done in kept:
            result = on_device(done.result, self.device)
            self.writer.add(done.group, on_cpu(self.inverter.retell(tuned, done.img.to(self.device), result)), done.c)
        self._save_tuned(tuned)

    def _save_tuned(self, tuned: Any) -> None:
        path = os.path.join(self.asked.outdir, self.tuned_name())
        if self.asked.tune_save == 'delta':
            delta.save_delta(path, self.G, tuned, self.asked.network)
        else:
            tuned = tuned.cpu()
            host.save_network_pkl(path, {**self.contents, 'G': tuned, 'G_ema': tuned})

    def tuned_name(self) -> str:
        return 'tuned.safetensors' if self.asked.tune_save == 'delta' else 'tuned.pkl'

    def finish(self) -> None:
        """Writes results.json and the overview, and prints the table."""
        asked, G = self.asked, self.G
        facts: dict[str, Any] = dict(
            network=asked.network, resolution=G.img_resolution, channels=G.img_channels, z_dim=G.z_dim,
            trunc=asked.trunc, noise_mode=asked.noise_mode, seed=asked.seed, class_idx=asked.class_idx,
            lpips=self.lpips_name, space=self.inverter.space, init=self.start,
        )  # fmt: skip
        if asked.precision is not None:
            facts['precision'] = asked.precision
        usual = self.inverter.calibration
        facts['calibration'] = None if usual is None else dict(data=usual.data, n=usual.n)
        if asked.optimises:
            facts['percep'] = self.percep_name
        if self.settings is not None:
            facts['refine'] = {**dataclasses.asdict(self.settings), 'batch': self.batch}
        if self.tune_settings is not None:
            facts['tune'] = {**dataclasses.asdict(self.tune_settings), 'file': self.tuned_name()}
        if asked.delta is not None:
            facts['delta'] = asked.delta
        facts['align'] = asked.align
        far = self.cropper.far(self.writer.entries)
        facts.update(far_from_alignment=list(far), alignment_checked=len(self.cropper.gains))
        self.writer.finish({**facts, 'device': str(self.device)})
        print(results.format_table(self.writer.names, self.writer.rows))
        size, where = f'{G.img_resolution}x{G.img_resolution}', click.format_filename(asked.outdir)
        print(f'n = {len(self.writer.rows)}, {size}, images in [-1, 1]; written to {where}')
        cropping.tell_far(far, len(self.cropper.gains), len(self.writer.rows))
        self._say()

    def _say(self) -> None:
        """What a reader of the table should know."""
        if not spaces.has_prior(self.G):
            click.echo('no φ in this network: --space=y is its w, and there is neither z nor log p', err=True)
        if self.lpips is None and self.asked.lpips_source is None:
            click.echo(f'LPIPS left out: --lpips={perceptual.VGG16_URL} fetches its weights', err=True)


def on_device(batch: inversion.InvertedBatch, device: torch.device | str) -> inversion.InvertedBatch:
    """The same batch, all its tensors on a device."""

    def move(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device)
        if isinstance(value, tuple):
            return tuple(move(part) for part in value)
        return value

    moved = inversion.InvertedBatch(*(move(value) for value in batch))
    if batch.noise is None:
        return moved
    return moved._replace(noise={name: value.to(device) for name, value in batch.noise.items()})


def on_cpu(batch: inversion.InvertedBatch) -> inversion.InvertedBatch:
    return on_device(batch, 'cpu')
