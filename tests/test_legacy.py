"""legacy.load_network_pkl, on this project's own networks."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import legacy
from dnnlib.util import UserError
from torch_utils import network_pickle
from training import networks


def make_snapshot() -> dict[str, Any]:
    torch.manual_seed(0)
    image = dict(c_dim=2, img_resolution=16, img_channels=1)
    width = dict(channel_base=128, channel_max=8)
    G = networks.Generator(z_dim=4, w_dim=4, synthesis_kwargs=dict(width, conv_clamp=7), **image)
    D = networks.Discriminator(**image, **width)
    return dict(G=G.eval().requires_grad_(False), D=D.eval().requires_grad_(False), G_ema=copy.deepcopy(G), kimg=3)


@pytest.fixture
def path(tmp_path: Path) -> str:
    network_pickle.save(tmp_path / 'net.pkl', make_snapshot())
    return str(tmp_path / 'net.pkl')


def generate(G: Any) -> torch.Tensor:
    torch.manual_seed(1)
    return G(torch.randn([2, 4]), torch.eye(2), noise_mode='const')


def test_missing_entries_are_none_and_others_survive(path: str) -> None:
    with open(path, 'rb') as file:
        data = legacy.load_network_pkl(file)
    assert data['training_set_kwargs'] is None and data['augment_pipe'] is None and data['kimg'] == 3
    assert torch.equal(generate(data['G_ema']), generate(make_snapshot()['G']))
    assert data['G'] is not data['G_ema']


def test_half_precision_is_rebuilt_with_the_same_weights(path: str) -> None:
    plain = legacy.load_network_pkl(path)
    half = legacy.load_network_pkl(path, force_fp16=True)
    options = half['G_ema'].init_kwargs.synthesis_kwargs
    assert (options['num_fp16_res'], options['conv_clamp'], options['channel_max']) == (4, 256, 8)
    assert half['D'].init_kwargs.num_fp16_res == 4 and not half['D'].training
    for key in ('G', 'D', 'G_ema'):
        theirs = half[key].state_dict()
        assert all(torch.equal(mine, theirs[name]) for name, mine in plain[key].state_dict().items())
    again = legacy._with_fp16(half['D'], is_generator=False)
    assert again is half['D']


def test_what_is_no_snapshot_is_told(tmp_path: Path) -> None:
    snapshot = make_snapshot()
    for change, word in (({'G_ema': None}, 'no network G_ema'), ({'D': 3}, 'its D is a int'),
                         ({'augment_pipe': 'ada'}, 'augment_pipe is a str'), ({'training_set_kwargs': []}, 'list')):
        path = tmp_path / 'bad.pkl'
        network_pickle.save(path, {**snapshot, **change})
        with pytest.raises(UserError, match=word) as caught:
            legacy.load_network_pkl(str(path))
        assert str(caught.value).startswith(str(path))
