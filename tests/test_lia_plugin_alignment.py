"""FFHQ's crop from landmarks: closed forms, equivariance, and files of landmarks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from lia_plugin import alignment, landmark_files
from lia_plugin.host import UserError
from lia_plugin.targets import Target

FACE = np.array([[40.0, 50], [60, 50], [50, 60], [42, 70], [58, 70]])  # Upright: eyes 20 apart, mouth 20 below.


def test_an_upright_face_in_closed_form() -> None:
    # 20 between the eyes, 20 down to the mouth: half a side is max(2 * 20, 1.8 * 20) = 40 about (50, 50 + 0.1 * 20).
    p = alignment.face_placement(FACE, (200, 100), 32)
    np.testing.assert_allclose(p.corners, [[10, 12], [90, 12], [90, 92], [10, 92]], atol=1e-9)
    assert p.size == (200, 100) and p.scale == pytest.approx(80 / 32)


def test_a_long_face_goes_by_the_mouth() -> None:
    long = FACE + [[0, 0], [0, 0], [0, 0], [0, 20], [0, 20]]
    side = 2 * 1.8 * 40
    p = alignment.face_placement(long, (200, 200), 16)
    np.testing.assert_allclose(p.corners[0], [50 - side / 2, 50 + 0.1 * 40 - side / 2], atol=1e-9)


@pytest.mark.parametrize('seed', range(4))
def test_the_crop_follows_every_similarity(seed: int) -> None:
    rng = np.random.default_rng(seed)
    face = FACE + rng.normal(size=FACE.shape)
    angle, scale, shift = rng.uniform(-math.pi, math.pi), rng.uniform(0.3, 3), rng.uniform(-50, 50, size=2)
    turn = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    before = alignment.face_placement(face, (100, 100), 32).corners
    after = alignment.face_placement(face @ turn.T + shift, (100, 100), 32).corners
    np.testing.assert_allclose(after, before @ turn.T + shift, atol=1e-9)


def test_the_order_of_left_and_right_makes_no_difference() -> None:
    swapped = FACE[[1, 0, 2, 4, 3]]
    assert alignment.face_placement(swapped, (99, 99), 8) == alignment.face_placement(FACE, (99, 99), 8)


def test_68_landmarks_are_eyes_and_mouth_corners_of_dlib() -> None:
    rng = np.random.default_rng(0)
    many = rng.uniform(0, 100, size=[68, 2])
    for start, centre in ((36, FACE[0]), (42, FACE[1])):
        ring = rng.normal(size=[6, 2])
        many[start : start + 6] = centre + ring - ring.mean(axis=0)
    many[48], many[54] = FACE[3], FACE[4]
    np.testing.assert_allclose(alignment.face_placement(many, (99, 99), 8).array,
                               alignment.face_placement(FACE, (99, 99), 8).array, atol=1e-9)  # fmt: skip


@pytest.mark.parametrize('points, complaint', [
    (np.zeros([5, 2]), 'hardly a pixel apart'), (FACE / 100, 'must be in pixels'),
    (FACE[:4], 'expected 68 points or 5 points'), (FACE * np.nan, 'finite'),
    (np.zeros([5, 3]), 'expected'),
])
def test_refuses_what_is_no_face(points: np.ndarray, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        alignment.face_placement(points, (100, 100), 8)


# Files


def test_names_are_paths_or_file_names_with_or_without_ending(tmp_path: Path) -> None:
    path = tmp_path / 'marks.json'
    path.write_text(json.dumps({'sub/a.png': FACE.tolist(), 'b': FACE[::-1].tolist()}))
    lookup = landmark_files.open_landmarks(str(path))
    np.testing.assert_array_equal(lookup(Target('x.zip', 'sub/a.png', 'a')), FACE)
    np.testing.assert_array_equal(lookup(Target('/in/b.jpg', None, 'b')), FACE[::-1])
    with pytest.raises(UserError, match=r'/in/c.jpg: --align=.*marks.json has no landmarks of it'):
        lookup(Target('/in/c.jpg', None, 'c'))


def test_csv_with_and_without_a_header(tmp_path: Path) -> None:
    row = 'a.png,' + ','.join(str(value) for value in FACE.flatten())
    for text in (row, f'name,x0,y0\n\n# by hand\n{row}\n'):
        (tmp_path / 'marks.csv').write_text(text)
        found = landmark_files.open_landmarks(str(tmp_path / 'marks.csv'))(Target('a.png', None, 'a'))
        np.testing.assert_array_equal(found, FACE)


@pytest.mark.parametrize('content, complaint', [
    ('{"a": [[1]]}', 'pairs'), ('{"a": 1}', 'pairs'), ('{', 'JSON'), ('', 'empty'), ('a,1,2\nb,1,x', 'line 2'),
    ('{"a": [[1, "x"]]}', r'\(a: could not convert'), ('{"a": null}', r'\(a: expected pairs'),
    ('[[1, 2]]', 'without names'),
])
def test_damaged_tables_are_one_line(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / 'marks').write_text(content)
    with pytest.raises(UserError, match=complaint) as caught:
        landmark_files.open_landmarks(str(tmp_path / 'marks'))
    assert str(caught.value).startswith('--align=') and '\n' not in str(caught.value)


def test_files_beside_images(tmp_path: Path) -> None:
    np.save(tmp_path / 'a.npy', FACE)
    np.savetxt(tmp_path / 'b.txt', FACE)
    (tmp_path / 'c.txt').write_text('what')
    for name in 'ab':
        np.testing.assert_array_equal(landmark_files.beside(Target(str(tmp_path / f'{name}.jpg'), None, name)), FACE)
    for name, complaint in (('c', 'c.txt: no landmarks'), ('d', r'no d\.npy or \.txt beside it')):
        with pytest.raises(UserError, match=complaint):
            landmark_files.beside(Target(str(tmp_path / f'{name}.jpg'), None, name))
    with pytest.raises(UserError, match='not for zips'):
        landmark_files.beside(Target('a.zip', 'a.png', 'a'))
