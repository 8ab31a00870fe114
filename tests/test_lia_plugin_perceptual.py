"""Perceptual distances, with a small TorchScript network of the same make in the place of NVIDIA's vgg16.pt."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from stand_in_vgg import WIDTHS, SmallVGG, make_vgg

from lia_plugin import perceptual
from lia_plugin.host import UserError

# TorchScript is what the file is made of, deprecated or not.
pytestmark = pytest.mark.filterwarnings('ignore:.*torch.jit:DeprecationWarning', 'ignore:The TorchScript type system')

@pytest.fixture(scope='module')
def vgg() -> SmallVGG:
    return make_vgg()


@pytest.fixture(scope='module')
def vgg_file(vgg: SmallVGG, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp('vgg') / 'vgg16.pt'
    torch.jit.save(torch.jit.script(vgg), path)
    return str(path)


def pictures(count: int = 2, channels: int = 3, side: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand([count, channels, side, side], generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_lpips_is_the_weighted_mean_difference_of_directions(vgg: SmallVGG, vgg_file: str) -> None:
    a, b = pictures(seed=1), pictures(seed=2)
    expected = torch.zeros(2)
    for head, x, y in zip(vgg.heads, vgg.maps((a + 1) * 127.5), vgg.maps((b + 1) * 127.5)):
        difference = (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square()
        expected += (difference * head[:, None, None]).sum(dim=1).mean(dim=[1, 2])
    distance = perceptual.VGG16Features(vgg_file)(a, b)
    torch.testing.assert_close(distance, expected.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('input_form', ['torchvision', 'Caffe, BGR', '[0, 255]'])
def test_conv4_3_is_rebuilt_whatever_form_of_input_the_file_takes(tmp_path: Path, input_form: str) -> None:
    vgg = make_vgg(input_form)
    torch.jit.save(torch.jit.script(vgg), tmp_path / 'vgg16.pt')
    extractor = perceptual.VGG16Features(str(tmp_path / 'vgg16.pt'), 'conv4_3', widths=WIDTHS)
    a, b = pictures(seed=1), pictures(seed=2)
    expected = vgg.maps((a + 1) * 127.5)[3]
    torch.testing.assert_close(extractor.features(a)[0], expected.detach(), rtol=1e-4, atol=1e-5)
    difference = (expected - vgg.maps((b + 1) * 127.5)[3]).square().mean(dim=[1, 2, 3])
    torch.testing.assert_close(extractor(a, b), difference.detach(), rtol=1e-4, atol=1e-6)


def test_an_unknown_input_form_is_refused_not_guessed(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(make_vgg('another')), tmp_path / 'vgg16.pt')
    with pytest.raises(UserError, match='no known input scaling'):
        perceptual.VGG16Features(str(tmp_path / 'vgg16.pt'), 'conv4_3', widths=WIDTHS)


@pytest.mark.parametrize('mode', ['lpips', 'conv4_3'])
@pytest.mark.parametrize('channels, side', [(1, 32), (3, 4), (1, 20)])
def test_grey_and_small_images_have_distances_and_gradients(vgg_file: str, mode: str, channels: int, side: int) -> None:
    extractor = perceptual.VGG16Features(vgg_file, mode, widths=WIDTHS)
    a, b = pictures(3, channels, side, seed=1).requires_grad_(), pictures(3, channels, side, seed=2)
    distance = extractor(a, b)
    assert distance.shape == (3,) and (distance > 0).all()
    torch.testing.assert_close(extractor(b, b), torch.zeros(3))
    distance.sum().backward()
    assert a.grad is not None and a.grad.flatten(1).abs().sum(dim=1).all()
    assert not any(p.requires_grad for p in extractor.parameters())


def test_foreign_files_are_refused_in_one_line(tmp_path: Path, vgg_file: str) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))), tmp_path / 'other.pt')
    (tmp_path / 'text.pt').write_text('hello')
    cases = {
        str(tmp_path / 'other.pt'): '13 3x3 convolutions, found 1',
        str(tmp_path / 'text.pt'): 'not a TorchScript file',
        str(tmp_path / 'none.pt'): 'none.pt',
        vgg_file: '13 3x3 convolutions, found 13',  # Of other widths than VGG16's.
    }
    for path, reason in cases.items():
        with pytest.raises(UserError, match=reason) as caught:
            perceptual.VGG16Features(path, 'conv4_3')
        assert '\n' not in str(caught.value) and path in str(caught.value)


class FileServer(http.server.BaseHTTPRequestHandler):
    content = b''

    def do_GET(self) -> None:
        found = self.path.endswith('vgg16.pt')
        self.send_response(200 if found else 404)
        self.send_header('Content-Length', str(len(self.content) if found else 0))
        self.end_headers()
        self.wfile.write(self.content if found else b'')

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(vgg_file: str) -> Iterator[http.server.HTTPServer]:
    FileServer.content = Path(vgg_file).read_bytes()
    with http.server.HTTPServer(('127.0.0.1', 0), FileServer) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_file_is_fetched_once_and_then_taken_from_the_cache(
    server: http.server.HTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path))
    url = f'http://127.0.0.1:{server.server_port}/metrics/vgg16.pt'
    assert perceptual.cached_vgg16(url) is None
    first = perceptual.VGG16Features(url)(pictures(seed=1), pictures(seed=2))
    server.shutdown()
    second = perceptual.VGG16Features(url)(pictures(seed=1), pictures(seed=2))
    assert torch.equal(first, second)
    cached = perceptual.cached_vgg16(url)
    assert cached is not None and Path(cached).read_bytes() == FileServer.content


def test_without_the_file_one_line_names_it_the_folder_and_the_way_around(
    server: http.server.HTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path))
    url = f'http://127.0.0.1:{server.server_port}/gone.pt'
    with pytest.raises(UserError) as caught:
        perceptual.make_perceptual('vgg16', vgg16=url)
    message = str(caught.value)
    assert 'gone.pt' in message and str(tmp_path) in message and '--percep=disc' in message and '\n' not in message


# Features of a discriminator


class OneHotBlock(torch.nn.Module):
    """A block whose map points along channel 0 where the image is positive and along channel 1 elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones([]))

    def forward(self, x: Any, img: torch.Tensor, force_fp32: bool) -> tuple[torch.Tensor, torch.Tensor]:
        assert force_fp32
        positive = (img[:, :1] > 0).float()
        return self.scale * torch.cat([positive, 1 - positive], dim=1), img


