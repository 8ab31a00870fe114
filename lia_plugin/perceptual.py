"""ε: how different two images look. One interface over two feature extractors.

`features(img)` gives what an image is compared by, `compare` takes two such lists, and calling the module does both:
images NCHW float in [-1, 1] twice -> distances [N]. All of it is differentiable with respect to the images; the
extractors themselves are frozen.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from lia_plugin import host
from lia_plugin.images import to_vgg_range, with_channels

VGG16_URL = 'https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/vgg16.pt'
VGG16_WIDTHS = (64, 128, 256, 512, 512)  # Channels in each of the five groups of convolutions …
VGG16_DEPTHS = (2, 2, 3, 3, 3)  # … and how many convolutions each group has.

# What VGG16 ports subtract from and divide [0, 255] images by: (means, deviations, whether channels are reversed).
VGG16_INPUTS: dict[str, tuple[Sequence[float], Sequence[float], bool]] = {
    'torchvision': ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), False),
    'torchvision, unscaled': ((123.675, 116.28, 103.53), (1, 1, 1), False),
    'Caffe, RGB': ((123.68, 116.779, 103.939), (1, 1, 1), False),
    'Caffe, BGR': ((103.939, 116.779, 123.68), (1, 1, 1), True),
    '[-1, 1]': ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5), False),
    '[0, 1]': ((0, 0, 0), (255, 255, 255), False),
    '[0, 255]': ((0, 0, 0), (1, 1, 1), False),
}


class Perceptual(torch.nn.Module):
    """What both extractors share."""

    def features(self, img: torch.Tensor) -> list[torch.Tensor]:
        """NCHW in [-1, 1] -> feature tensors with N as their first dimension."""
        raise NotImplementedError

    def compare(self, a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> torch.Tensor:
        """Two lists from `features` -> distances [N]."""
        raise NotImplementedError

    def distance(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Two batches of images -> distances [N]."""
        return self.compare(self.features(a), self.features(b))

    forward = distance


def make_perceptual(
    name: str,
    network: str | None = None,
    device: torch.device | str = 'cpu',
    vgg16: str = VGG16_URL,
) -> Perceptual | None:
    """The extractor that `--percep` names: 'disc', 'vgg16', 'vgg16-conv4_3', or 'none' -> None.

    Args:
        network: Pickle (path or URL) whose D gives the features of 'disc'.
        vgg16: Path or URL of NVIDIA's TorchScript file for the other two.

    Raises:
        UserError: unknown name, or a file that is missing, foreign or can't be downloaded.
    """
    if name == 'none':
        return None
    if name == 'disc':
        if network is None:
            raise ValueError("percep_network: percep='disc' needs the pickle whose D gives the features")
        return DiscriminatorFeatures(host.load_network_pkl(network)['D'], exact=False).to(device)
    if name in ('vgg16', 'vgg16-conv4_3'):
        mode = 'conv4_3' if name.endswith('conv4_3') else 'lpips'
        try:
            return VGG16Features(vgg16, mode).to(device)
        except host.UserError as error:
            raise host.UserError(f'{error}; or do without it: --percep=disc') from None
    raise host.UserError(f"--percep: 'disc', 'vgg16', 'vgg16-conv4_3' or 'none', not {name!r}")


