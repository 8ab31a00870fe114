"""Real images into the latent space: x -> y = f(x) -> z = φ(y), back to x̃ = g(y), and how good all that is."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from lia_plugin import engine, host, prior, similarity
from lia_plugin.calibration import Calibration
from lia_plugin.networks import base_code
from lia_plugin.perceptual import Perceptual
from lia_plugin.targets import Target, stored_labels

# What each figure of an image is measured in; the order is that of tables.
UNITS = {
    'mse': 'mean squared difference, images in [-1, 1]',
    'psnr': 'dB, peak 2',
    'ssim': 'Gaussian window 11, sigma 1.5, data range 2',
    'lpips': 'LPIPS, VGG16 (vgg16.pt), at the network\'s resolution',
    'ms': 'milliseconds per image for x -> y, z and reconstruction, in one pass',
    'z_norm2': 'squared length of z; its mean under the prior is z_dim',
    'log_prob': 'log p(y), in nats',
    'typicality': 'two-sided p-value of z_norm2 under chi-square with z_dim degrees of freedom',
    'typicality_set': 'empirical two-sided p-value of z_norm2 among the images of the calibration',
    'p_distance': 'empirical p-value of a z at least as far from the codes of the calibration (Mahalanobis)',
    'phi_error': 'largest |y - phi_inverse(phi(y))|',
}
# With an optimisation there is more: its time, and the same figures of the state before it. That is the code that
# refinement starts from, and for tuning the refined code in the network as it was.
LIKENESS = ('mse', 'psnr', 'ssim', 'lpips')
STAGE_UNITS = {
    'seconds': 'seconds per image for the optimisation of codes; images in batches',
    **{f'start_{name}': f'{UNITS[name]}; before refinement'
       for name in (*LIKENESS, 'z_norm2', 'log_prob', 'typicality', 'typicality_set')},
    **{f'pivot_{name}': f'{UNITS[name]}; before tuning' for name in LIKENESS},
}
ALL_UNITS = {**UNITS, **STAGE_UNITS}


class InvertedBatch(NamedTuple):
    """Latents and reconstructions of N images, and figures per image by the names of UNITS.

    In a stock network, which has neither y nor z, these are None.
    """

    y: torch.Tensor | None  # [N, z_dim], the base code
    z: torch.Tensor | None  # [N, z_dim], of the base code
    ws: torch.Tensor  # [N, num_ws, w_dim]
    recon: torch.Tensor  # NCHW, float32, about [-1, 1]
    figures: dict[str, list[float]]  # N numbers each
    y_plus: torch.Tensor | None = None  # [N, num_ws, z_dim], if each layer has a code of its own
    noise: dict[str, torch.Tensor] | None = None  # Noise buffer's name -> [N, 1, R, R], if the images have their own
    earlier: tuple[torch.Tensor, ...] = ()  # Reconstructions before refinement, and before tuning


def check_invertible(G: Any, name: str) -> None:
    """Raises UserError, in one line that calls the network `name`, unless it has φ and an encoder."""
    if getattr(getattr(G, 'mapping', None), 'phi', None) is None:
        raise host.UserError(
            f'{name}: not a LIA network, it has no invertible mapping; train one with --cfg=lia, or let an '
            'optimisation find the codes: invert.py --refine=1000'
        )
    if getattr(G, 'encoder', None) is None:
        raise host.UserError(
            f'{name}: has no encoder, it comes from stage 1; train it with --stage=encoder --resume={name} first, or '
            'let an optimisation find the codes: invert.py --refine=1000'
        )


def class_labels(G: Any, index: int | None, count: int, device: torch.device | str) -> torch.Tensor | None:
    """One-hot labels [count, c_dim] of one class; None for a network without classes.

    Raises:
        UserError: a class is missing, not wanted, or out of range.
    """
    if G.c_dim == 0:
        if index is not None:
            raise host.UserError('--class: this network has no classes; leave the option out')
        return None
    if index is None or not 0 <= index < G.c_dim:
        got = 'none given' if index is None else f'got {index}'
        raise host.UserError(f'--class: this network needs one of its classes, 0 to {G.c_dim - 1}; {got}')
    return torch.nn.functional.one_hot(torch.full([count], index), G.c_dim).to(device, torch.float32)


def target_labels(G: Any, index: int | None, targets: Sequence[Target]) -> dict[str, torch.Tensor] | None:
    """Name of each target -> its label [c_dim]: of class `index`, or else of its dataset.json. None without classes.

    Raises:
        UserError: no class is to be had, or one that does not fit the network.
    """
    stored = stored_labels(targets) if G.c_dim > 0 and index is None else None
    if stored is None:
        c = class_labels(G, index, 1, 'cpu')
        return None if c is None else {target.name: c[0] for target in targets}
    return {target.name: label_row(G, stored[target.name], target.label) for target in targets}


def label_row(G: Any, label: int | list[float], name: str) -> torch.Tensor:
    """Class number -> one-hot [c_dim]; a vector is taken as it is."""
    if isinstance(label, list):
        if len(label) != G.c_dim:
            raise host.UserError(f'{name}: its label has {len(label)} numbers, but the network takes {G.c_dim}')
        return torch.tensor(label, dtype=torch.float32)
    if not 0 <= label < G.c_dim:
        raise host.UserError(f'{name}: is of class {label}, but the network has the classes 0 to {G.c_dim - 1}')
    return torch.nn.functional.one_hot(torch.tensor(label), G.c_dim).to(torch.float32)


@torch.no_grad()
def invert_images(
    G: Any,
    img: torch.Tensor,
    c: torch.Tensor | None = None,
    truncation_psi: float = 1,
    noise_mode: str = 'const',
    lpips: Perceptual | None = None,
    calibration: Calibration | None = None,
    space: str | None = None,
) -> InvertedBatch:
    """Inverts a batch of images NCHW in [-1, 1], labels c [N, c_dim] or None, with G's encoder.

    With `truncation_psi` below 1 the reconstruction is of the truncated code; y and z remain those of the image.
    space='y' gives all layers the base code where the encoder has one for each; None takes them as they are.
    """
    G = engine.of(G)
    start = now(img.device)
    y, z = G.invert(img, c)
    y = base_code(y) if space == 'y' else y
    ws = G.mapping.y_to_ws(y, c, truncation_psi)
    recon = G.synthesis(ws, noise_mode=noise_mode).to(torch.float32)
    elapsed = now(img.device) - start
    figures = compare_images(img, recon, lpips)
    figures['ms'] = [elapsed * 1000 / len(img)] * len(img)
    figures.update(code_figures(G, base_code(y), z, c, calibration))
    return InvertedBatch(base_code(y), z, ws, recon, figures, y if y.ndim == 3 else None)


def code_figures(
    G: Any, y: torch.Tensor, z: torch.Tensor, c: torch.Tensor | None, calibration: Calibration | None = None
) -> dict[str, list[float]]:
    """What the prior says of base codes y and z = φ(y), [N, z_dim] both."""
    figures = {'z_norm2': prior.squared_norm(z).tolist()}
    figures['log_prob'] = prior.log_prob(G, y, c).tolist()
    figures['typicality'] = prior.typicality(z).tolist()
    if calibration is not None:
        p_values = calibration.p_values(calibration.figures(z.cpu().numpy(), np.array(figures['log_prob'])))
        figures |= {name: p_values[name].tolist() for name in ('typicality_set', 'p_distance')}
    figures['phi_error'] = (G.mapping.z_to_y(z, c) - y).abs().amax(dim=1).tolist()
    return figures


def compare_images(img: torch.Tensor, recon: torch.Tensor, lpips: Perceptual | None = None) -> dict[str, list[float]]:
    """Figures of likeness per image, clipped to what a picture file holds, as metrics do.

    SSIM is left out below 11 pixels, LPIPS without an extractor.
    """
    img, recon = img.clamp(-1, 1), recon.clamp(-1, 1)
    figures = {'mse': similarity.mse(img, recon).tolist(), 'psnr': similarity.psnr(img, recon).tolist()}
    if min(img.shape[2:]) >= similarity.SSIM_WINDOW:
        figures['ssim'] = similarity.ssim(img, recon).tolist()
    if lpips is not None:
        figures['lpips'] = lpips.distance(img, recon).tolist()
    return figures


def now(device: torch.device) -> float:
    """Seconds, after the device has done all its work."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    elif device.type == 'mps':
        torch.mps.synchronize()
    return time.perf_counter()


def mean_figures(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean over images of each figure. A PSNR that is infinite (equal images) makes its mean infinite too."""
    return {name: math.fsum(row[name] for row in rows) / len(rows) for name in ALL_UNITS if rows and name in rows[0]}


def pick_device(name: str | None = None) -> torch.device:
    """The named device, or the best there is: CUDA, then Apple's MPS, then the CPU.

    Raises:
        UserError: no such device here.
    """
    if name is None:
        if torch.cuda.is_available():
            return torch.device('cuda')
        return torch.device('mps' if torch.backends.mps.is_available() else 'cpu')
    if name.startswith('mps') and not torch.backends.mps.is_available():
        raise host.UserError(f'--device={name}: this machine, or this PyTorch, has no MPS; cpu always can')
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).tolist()  # 'meta' makes tensors, but has no numbers.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else 'not available'
        raise host.UserError(f'--device={name}: cannot be used here ({reason}); cpu always can') from None
    return device
