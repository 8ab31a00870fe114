"""Networks in the form that model hubs take: safetensors, config.json and a model card, and no pickle."""

from __future__ import annotations

import json
import os
from typing import Any

import click
import torch

from lia_plugin import host
from lia_plugin.outputs import check_new_folder, check_output

CARD = 'README.md'
TAGS = ('gan',)
LIA_TAGS = ('gan-inversion', 'lia', 'invertible')


def to_folder(network: str, outdir: str, license_name: str = 'other', title: str | None = None,
              trust: bool = False) -> list[str]:
    """Writes `network` (pickle, URL or folder) as the new folder `outdir`. Returns what had to be left out.

    Raises UserError if `network` can't be read, or `outdir` can't be made, or exists and isn't empty.
    """
    folders = host.network_folders()
    check_new_folder('--outdir', outdir)
    place = os.path.abspath(outdir)  # Of '', too.
    data = host.load_network_pkl(network, trust=trust)
    return folders.save(place, data, {CARD: model_card(data, headline(title, place), license_name)})


def to_pickle(network: str, path: str, trust: bool = False) -> None:
    """Writes `network` (an exported folder, or a pickle) as the network pickle `path`, which NVIDIA's tools open."""
    host.network_folders()
    check_output('--to-pickle', path, folder=False, makes_folders=True)
    data = host.load_network_pkl(network, trust=trust)
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    host.save_network_pkl(path, data)


def headline(title: str | None, folder: str) -> str:
    """What the card is headed by: a title, or else the folder's name, in UTF-8 whatever they are in."""
    return click.format_filename(title or os.path.basename(folder) or folder)


def card_license(network: str) -> str | None:
    """The licence that the card of an exported folder names; None if `network` is none, or its card names none."""
    try:
        with open(os.path.join(network, CARD), encoding='utf-8') as file:
            head = file.read().split('---')[1]
        return next((str(json.loads(line.split(':', 1)[1])) for line in head.splitlines()
                     if line.startswith('license:')), None)  # fmt: skip
    except (OSError, ValueError, IndexError):
        return None


def model_card(data: dict[str, Any], title: str, license_name: str) -> str:
    """README.md: metadata that hubs read, what the networks are, and how to use them."""
    G = data['G_ema']
    is_lia = getattr(G.mapping, 'phi', None) is not None
    tags = [*TAGS, 'stylegan3' if _is_alias_free(G) else 'stylegan2', *(LIA_TAGS if is_lia else ())]
    # JSON is YAML, too, with quotes wherever they are needed.
    head = ['---', f'license: {json.dumps(license_name)}', 'library_name: lia-plugin',
            'pipeline_tag: unconditional-image-generation', 'tags:', *(f'- {tag}' for tag in tags), '---']
    body = [f'# {_plain(title)}', '', _summary(G, is_lia), '', *_facts(data, is_lia), '', *_usage(G)]
    return '\n'.join([*head, '', *body, ''])


def _summary(G: Any, is_lia: bool) -> str:
    size = f'{G.img_resolution}×{G.img_resolution}'
    if not is_lia:
        return f'A {"StyleGAN3" if _is_alias_free(G) else "StyleGAN2"} generator of {size} images.'
    text = (f'A generator of {size} images with an invertible mapping φ, after "Disentangled Inference for GANs with '
            'Latently Invertible Autoencoder" (Zhu et al., arXiv 1906.08090).')
    return text + (' Its encoder finds the latents y and z of real images.' if G.encoder is not None else '')


def _is_alias_free(G: Any) -> bool:
    return hasattr(G.synthesis, 'input')


def _facts(data: dict[str, Any], is_lia: bool) -> list[str]:
    G = data['G_ema']
    rows = {
        'resolution, channels': f'{G.img_resolution}×{G.img_resolution}, {G.img_channels}',
        'z, w, labels': f'{G.z_dim}, {G.w_dim}, {G.c_dim or "none"}',
        'networks': ', '.join(f'{key} ({_count(net):,} weights)' for key, net in data.items()
                              if isinstance(net, torch.nn.Module)),
    }
    if is_lia:
        rows['encoder'] = 'none' if G.encoder is None else f'{G.encoder.arch}, to {G.encoder.space}'
    return ['| | |', '| --- | --- |', *(f'| {key} | {value} |' for key, value in rows.items())]


def _usage(G: Any) -> list[str]:
    lines = ['## Use', '', '    python -m lia_plugin calc_metrics --network=FOLDER']
    if getattr(G, 'encoder', None) is not None:
        lines.append('    python -m lia_plugin invert --network=FOLDER --target=IMAGES')
    hosts = 'stylegan3 opens' if _is_alias_free(G) else 'stylegan2-ada-pytorch and stylegan3 open'
    return [*lines, '    python -m lia_plugin export --network=FOLDER --to-pickle=network.pkl', '',
            f'The last line gives the network pickle that {hosts}.', '',
            '## To be added', '', 'What the networks were trained on, what they are good and not good for.']


def _count(net: torch.nn.Module) -> int:
    return sum(tensor.numel() for tensor in net.state_dict().values())


def _plain(title: str) -> str:
    return ' '.join(title.split())
