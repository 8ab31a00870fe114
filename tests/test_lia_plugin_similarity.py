"""MSE, PSNR, SSIM and MS-SSIM against closed forms, scikit-image and pytorch-msssim."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from lia_plugin import prior, similarity


def images(shape: list[int], seed: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_mse_and_psnr_of_a_constant_difference() -> None:
    a = torch.zeros([2, 3, 4, 5])
    b = torch.tensor([0.5, 0.2])[:, None, None, None].expand_as(a)
    torch.testing.assert_close(similarity.mse(a, b), torch.tensor([0.25, 0.04]))
    expected = [10 * math.log10(4 / 0.25), 10 * math.log10(4 / 0.04)]
    torch.testing.assert_close(similarity.psnr(a, b), torch.tensor(expected))
    assert similarity.psnr(a, a).isinf().all()


@pytest.mark.parametrize('channels', [1, 3])
def test_ssim_agrees_with_scikit_image(channels: int) -> None:
    a = images([2, channels, 19, 24], seed=0)
    b = (a + 0.3 * images([2, channels, 19, 24], seed=1)).clamp(-1, 1)
    expected = [
        structural_similarity(
            x.double().numpy(), y.double().numpy(), channel_axis=0, data_range=2.0,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )
        for x, y in zip(a, b)
    ]
    np.testing.assert_allclose(similarity.ssim(a, b).numpy(), expected, atol=1e-6)


def test_ssim_is_one_for_equal_images_and_has_a_gradient() -> None:
    a = images([1, 1, 11, 11], seed=0).requires_grad_()
    assert similarity.ssim(a, a.detach()).item() == pytest.approx(1, abs=1e-6)
    (gradient,) = torch.autograd.grad(similarity.ssim(a, images([1, 1, 11, 11], seed=1)).sum(), a)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize('channels, side', [(1, 161), (3, 176), (3, 163)])
def test_ms_ssim_agrees_with_pytorch_msssim(channels: int, side: int) -> None:
    pytorch_msssim = pytest.importorskip('pytorch_msssim')
    a = images([2, channels, side, side], seed=0)
    b = (a + 0.3 * images([2, channels, side, side], seed=1)).clamp(-1, 1)
    expected = pytorch_msssim.ms_ssim(a.double(), b.double(), data_range=2, size_average=False)
    np.testing.assert_allclose(similarity.ms_ssim(a, b).numpy(), expected.numpy(), atol=2e-7)


def test_ms_ssim_of_equal_and_of_opposite_images() -> None:
    a = images([1, 1, 161, 161], seed=0)
    assert similarity.ms_ssim(a, a).item() == pytest.approx(1, abs=1e-6)
    assert similarity.ms_ssim(a, -a).item() == 0, 'structure is negative, and has no real power'


def test_unfit_images_are_refused() -> None:
    with pytest.raises(ValueError, match='11 pixels'):
        similarity.ssim(torch.zeros([1, 1, 10, 20]), torch.zeros([1, 1, 10, 20]))
    with pytest.raises(ValueError, match='161 pixels'):
        similarity.ms_ssim(torch.zeros([1, 1, 160, 200]), torch.zeros([1, 1, 160, 200]))
    with pytest.raises(ValueError, match='one shape'):
        similarity.mse(torch.zeros([1, 1, 4, 4]), torch.zeros([1, 3, 4, 4]))


def test_typicality_agrees_with_scipy_and_is_uniform_under_the_prior() -> None:
    from scipy import stats

    z = torch.randn([2000, 16], generator=torch.Generator().manual_seed(0))
    p = prior.typicality(z).numpy()
    norms = z.double().square().sum(dim=1).numpy()
    lower = stats.chi2.cdf(norms, df=16)
    np.testing.assert_allclose(p, 2 * np.minimum(lower, 1 - lower), atol=1e-5)
    assert stats.kstest(p, 'uniform').pvalue > 0.01


def test_typicality_sees_both_tails() -> None:
    z = torch.ones([3, 64]) * torch.tensor([0.1, 1.0, 3.0])[:, None]
    short, typical, long = prior.typicality(z).tolist()
    assert short < 1e-6 and long < 1e-6 and typical > 0.9
    assert long > 0, 'the upper tail is not lost to rounding'
