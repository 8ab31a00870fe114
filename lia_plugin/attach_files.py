"""From a network pickle to one with φ attached, its report beside it: what `attach` and `train.py` both do."""

from __future__ import annotations

import dataclasses
import os
import time
from typing import Any

import torch

from lia_plugin import attach, attach_report, host, images
from lia_plugin.phi_fit import Fit, OldMapping
from lia_plugin.results import save_json

PICTURES = 1000  # Default number of pictures that the report compares.


def attach_file(
    network: str,
    out: str,
    mode: str = 'replace',
    fit: Fit | None = None,  # None = the defaults.
    data: str | None = None,  # Data set whose label vectors to draw.
    detector: str | None = 'random:0',  # Feature network of the Fréchet distance. None = leave it out.
    num: int = PICTURES,
    device: torch.device | str = 'cpu',
    trust: bool = False,
) -> dict[str, Any]:
    """Writes `out`, and beside it the report as .json and a sheet of pictures as .png; gives the report.

    Raises UserError, one line, before anything is written: for a file that is no plain StyleGAN generator, labels that
    nobody knows, or a detector that can't be had.
    """
    start = time.time()
    fit = fit or Fit()
    content = host.load_network_pkl(network, trust=trust)
    before = content['G_ema']
    attach.check_network(before, network)
    labels, note = attach.choose_labels(before, data, content.get('training_set_kwargs'))
    looked = mode == 'replace' and detector is not None
    found = host.feature_detector(detector, device) if looked and detector is not None else None
    result, fitted = attach.attach(content, network, labels, mode, fit, device)
    report: dict[str, Any] = dict(
        network=network, mode=mode, labels=note or None, **_facts(content, result), fit=dataclasses.asdict(fit)
    )
    report['fit_seconds'] = round(time.time() - start, 1)
    G = result['G_ema'].to(device)
    if fitted is None:
        old = OldMapping(before.mapping, labels, device, fit.seed)
        report.update(attach_report.check_front(G, before.to(device), old, min(num, 64)))
    else:
        old = fitted.samples.old
        report.update(log_p=fitted.learned, log_p_gaussian=fitted.gaussian, log_p_start=fitted.start)
        report.update(attach_report.latents(G, fitted, num))
        if found is not None:
            report.update(attach_report.distances(G, old, found[0], num), detector=found[1])
    sheet = attach_report.sheet(G, old)
    G.cpu()
    report['seconds'] = round(time.time() - start, 1)
    stem = os.path.splitext(out)[0]
    images.save_png(sheet, f'{stem}.png')
    save_json(f'{stem}.json', report)
    host.save_network_pkl(out, result)  # The last one: where it is, the others are, too.
    return report


def _facts(content: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """What became of the parts of the file."""
    G, before = result['G_ema'], content['G_ema']
    return dict(
        z_dim=G.z_dim, z_dim_before=before.z_dim, w_dim=G.w_dim, c_dim=G.c_dim,
        has_G=content.get('G') is not None, has_D=content.get('D') is not None,
    )  # fmt: skip


def notes(report: dict[str, Any]) -> list[str]:
    """What people should know of the result, one line each."""
    told = []
    if report['labels']:
        told.append(f'labels: {report["labels"]}')
    if report['z_dim'] != report['z_dim_before']:
        told.append(f'z has {report["z_dim"]} dimensions now, as w has; it had {report["z_dim_before"]}')
    if not report['has_G']:
        told.append('no G in the file: G is a copy of G_ema')
    elif report['mode'] == 'replace':
        told.append('φ is fitted to G_ema; G gets the same one and keeps its own synthesis network')
    if not report['has_D']:
        told.append('no D in the file: stage 2 will make a new one and do without its features')
    return told