class TwoBlocks(torch.nn.Module):
    block_resolutions = [8, 4]

    def __init__(self) -> None:
        super().__init__()
        self.b8, self.b4 = OneHotBlock(), OneHotBlock()


def test_distance_is_the_share_of_positions_that_differ_times_two() -> None:
    a, b = torch.ones([2, 1, 8, 8]), torch.ones([2, 1, 8, 8])
    b[0, :, :2] = -1  # A quarter of the first image.
    one = perceptual.DiscriminatorFeatures(TwoBlocks(), [1, 0])(a, b)
    torch.testing.assert_close(one, torch.tensor([0.5, 0.0]))  # Orthogonal unit vectors are √2 apart.
    both = perceptual.DiscriminatorFeatures(TwoBlocks(), [1, 3])(a, b)
    torch.testing.assert_close(both, 4 * one)


def test_features_stay_when_the_discriminator_goes_on_training() -> None:
    D = TwoBlocks()
    extractor = perceptual.DiscriminatorFeatures(D)
    before = extractor.features(torch.ones([1, 1, 8, 8]))[0]
    with torch.no_grad():
        D.b8.scale.fill_(-1)
    assert torch.equal(extractor.features(torch.ones([1, 1, 8, 8]))[0], before)
    assert D.b8.scale.requires_grad and not any(p.requires_grad for p in extractor.parameters())


def test_block_weights_must_fit() -> None:
    with pytest.raises(ValueError, match='expected 2'):
        perceptual.DiscriminatorFeatures(TwoBlocks(), [1])
    with pytest.raises(ValueError, match='zero'):
        perceptual.DiscriminatorFeatures(TwoBlocks(), [0, 0])


@pytest.mark.parametrize('architecture', ['resnet', 'skip', 'orig'])
@pytest.mark.parametrize('c_dim, channels', [(0, 3), (4, 1)])
def test_a_real_discriminator_gives_features_with_gradients(architecture: str, c_dim: int, channels: int) -> None:
    from training.networks import Discriminator

    torch.manual_seed(0)
    D = Discriminator(c_dim=c_dim, img_resolution=16, img_channels=channels, architecture=architecture,
                      channel_base=128, channel_max=8, num_fp16_res=2)
    extractor = perceptual.DiscriminatorFeatures(D)
    a, b = pictures(3, channels, 16, seed=1).requires_grad_(), pictures(3, channels, 16, seed=2)
    assert [list(x.shape) for x in extractor.features(b)] == [[3, 8, 8, 8], [3, 8, 4, 4]]
    distance = extractor(a, b)
    (gradient,) = torch.autograd.grad(distance.sum(), a)
    nearer = extractor(a - 0.01 * gradient, b)
    assert distance.shape == (3,) and (nearer < distance).all()
    torch.testing.assert_close(extractor(b, b), torch.zeros(3))


def test_names() -> None:
    assert perceptual.make_perceptual('none') is None
    with pytest.raises(UserError, match="not 'alex'"):
        perceptual.make_perceptual('alex')
    with pytest.raises(ValueError, match='percep_network'):
        perceptual.make_perceptual('disc')


def test_features_are_exact_unless_they_may_follow_what_was_chosen() -> None:
    from torch_utils import precision
    from training.networks import Discriminator

    torch.manual_seed(0)
    D = Discriminator(c_dim=0, img_resolution=16, img_channels=3, channel_base=128, channel_max=8)
    a, b = pictures(3, 3, 16, seed=1), pictures(3, 3, 16, seed=2)
    exact, following = perceptual.DiscriminatorFeatures(D), perceptual.DiscriminatorFeatures(D, exact=False)
    want = exact(a, b)
    assert torch.equal(following(a, b), want)
    with precision.using('bf16'):
        assert torch.equal(exact(a, b), want)
        low = following(a, b)
    assert low.dtype == torch.float32 and 0 < float(((low - want) / want).abs().max()) < 0.05
