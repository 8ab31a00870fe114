"""A feature network for checkouts that pickle theirs: its source travels, so it imports no more than hosts have."""

import torch

from torch_utils import persistence


@persistence.persistent_class
class Detector(torch.nn.Module):
    """uint8 or float [N, C, H, W] in [0, 255] → [N, 8]: means and spreads of the quarters of the image."""

    def forward(self, img: torch.Tensor, return_features: bool = True, **_options: bool) -> torch.Tensor:
        means = torch.nn.functional.adaptive_avg_pool2d(img.to(torch.float32).mean(dim=1, keepdim=True), 2).flatten(1)
        return torch.cat([means, means.square() / 255], dim=1)


class ScriptedDetector(torch.nn.Module):
    """The same as TorchScript takes it, with the keywords of NVIDIA's Inception and VGG16."""

    def forward(
        self, img: torch.Tensor, return_features: bool = True, resize_images: bool = True, return_lpips: bool = False
    ) -> torch.Tensor:
        means = torch.nn.functional.adaptive_avg_pool2d(img.to(torch.float32).mean(dim=1, keepdim=True), 2).flatten(1)
        return torch.cat([means, means.square() / 255], dim=1)
