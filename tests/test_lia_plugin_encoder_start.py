"""How an encoder begins: its trunk sees what D sees, its head is the ridge regression that scikit-learn finds."""

from typing import Any

import numpy as np
import pytest
import sklearn.linear_model
import torch

from lia_plugin import encoder_start
from lia_plugin.networks import Generator
from lia_plugin.stages import code_statistics
from training.networks import Discriminator

WIDTHS: dict[str, int] = dict(channel_base=256, channel_max=16)


def make(c_dim: int = 0, **encoder: Any) -> Generator:
    torch.manual_seed(0)
    encoder = dict(WIDTHS, **encoder) if encoder.get('arch') != 'paper' else encoder
    G = Generator(8, c_dim, 8, 16, 1, synthesis_kwargs=WIDTHS, encoder_kwargs=encoder)
    G.encoder.set_output_statistics(*code_statistics(G.mapping, G.encoder.space))
    return G.eval().requires_grad_(False)


def discriminator(architecture: str = 'resnet') -> Discriminator:
    torch.manual_seed(1)
    D = Discriminator(0, 16, 1, architecture=architecture, **WIDTHS)
    for p in D.parameters():
        p.data.normal_()
    return D.requires_grad_(False)


def test_the_copied_trunk_sees_what_the_discriminator_sees() -> None:
    G, D = make(), discriminator()
    assert encoder_start.copy_trunk(G.encoder, D) == 1 + 2 * 3 + 1
    img = torch.rand([3, 1, 16, 16]) * 2 - 1
    x = ours = None
    rest: Any = img
    for res in D.block_resolutions:
        x, rest = getattr(D, f'b{res}')(x, rest)
    ours = G.encoder.stem(img)
    for i in range(G.encoder.num_stages):
        ours = getattr(G.encoder, f'stage{i}')(ours)
    torch.testing.assert_close(ours, x)
    # D's last convolution sees one channel more, the minibatch's deviation: 0 for equal images.
    one = ours[:1].repeat([2, 1, 1, 1])
    with_deviation = torch.cat([one, torch.zeros_like(one[:, :1])], dim=1)
    torch.testing.assert_close(G.encoder.conv(one), D.b4.conv(with_deviation))


def test_what_does_not_fit_stays() -> None:
    G = make(channel_max=8)
    before = {k: v.clone() for k, v in G.encoder.state_dict().items()}
    assert encoder_start.copy_trunk(G.encoder, discriminator()) == 0
    assert all(torch.equal(v, before[k]) for k, v in G.encoder.state_dict().items())
    assert encoder_start.copy_trunk(make().encoder, discriminator('orig')) == 1 + 2 * 2 + 1, 'no shortcuts to copy'


def test_the_head_is_the_ridge_regression_that_scikit_learn_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_start, 'START_IMAGES', 300)
    G = make(hidden_features=12)
    explained = encoder_start.fit_head(G, 'cpu', seed=3)
    z = torch.randn([300, 8], generator=torch.Generator().manual_seed(3))
    y = G.mapping.z_to_y(z)
    x = G.encoder.head_input(G.decode(y, noise_mode='const').clamp(-1, 1)).double().numpy()
    t = ((y - G.encoder.output_mean) / G.encoder.output_std).double().numpy()
    oracle = sklearn.linear_model.Ridge(alpha=0.01 * 300 * x.var(axis=0).mean()).fit(x, t)
    features = torch.from_numpy(x).float()
    np.testing.assert_allclose(G.encoder.head(features), oracle.predict(x), atol=2e-4)
    residual = np.square(t - oracle.predict(x)).sum() / np.square(t - t.mean(axis=0)).sum()
    assert explained == pytest.approx(1 - residual, abs=1e-6)


@pytest.mark.parametrize('c_dim, encoder', [
    (0, {}), (3, {}), (0, dict(space='y+')), (0, dict(space='z')), (0, dict(iters=2)),
])
def test_a_started_encoder_finds_codes_better_than_chance(
    c_dim: int, encoder: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_start, 'START_IMAGES', 600)
    G = make(c_dim, **encoder)
    said = encoder_start.start_encoder(G, discriminator())
    assert 'convolutions from the discriminator' in said and '%' in said
    z = torch.randn([200, 8], generator=torch.Generator().manual_seed(9))
    c = torch.eye(3)[torch.arange(200) % 3] if c_dim else None
    y = G.mapping.z_to_y(z, c)
    found = G.encode(G.decode(y, c, noise_mode='const').clamp(-1, 1), c, space='y')
    error = (found - y).square().mean() / (y - y.mean(dim=0)).square().mean()
    assert error < 0.9


def test_the_papers_encoder_begins_at_random() -> None:
    G = make(arch='paper')
    before = {k: v.clone() for k, v in G.encoder.state_dict().items()}
    assert encoder_start.start_encoder(G, discriminator()) == 'Encoder: begins at random'
    assert all(torch.equal(v, before[k]) for k, v in G.encoder.state_dict().items())
    with pytest.raises(ValueError, match="arch='resnet'"):
        encoder_start.fit_head(G, 'cpu')
