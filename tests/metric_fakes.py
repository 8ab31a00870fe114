"""Stand-ins with answers in closed form: a data set, a generator and an encoding network that are simple formulas."""

import types

import numpy as np
import torch
from generator_fakes import save_script

SIDE = 12


class FakeImages(torch.utils.data.Dataset):
    """Images of one seeded stream, 100 … 150; `xflip` doubles them, as in the host's data sets."""

    def __init__(self, num=10, channels=1, xflip=False, max_size=None, label_dim=0, resolution=SIDE, path=None,
                 use_labels=True):
        stream = np.random.RandomState(1)
        self.images = stream.randint(100, 150, [num, channels, resolution, resolution]).astype(np.uint8)[:max_size]
        if xflip:
            self.images = np.concatenate([self.images, self.images[:, :, :, ::-1]])
        self.name = 'fake'
        self.image_shape = list(self.images.shape[1:])
        self.num_channels = channels
        self.label_dim = label_dim if use_labels else 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, idx):
        return self.images[idx].copy(), self.get_label(idx)

    def get_label(self, idx):
        one_hot = np.zeros(self.label_dim, np.float32)
        one_hot[idx % max(self.label_dim, 1) : idx % max(self.label_dim, 1) + 1] = 1
        return one_hot

    def image_name(self, idx):
        return f'00000/img{idx:08d}.png'

    def floats(self):
        return self.images.astype(np.float64) / 127.5 - 1


class BrokenImages(FakeImages):
    def __getitem__(self, idx):
        from dnnlib.util import UserError

        raise UserError('zip: image 3 is damaged')


class FakeGenerator(torch.nn.Module):
    """Pixels are tanh of z: image i depends on z_i alone. With `noise` also on the global random state."""

    def __init__(self, noise=0.0, c_dim=0):
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim, self.num_ws = SIDE, c_dim, SIDE, 1
        self.img_resolution, self.img_channels, self.noise = SIDE, 1, noise
        self.register_buffer('gain', torch.ones([]))

    def forward(self, z, c, **kwargs):
        img = z[:, None, None, :].repeat([1, 1, SIDE, 1]) * self.gain
        if self.c_dim:
            img = img * 0 + c.argmax(dim=1).to(torch.float32)[:, None, None, None] / self.c_dim
        return torch.tanh(img + self.noise * torch.randn_like(img))


class FakePhi:
    """z = (y − shift) / scale."""

    def __init__(self, scale, shift):
        self.scale, self.shift = scale, shift

    def y_to_z(self, y, c=None):
        return (y - self.shift) / self.scale

    def z_to_y(self, z, c=None):
        return z * self.scale + self.shift


class FakeLIA(torch.nn.Module):
    """y is all pixels: encode multiplies them by `gain`, decode adds `offset`."""

    def __init__(self, gain=1.0, offset=0.1, scale=1.0, shift=0.0, channels=1, c_dim=0, side=SIDE):
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim, self.num_ws = channels * side**2, c_dim, channels * side**2, 1
        self.img_resolution, self.img_channels = side, channels
        self.gain, self.offset = gain, offset
        self.mapping = FakePhi(scale, shift)
        self.register_buffer('anything', torch.zeros([1]))

    def encode(self, img, c=None):
        FakeLIA.last_labels = c
        return img.flatten(1) * self.gain

    def decode(self, y, c=None, truncation_psi=1, noise_mode='const'):
        assert noise_mode == 'const'
        return y.reshape(-1, self.img_channels, self.img_resolution, self.img_resolution) + self.offset


class FakeLayers(FakeLIA):
    """Its encoder gives y+: FakeLIA's y as the base code, and `detail` more in the second layer, which is shown."""

    def __init__(self, detail=0.5, **kwargs):
        super().__init__(**kwargs)
        self.num_ws, self.detail = 2, detail
        self.encoder = types.SimpleNamespace(space='y+')

    def encode(self, img, c=None, space=None):
        base = super().encode(img, c)
        assert space in (None, 'y')
        return base if space == 'y' else torch.stack([base, base + self.detail], dim=1)

    def decode(self, y, c=None, **kwargs):
        return super().decode(y if y.ndim == 2 else y[:, 1], c, **kwargs)


class StageOne(FakeLIA):
    encoder = None


class Corner(torch.nn.Module):
    """A detector: the first 4 pixels of the first row."""

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        if not return_features:
            return img.to(torch.float32)
        return img[:, 0, 0, :4].to(torch.float32)


class Face(torch.nn.Module):
    """An embedder of RGB images in [-1, 1]: means of their quarters; none (zero) where the mean is above `limit`."""

    def __init__(self, limit: float = 2.0, nothing: float = 0.0) -> None:
        super().__init__()
        self.limit, self.nothing = limit, nothing

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        means = torch.nn.functional.adaptive_avg_pool2d(img.mean(dim=1, keepdim=True), 2).flatten(1)
        found = (means.mean(dim=1, keepdim=True) <= self.limit).to(torch.float32)
        return torch.where(found > 0, means, torch.full_like(means, self.nothing))


def save_corner_detector(path):
    return save_script(Corner(), path)
