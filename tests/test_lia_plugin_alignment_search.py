"""The search for the crop that a network draws best, and the check of centre crops, against known answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lia_plugin import alignment_search, pasting, placement
from lia_plugin.alignment_search import Motion


class KnowsOnePicture(torch.nn.Module):
    """Draws one picture, as far as an image is like it, and nothing else: 'y' is its share in the image."""

    def __init__(self, picture: torch.Tensor, nats: float = 0.0) -> None:
        super().__init__()
        self.picture = picture
        self.img_resolution, self.img_channels = picture.shape[1], picture.shape[0]
        self.mapping = SimpleNamespace(phi=True, w_avg=torch.zeros(1), log_prob=lambda y, c: y[:, 0] * 0 - nats,
                                       y_to_z=lambda y, c: y)

    def encode(self, img: torch.Tensor, c: Any = None) -> torch.Tensor:
        return (img * self.picture).sum(dim=(1, 2, 3))[:, None] / self.picture.square().sum()

    def decode(self, y: torch.Tensor, c: Any = None, noise_mode: str = 'random') -> torch.Tensor:
        return y[:, :, None, None] * self.picture


def scene(size: int = 48, seed: int = 0) -> torch.Tensor:
    """A picture of broad blobs without symmetry, uint8 [1, size, size]."""
    rough = torch.rand([1, 1, 7, 7], generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(rough, size=[size, size], mode='bicubic', align_corners=False)
    return (fine[0].clamp(0, 1) * 255).to(torch.uint8)


def test_motions_move_turn_and_zoom_about_the_centre() -> None:
    base = placement.centre_crop((64, 64), 16)
    assert alignment_search.moved(base, Motion()) == base
    np.testing.assert_allclose(alignment_search.moved(base, Motion(0.5, 0.0, 0.25, 0.0)).corners[0], [32, 16])
    quarter = alignment_search.moved(base, Motion(1.0, math.pi / 2)).corners
    np.testing.assert_allclose(quarter, base.corners[[1, 2, 3, 0]], atol=1e-9)


def test_misfit_in_closed_form() -> None:
    picture = torch.randn([1, 8, 8], generator=torch.Generator().manual_seed(0)) / 4
    G = KnowsOnePicture(picture, nats=3.0)
    other = torch.randn([1, 8, 8], generator=torch.Generator().manual_seed(1)) / 4
    other -= (other * picture).sum() / picture.square().sum() * picture  # Of which it knows nothing.
    variance, edges = float(other.var(unbiased=False)), 0.0
    for axis in (1, 2):
        edges += float(other.diff(dim=axis).square().mean())
    flat = alignment_search.FLAT
    expected = (math.log(float(other.square().mean()) / (variance + flat) + 1e-6)
                + 2 * math.log(edges / (edges + flat) + 1e-6) - math.log(edges + flat) + 3.0)  # fmt: skip
    known, unknown = alignment_search.misfit(G, torch.stack([picture, other])).tolist()
    assert unknown == pytest.approx(expected, rel=1e-4) and known < unknown - 10


def test_an_absurd_z_does_not_outweigh_the_picture() -> None:
    picture = torch.randn([1, 8, 8], generator=torch.Generator().manual_seed(0)) / 4
    for z, expected in ((1.0, 50.0), (2.0, 50.0), (10.0, 50.0 - (50 - alignment_search.FARTHEST))):
        G = KnowsOnePicture(picture)
        G.mapping = SimpleNamespace(phi=True, log_prob=lambda y, c: y[:, 0] * 0 - 50.0,
                                    y_to_z=lambda y, c, z=z: y * 0 + z)  # fmt: skip
        plain = KnowsOnePicture(picture)
        plain.mapping.log_prob = lambda y, c: y[:, 0] * 0
        plain.mapping.y_to_z = lambda y, c: y * 0
        gained = alignment_search.misfit(G, picture[None]) - alignment_search.misfit(plain, picture[None])
        assert float(gained) == pytest.approx(expected, abs=1e-3)


def test_a_known_motion_is_found_by_the_network_alone() -> None:
    full = scene()
    base = placement.centre_crop((48, 48), 12)
    truth = Motion(0.7, 0.2, 0.08, -0.1)
    aligned = alignment_search.moved(base, truth)
    G = KnowsOnePicture(pasting.to_float(pasting.take(full, aligned)))
    found, gain = alignment_search.find(G, full, base)
    error = np.abs(found.corners - aligned.corners).max() / 48
    assert error < 0.03 and gain > 1, (found, aligned)


def test_the_check_tells_an_aligned_crop_from_a_moved_one() -> None:
    full = scene()
    base = placement.centre_crop((48, 48), 12)
    aligned = alignment_search.moved(base, Motion(0.75))
    G = KnowsOnePicture(pasting.to_float(pasting.take(full, aligned)))
    assert alignment_search.moved_gain(alignment_search.Judge(G, full, base, None, 64)) > 1
    assert alignment_search.moved_gain(alignment_search.Judge(G, full, aligned, None, 64)) < -1


def test_the_search_ends_at_the_least_value_and_never_above_the_start() -> None:
    target = np.array([0.8, -0.3, 0.11, 0.07])

    def bowl(motions: Sequence[Motion]) -> np.ndarray:
        return np.square(np.array(motions) - target).sum(axis=1)

    motion, gain = alignment_search.search(bowl)
    assert np.abs(np.array(motion) - target).max() < 0.02
    assert gain == pytest.approx(float(bowl([Motion()])[0] - bowl([motion])[0]))
    motion, gain = alignment_search.search(lambda motions: np.square(np.array(motions) - [1, 0, 0, 0]).sum(axis=1))
    assert (motion, gain) == (Motion(), 0)


def test_a_photograph_is_judged_by_a_smaller_copy() -> None:
    full = torch.nn.functional.interpolate(scene()[None], size=[1200, 1600], mode='nearest')[0]
    base = placement.centre_crop((1600, 1200), 12)
    small, there = alignment_search.working_copy(full, base)
    assert small.shape == (1, 24, 32) and there.scale == pytest.approx(2, rel=1e-6) and there.size == (32, 24)
    motions = [Motion(), Motion(0.6, 0.2, 0.1, -0.1), Motion(1.2)]
    fine, coarse = alignment_search.crops(full, base, motions), alignment_search.crops(small, there, motions)
    assert (fine - coarse).abs().mean() < 0.04
    assert (fine - coarse.roll(1, dims=3)).abs().mean() > 0.1, 'the test can fail'
    exact = placement.centre_crop((1600, 1200), 1200)
    assert alignment_search.working_copy(full, exact) == (full, exact)


def test_what_lies_outside_counts_against_a_crop() -> None:
    base = placement.centre_crop((32, 32), 8)
    assert alignment_search.outside_share(base) == 0
    assert alignment_search.outside_share(alignment_search.moved(base, Motion(x=0.25))) == 0.25
    assert alignment_search.outside_share(alignment_search.moved(base, Motion(scale=2.0))) == 0.75
