"""Generators and detectors with answers in closed form, for metrics of generated images."""

import warnings

import numpy as np
import torch


class LinearMapping(torch.nn.Module):
    """w = M z [N, 3] (or z itself, or z over its length), copied to two ws; `shift` times the class number is added."""

    def __init__(self, matrix=None, normalise=False, shift=0.0):
        super().__init__()
        self.register_buffer('matrix', torch.eye(3) if matrix is None else torch.as_tensor(matrix, dtype=torch.float32))
        self.normalise, self.shift = normalise, shift

    def forward(self, z, c, truncation_psi=1):
        z = z / z.norm(dim=1, keepdim=True) if self.normalise else z
        w = z @ self.matrix.T * truncation_psi
        if c.shape[1]:
            w = w * (1 + self.shift * c.argmax(dim=1, keepdim=True))
        return w[:, None].repeat([1, 2, 1])


class LinearSynthesis(torch.nn.Module):
    """Pixel (0, k) of each channel is w_k times gain, all others are 0; plus noise, constant or not, times strength."""

    def __init__(self, side, channels, strength, gain):
        super().__init__()
        self.side, self.channels, self.strength, self.gain = side, channels, strength, gain
        self.register_buffer('noise_const', torch.randn([side, side], generator=torch.Generator().manual_seed(0)))
        self.calls = []  # Number of images of each call.

    def forward(self, ws, noise_mode='random', force_fp32=False):
        n = len(ws)
        self.calls.append(n)
        img = torch.zeros([n, self.channels, self.side, self.side])
        img[:, :, 0, :3] = ws[:, :1] * self.gain
        noise = self.noise_const if noise_mode == 'const' else torch.randn([n, 1, self.side, self.side])
        return img + noise * self.strength


class LinearGenerator(torch.nn.Module):
    """z of three numbers -> images of `side` pixels, all of it linear: what path lengths are can be written down."""

    def __init__(self, side=16, channels=3, c_dim=0, strength=0.0, gain=0.01, **mapping):
        super().__init__()
        self.z_dim = self.w_dim = 3
        self.c_dim, self.num_ws, self.img_resolution, self.img_channels = c_dim, 2, side, channels
        self.mapping = LinearMapping(**mapping)
        self.synthesis = LinearSynthesis(side, channels, strength, gain)

    def forward(self, z, c, truncation_psi=1, **kwargs):
        return self.synthesis(self.mapping(z, c, truncation_psi), **kwargs)


class Flat(torch.nn.Module):
    """The first row of the first channel over 127.5 as 'LPIPS', twice that as features, else a softmax of 4 pixels."""

    def forward(
        self, img: torch.Tensor, return_features: bool = False, resize_images: bool = True, return_lpips: bool = False,
        no_output_bias: bool = False,
    ) -> torch.Tensor:
        row = img[:, 0, 0].to(torch.float32) / 127.5
        if return_lpips:
            assert not resize_images
            return row
        if return_features:
            return row * 2
        bias = 0.0 if no_output_bias else 100.0
        return torch.softmax(torch.cat([row[:, :3] * 20, row[:, 3:4] * 20 + bias], dim=1), dim=1)


class Logits(torch.nn.Module):
    """Four pixels of the first row: a classifier without a softmax."""

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        return img[:, 0, 0, :4].to(torch.float32) / 10


def save_script(module, path):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.jit.script(module).save(str(path))
    return str(path)


def latents(num, seed=0, dim=3):
    """The z of the first generated images, from their own streams."""
    streams = [np.random.default_rng([seed, item]) for item in range(num)]
    return np.stack([stream.standard_normal(dim, dtype=np.float32) for stream in streams])
