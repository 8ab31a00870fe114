"""A small TorchScript network of the make of NVIDIA's vgg16.pt, for tests that must not download it."""

from collections import OrderedDict
from pathlib import Path

import torch
import torch.nn.functional as F
from generator_fakes import save_script

from lia_plugin import perceptual

WIDTHS = (4, 5, 6, 7, 7)


class ConvRelu(torch.nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.conv(x))


class SmallVGG(torch.nn.Module):
    """Thirteen convolutions, four poolings, LPIPS heads: the calls that vgg16.pt takes, with few channels."""

    def __init__(self, input_form: str) -> None:
        super().__init__()
        means, deviations, self.reverse = perceptual.VGG16_INPUTS.get(input_form, ([9, 99, 50], [1, 20, 3], False))
        self.register_buffer('mean', torch.tensor(means, dtype=torch.float32)[:, None, None])
        self.register_buffer('std', torch.tensor(deviations, dtype=torch.float32)[:, None, None])
        layers: OrderedDict[str, torch.nn.Module] = OrderedDict()
        previous, number = 3, 0
        self.taps: list[int] = []
        for group, (width, depth) in enumerate(zip(WIDTHS, perceptual.VGG16_DEPTHS)):
            if group:
                layers[f'pool{group}'] = torch.nn.MaxPool2d(2)
            for _ in range(depth):
                number += 1
                layers[f'conv{number}'] = ConvRelu(previous, width)
                previous = width
            self.taps.append(len(layers) - 1)
        self.layers = torch.nn.Sequential(layers)
        self.heads = torch.nn.ParameterList([torch.rand(width) for width in WIDTHS])

    def maps(self, img: torch.Tensor) -> list[torch.Tensor]:
        x = (img.flip(1) if self.reverse else img) - self.mean
        x = x / self.std
        found: list[torch.Tensor] = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in self.taps:
                found.append(x)
        return found

    def forward(self, img: torch.Tensor, resize_images: bool = True, return_lpips: bool = False) -> torch.Tensor:
        assert return_lpips and not resize_images
        parts: list[torch.Tensor] = []
        for x, head in zip(self.maps(img), [self.heads[0], self.heads[1], self.heads[2], self.heads[3], self.heads[4]]):
            x = x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
            x = x * head.sqrt()[:, None, None] / (x.shape[2] * x.shape[3]) ** 0.5
            parts.append(x.flatten(1))
        return torch.cat(parts, dim=1)


def make_vgg(input_form: str = 'torchvision') -> SmallVGG:
    torch.manual_seed(0)
    return SmallVGG(input_form).eval()


def save_vgg(path: Path) -> str:
    """Its path."""
    return save_script(make_vgg(), path)