class DiscriminatorFeatures(Perceptual):
    """Activations after each block of a host's discriminator, compared as LPIPS compares VGG's.

    Each position's feature vector is brought to length 1; squared differences are summed over channels, averaged
    over positions, and summed over blocks with `block_weights` (highest resolution first; None = 1 each). The
    discriminator is copied and frozen, so training the original changes nothing here. No labels are needed:
    they enter only behind the blocks. `exact`: in float32 whatever was chosen; else in bfloat16 if that was.
    """

    def __init__(self, D: Any, block_weights: Sequence[float] | None = None, exact: bool = True) -> None:
        super().__init__()
        self.exact = exact
        D = getattr(D, 'module', D)  # Out of DistributedDataParallel.
        resolutions = [int(res) for res in D.block_resolutions]
        weights = [1.0] * len(resolutions) if block_weights is None else [float(w) for w in block_weights]
        if len(weights) != len(resolutions):
            raise ValueError(f'block_weights: expected {len(resolutions)} for {resolutions}, got {len(weights)}')
        # Blocks behind the last one that counts are not run.
        self.num_blocks = max((i + 1 for i, weight in enumerate(weights) if weight), default=0)
        if self.num_blocks == 0:
            raise ValueError('block_weights: all are zero')
        self.weights = weights
        used = resolutions[: self.num_blocks]
        self.blocks = torch.nn.ModuleList(copy.deepcopy(getattr(D, f'b{res}')) for res in used)
        self.eval().requires_grad_(False)

    def features(self, img: torch.Tensor) -> list[torch.Tensor]:
        maps: list[torch.Tensor] = []
        x = None
        for block in self.blocks:
            # Not in float16, where gradients of a mean over all positions underflow.
            x, img = block(x, img, force_fp32=self.exact or not host.computes_in_bfloat16())
            maps.append(unit_length(x))
        return maps

    def compare(self, a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> torch.Tensor:
        per_block = [w * (fa - fb).square().sum(dim=1).mean(dim=[1, 2]) for w, fa, fb in zip(self.weights, a, b)]
        return torch.stack(per_block).sum(dim=0)


def unit_length(x: torch.Tensor) -> torch.Tensor:
    """Divides each position's channel vector by its length: NCHW -> NCHW, float32."""
    x = x.to(torch.float32)
    return x * (x.square().sum(dim=1, keepdim=True) + 1e-10).rsqrt()


class VGG16Features(Perceptual):
    """NVIDIA's TorchScript VGG16 (vgg16.pt): LPIPS, or the squared difference of conv4_3 features as in the paper.

    mode='lpips': all five stages with LPIPS's learned weights, as the file itself computes them.
    mode='conv4_3': mean squared difference after conv4_3's ReLU, one number an image; the paper (section 4) weighs it
    by 5e-5, for Caffe's VGG16. This file's is torchvision's, whose activations are smaller: the weight weighs less.

    Images are compared at their own size; where that is below 16 pixels (8 for conv4_3) VGG's pooling would leave
    nothing, and the image is enlarged to that. Grey images are repeated to three channels.

    Raises:
        UserError: the file can't be had, or is not the network it should be.
    """

    def __init__(
        self, source: str = VGG16_URL, mode: str = 'lpips', widths: Sequence[int] = VGG16_WIDTHS
    ) -> None:
        super().__init__()
        if mode not in ('lpips', 'conv4_3'):
            raise ValueError(f"mode: expected 'lpips' or 'conv4_3', got {mode!r}")
        self.mode = mode
        self.min_side = 16 if mode == 'lpips' else 8
        script = load_torchscript(source)
        self.net: torch.nn.Module = script if mode == 'lpips' else Conv43(script, source, widths)
        self.eval().requires_grad_(False)

    def features(self, img: torch.Tensor) -> list[torch.Tensor]:
        if min(img.shape[2:]) < self.min_side:
            size = [max(side, self.min_side) for side in img.shape[2:]]
            img = F.interpolate(img, size=size, mode='bilinear', align_corners=False)
        pixels = to_vgg_range(with_channels(img.to(torch.float32), 3))
        if self.mode == 'lpips':
            return [self.net(pixels, resize_images=False, return_lpips=True)]
        return [self.net(pixels)]

    def compare(self, a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> torch.Tensor:
        difference = (a[0] - b[0]).square().flatten(1)
        # LPIPS's vectors carry their weights and 1/positions already: the distance is a plain sum.
        return difference.sum(dim=1) if self.mode == 'lpips' else difference.mean(dim=1)


class Conv43(torch.nn.Module):
    """The first ten convolutions of a VGG16 TorchScript file, up to conv4_3 with its ReLU: [N, 3, H, W] in [0, 255].

    The file computes no such output, so the layers are rebuilt from its weights. How it prepares its input stands in
    no weight: that is found by trying the ways in use until the features agree with the file's own LPIPS vector.
    """

    mean: torch.Tensor  # [3, 1, 1], in the order in which the first layer takes the channels.
    std: torch.Tensor

    def __init__(self, script: torch.nn.Module, source: str, widths: Sequence[int] = VGG16_WIDTHS) -> None:
        super().__init__()
        convs = find_vgg16_convs(script, source, widths)
        self.depths = VGG16_DEPTHS[:4]
        self.convs = torch.nn.ModuleList()
        for weight, bias in convs[: sum(self.depths)]:
            layer = torch.nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
            layer.load_state_dict({'weight': weight, 'bias': bias})
            self.convs.append(layer)
        self.register_buffer('mean', torch.zeros([3, 1, 1]))
        self.register_buffer('std', torch.ones([3, 1, 1]))
        self.reverse = False
        self._find_input_form(script, source, widths)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[N, 3, H, W] in [0, 255] -> [N, 512, H/8, W/8], not negative."""
        x = (pixels.flip(1) if self.reverse else pixels) - self.mean
        x = x / self.std
        layers = iter(self.convs)
        for group, depth in enumerate(self.depths):
            x = F.max_pool2d(x, 2) if group else x
            for _ in range(depth):
                x = F.relu(next(layers)(x))
        return x

    @torch.no_grad()
    def _find_input_form(self, script: torch.nn.Module, source: str, widths: Sequence[int]) -> None:
        side = 32
        probe = torch.rand([1, 3, side, side], generator=torch.Generator().manual_seed(0)) * 255
        lpips = script(probe, resize_images=False, return_lpips=True)
        sizes = [width * (side >> group) ** 2 for group, width in enumerate(widths)]
        if list(lpips.shape) != [1, sum(sizes)]:
            raise _foreign(source, f'its LPIPS vector has shape {list(lpips.shape)}, VGG16 gives {[1, sum(sizes)]}')
        wanted = lpips.split(sizes, dim=1)[3].reshape(widths[3], -1)
        errors = {}
        for name in VGG16_INPUTS:
            self._set_input_form(name)
            errors[name] = _misfit(unit_length(self(probe)).reshape(widths[3], -1), wanted)
        best = min(errors, key=lambda name: errors[name])
        if not errors[best] < 1e-4:
            raise _foreign(source, f'no known input scaling gives its own features (best: {best}, {errors[best]:.1e})')
        self._set_input_form(best)

    def _set_input_form(self, name: str) -> None:
        means, deviations, self.reverse = VGG16_INPUTS[name]
        self.mean.copy_(torch.tensor(means)[:, None, None])
        self.std.copy_(torch.tensor(deviations)[:, None, None])


def _misfit(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Share of `theirs` that no factor per channel explains: [C, positions] twice -> 0 (the same) to 1."""
    factor = (ours * theirs).sum(dim=1, keepdim=True) / ours.square().sum(dim=1, keepdim=True).clamp(min=1e-20)
    return float((theirs - factor * ours).square().sum() / theirs.square().sum().clamp(min=1e-20))


def find_vgg16_convs(
    module: torch.nn.Module, source: str, widths: Sequence[int] = VGG16_WIDTHS
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weights and biases of the 13 convolutions, in order, told by their shapes alone.

    Raises:
        UserError: their number or shapes are not VGG16's.
    """
    state = module.state_dict()
    names = [name for name, value in state.items() if value.ndim == 4 and tuple(value.shape[2:]) == (3, 3)]
    outputs = [width for width, depth in zip(widths, VGG16_DEPTHS) for _ in range(depth)]
    expected = list(zip(outputs, [3, *outputs]))
    found = [tuple(state[name].shape[:2]) for name in names]
    if found != expected:
        raise _foreign(source, f'expected VGG16\'s {len(expected)} 3x3 convolutions, found {len(found)} other ones')
    convs = []
    for name in names:
        bias = state.get(name.removesuffix('weight') + 'bias')
        if bias is None or bias.ndim != 1 or len(bias) != len(state[name]):
            raise _foreign(source, f'{name} has no bias beside it')
        convs.append((state[name], bias))
    return convs


def _foreign(source: str, why: str) -> ValueError:
    return host.UserError(f"{source}: not NVIDIA's vgg16.pt: {why}")


def load_torchscript(source: str) -> torch.nn.Module:
    """A TorchScript module from a path or URL (downloaded once and cached), on the CPU, in eval mode.

    Raises:
        UserError: no such file, no download, or not a TorchScript archive.
    """
    path = host.fetch(source)
    if not os.path.isfile(path):
        raise host.UserError(f'{path}: no such file')
    try:
        with open(path, 'rb') as file:
            script = torch.jit.load(file, map_location='cpu')
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()
        raise host.UserError(f'{source}: not a TorchScript file ({reason[0] if reason else "empty"})') from None
    return script.eval()


def cached_vgg16(url: str = VGG16_URL) -> str | None:
    """Path of the file in the download cache, None if it was never downloaded. Never goes online."""
    return host.cached_download(url)
