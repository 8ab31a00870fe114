"""Duplicates: every planted one is found, whatever its kind, and nothing else; against a search of all pairs."""

import itertools

import numpy as np
import pytest
import torch

from lia_plugin import duplicates
from lia_plugin.duplicates import Duplicate, closest_codes, find_duplicates, groups, near_candidates, thumbnails
from lia_plugin.images import to_float

SIDE = 16


def pictures(n: int, seed: int = 0, channels: int = 3) -> torch.Tensor:
    """uint8 [n, channels, SIDE, SIDE], no two alike."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, [n, channels, SIDE, SIDE], dtype=np.uint8))


def noisy(image: torch.Tensor, levels: int, seed: int = 0) -> torch.Tensor:
    noise = torch.randint(-levels, levels + 1, image.shape, generator=torch.Generator().manual_seed(seed))
    return (image.int() + noise).clamp(0, 255).to(torch.uint8)


def find(images: torch.Tensor, near_limit: float = 0.01, order: list[int] | None = None) -> list[Duplicate]:
    def read(index: int) -> torch.Tensor:
        if order is not None:
            order.append(index)
        return to_float(images[index])

    hashes = np.stack([duplicates.pixel_hashes(image) for image in images])
    return find_duplicates(hashes, thumbnails(to_float(images)), near_limit, read)


@pytest.mark.parametrize('channels', [1, 3])
def test_planted_duplicates_are_found_with_their_kind(channels: int) -> None:
    images = pictures(40, channels=channels)
    images[10] = images[3]
    images[20] = images[3].flip(2)
    images[21] = noisy(images[5], 3)
    images[22] = noisy(images[6].flip(2), 3)
    images[30] = images[3]
    found = find(images)
    assert [(d.index, d.first, d.kind) for d in found] == [
        (10, 3, 'exact'), (20, 3, 'mirrored'), (21, 5, 'near'), (22, 6, 'near mirrored'), (30, 3, 'exact'),
    ]  # fmt: skip
    expected = [0, 0, float((to_float(images[21]) - to_float(images[5])).square().mean())]
    assert [found[i].mse for i in (0, 1, 2)] == pytest.approx(expected)


def test_an_image_without_double_has_none() -> None:
    read: list[int] = []
    assert find(pictures(60), order=read) == [] and read == []  # Thumbnails tell all of them apart.


def test_near_zero_looks_for_exact_ones_alone() -> None:
    images = torch.cat([pictures(12), noisy(pictures(12), 1), pictures(1)])
    assert [(d.index, d.kind) for d in find(images, near_limit=0)] == [(24, 'exact')]


def test_a_symmetrical_image_equals_itself_not_its_mirror() -> None:
    image = pictures(1)[0]
    image = torch.maximum(image, image.flip(2))
    assert [d.kind for d in find(torch.stack([image, image]))] == ['exact']


def test_duplicates_do_not_chain() -> None:
    """Steps of a slow change: each is near the one before, but all that repeat an image must be near that one."""
    steps = torch.stack([torch.full([1, SIDE, SIDE], 100 + 5 * i, dtype=torch.uint8) for i in range(9)])
    limit = (2 * 5 / 127.5) ** 2 * 1.01
    found = find(steps, limit)
    assert {d.index: d.first for d in found} == {1: 0, 2: 0, 4: 3, 5: 3, 7: 6, 8: 6}
    assert all(d.mse <= limit for d in found)


def test_groups_follow_a_duplicate_of_a_duplicate_to_the_first() -> None:
    images = pictures(5)
    images[1] = noisy(images[0], 2)
    images[4] = images[1]
    found = find(images)
    assert [(d.index, d.first, d.kind) for d in found] == [(1, 0, 'near'), (4, 1, 'exact')]
    assert {first: [d.index for d in members] for first, members in groups(found).items()} == {0: [1, 4]}


@pytest.mark.parametrize('block', [2**25, 40])
def test_candidates_miss_no_pair_that_a_search_of_all_pairs_finds(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, 'MAX_BLOCK', block)
    base = pictures(8, seed=1)
    images = to_float(torch.cat([noisy(base, 40 * k + 1, seed=k) for k in range(4)] + [noisy(base.flip(3), 30)]))
    limit = 0.15
    candidates = {(i, j, m) for i, matches in near_candidates(thumbnails(images), limit) for j, m in matches}
    true = set()
    for (i, a), (j, b) in itertools.product(enumerate(images), repeat=2):
        for mirrored in (False, True):
            if j < i and float(((a.flip(2) if mirrored else a) - b).square().mean()) <= limit:
                true.add((i, j, mirrored))
    assert len(true) > 40 and true <= candidates
    assert len(candidates) < 0.2 * len(images) * (len(images) - 1)  # They leave out most of what is far.


def test_thumbnails_are_never_farther_apart_than_images() -> None:
    a, b = to_float(pictures(50)), to_float(noisy(pictures(50), 60))
    thumbs = (thumbnails(a).double() - thumbnails(b).double()).square().mean(dim=[1, 2, 3]).sqrt()
    full = (a - b).double().square().mean(dim=[1, 2, 3]).sqrt()
    assert (thumbs <= full + duplicates.ROUNDING).all()


def test_a_crowd_of_nearly_equal_images_is_bounded_and_all_found() -> None:
    crowd = torch.stack([noisy(pictures(1)[0], 2, seed=i) for i in range(100)])
    per_image = [len(matches) for _i, matches in near_candidates(thumbnails(to_float(crowd)), 0.01)]
    assert len(per_image) == 99 and max(per_image) == duplicates.MAX_MATCHES
    assert [(d.index, d.first) for d in find(crowd)] == [(i, 0) for i in range(1, 100)]


@pytest.mark.parametrize('d', [5, 200])
def test_closest_codes(d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, 'MAX_BLOCK', 300)
    codes = torch.randn([90, d], generator=torch.Generator().manual_seed(0))
    codes[70], codes[3] = codes[7] + 0.01, codes[50] + 0.02
    found = closest_codes(codes, 10)
    assert [(a, b) for a, b, _gap in found[:2]] == [(7, 70), (3, 50)]
    exact = torch.cdist(codes.double(), codes.double())
    assert [gap for _a, _b, gap in found] == pytest.approx([float(exact[a, b]) for a, b, _gap in found], rel=1e-3)
    assert len(found) <= 10 and all(a < b for a, b, _gap in found)
    if d <= 64:
        nearest = sorted(set(exact.fill_diagonal_(np.inf).amin(dim=1).tolist()))
        assert [gap for _a, _b, gap in found] == pytest.approx(nearest[: len(found)], rel=1e-3)


def test_closest_codes_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [(a, b) for a, b, _gap in closest_codes(torch.tensor([[0.0], [5.0]]), 10)] == [(0, 1)]
