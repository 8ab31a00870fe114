"""The detector's file and coordinates, with a stand-in for OpenCV and a server on this machine."""

from __future__ import annotations

import hashlib
import http.server
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lia_plugin import face_detector
from lia_plugin.host import UserError

CONTENT = b'a network'
HASH = hashlib.sha256(CONTENT).hexdigest()


class StubNet:
    """What OpenCV gives: rows of box, five landmarks and score, in pixels of the picture it was shown."""

    faces: Any = None

    def __init__(self, path: str) -> None:
        assert Path(path).read_bytes() == CONTENT and path.endswith('.onnx')

    def setInputSize(self, size: tuple[int, int]) -> None:
        self.size = size

    def detect(self, image: np.ndarray) -> tuple[int, Any]:
        assert image.shape == (self.size[1], self.size[0], 3) and image.dtype == np.uint8
        StubNet.seen = image
        return 1, StubNet.faces


@pytest.fixture
def opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    create = SimpleNamespace(create=lambda path, *_: StubNet(path))
    monkeypatch.setitem(sys.modules, 'cv2', SimpleNamespace(FaceDetectorYN=create, error=ValueError, __version__='4.9'))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path / 'cache'))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path.endswith('yunet.onnx') else 404)
            self.end_headers()
            self.wfile.write(CONTENT)

        def log_message(self, *_: Any) -> None:
            pass

    running = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{running.server_port}/yunet.onnx'
    running.shutdown()
    running.server_close()


def test_the_largest_faces_landmarks_in_the_pictures_own_pixels(opencv: None, server: str) -> None:
    detect = face_detector.open_yunet(server, HASH)
    small, large = np.arange(10.0), np.arange(10.0) * 7
    StubNet.faces = np.stack([np.concatenate([np.zeros(4), marks, [0.9]]) for marks in (small, large)])
    picture = torch.zeros([3, 320, 160], dtype=torch.uint8)
    picture[0] = 200  # Red, which OpenCV wants last.
    found = face_detector.landmarks(picture, detect)
    assert StubNet.seen.shape == (640, 320, 3) and StubNet.seen[0, 0].tolist() == [0, 0, 200]
    np.testing.assert_allclose(found, (large.reshape(5, 2) + 0.5) / 2)
    assert face_detector.landmarks(picture[:1], detect) is not None, 'grey pictures, too'
    StubNet.faces = None
    assert face_detector.landmarks(picture, detect) is None


def test_another_file_is_not_used_and_does_not_stay(opencv: None, server: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'--align=detect: .*is not the YuNet of http.*expected 0000'):
        face_detector.open_yunet(server, '0' * 64)
    face_detector.open_yunet(server, HASH)  # The next try fetches it again.
    names = [path.name for path in (tmp_path / 'cache' / 'downloads').iterdir()]
    assert sum(name.endswith('.onnx') for name in names) == 1


def test_without_a_network_the_file_and_its_folder_are_named(opencv: None, server: str, tmp_path: Path) -> None:
    url = server.replace('yunet.onnx', 'none.onnx')
    name = f'{hashlib.md5(url.encode()).hexdigest()}_none.onnx'
    with pytest.raises(UserError, match=f'save it as {name} in {tmp_path}') as caught:
        face_detector.open_yunet(url, HASH)
    (tmp_path / 'cache' / 'downloads').mkdir(parents=True)
    (tmp_path / 'cache' / 'downloads' / name).write_bytes(CONTENT)
    face_detector.open_yunet(url, HASH)
    assert '\n' not in str(caught.value)


def test_without_opencv_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'cv2', None)
    with pytest.raises(UserError, match=r'pip install .lia-plugin\[align\]'):
        face_detector.open_yunet()
    monkeypatch.setitem(sys.modules, 'cv2', SimpleNamespace(__version__='4.1'))
    with pytest.raises(UserError, match='take 4.8'):
        face_detector.open_yunet()
