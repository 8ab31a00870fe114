"""Five landmarks of the largest face in a picture, by OpenCV's YuNet: the optional `[align]` extra.

YuNet (Wu, Peng and Yu 2023, MIT licence) is a file of 233 kB. It is downloaded once, and is what it should be or is not
used.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import torch

from lia_plugin.host import UserError, cached_download, fetch, file_hash
from lia_plugin.images import to_pil
from lia_plugin.placement import Array

MODEL_URL = (
    'https://github.com/opencv/opencv_zoo/raw/82b38c8f98e7b52aa171400f3e4c722352d0669f/models/face_detection_yunet/'
    'face_detection_yunet_2023mar.onnx'
)
MODEL_SHA256 = '8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4'
LONGEST_SIDE = 640  # Pictures are brought to it: YuNet finds faces of about 10 to 300 pixels.
MIN_SCORE = 0.6

Detector = Callable[[torch.Tensor], Array]  # uint8 RGB [3, H, W] -> faces [N, 11]: landmarks x, y of five, and score.


def landmarks(pixels: torch.Tensor, detect: Detector) -> Array | None:
    """Eyes, nose and corners of the mouth [5, 2] of the largest face of a picture uint8 [C, H, W]; None without any."""
    picture = to_pil(pixels).convert('RGB')
    factor = LONGEST_SIDE / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    small = np.asarray(picture.resize(size, PIL.Image.Resampling.LANCZOS))
    faces = detect(torch.from_numpy(small.transpose(2, 0, 1).copy()))
    if len(faces) == 0:
        return None
    points = faces[:, :10].reshape(-1, 5, 2)
    extent = np.ptp(points, axis=1).prod(axis=1)
    found = points[int(np.argmax(extent))]
    # OpenCV's coordinates are those of pixels' centres.
    return (found + 0.5) * (np.array(picture.size) / np.array(size))


def open_yunet(url: str = MODEL_URL, sha256: str = MODEL_SHA256) -> Detector:
    """The detector, its file fetched if it is not in the cache.

    Raises:
        UserError: OpenCV is missing, the file can't be had, or is another one.
    """
    cv2 = _opencv()
    path = _model(url, sha256)
    try:
        net = cv2.FaceDetectorYN.create(path, '', (LONGEST_SIDE, LONGEST_SIDE), MIN_SCORE, 0.3, 5000)
    except cv2.error as error:
        raise UserError(f'--align=detect: {path}: OpenCV {cv2.__version__} cannot read it ({error})') from None

    def detect(pixels: torch.Tensor) -> Array:
        image = np.ascontiguousarray(pixels.numpy()[::-1].transpose(1, 2, 0))  # BGR
        net.setInputSize((image.shape[1], image.shape[0]))
        faces = net.detect(image)[1]
        return np.zeros([0, 11]) if faces is None else faces[:, 4:15].astype(np.float64)

    return detect


def _opencv() -> Any:
    try:
        import cv2
    except ImportError:
        raise UserError("--align=detect: OpenCV is missing: pip install 'lia-plugin[align]' (opencv-python-headless); "
                        'or give landmarks, --align=FILE') from None
    if not hasattr(cv2, 'FaceDetectorYN'):
        raise UserError(f'--align=detect: OpenCV {cv2.__version__} has no FaceDetectorYN; take 4.8 or newer')
    return cv2


def _model(url: str, sha256: str) -> str:
    known = cached_download(url) is not None
    try:
        path = fetch(url)
    except UserError as error:
        raise UserError(f'--align=detect: {error}') from None
    found = file_hash(path)
    if found != sha256:
        if not known:  # What was downloaded just now must not stand in the way of the next try.
            os.remove(path)
        raise UserError(f'--align=detect: {path}: is not the YuNet of {url} (SHA-256 {found[:12]}…, expected '
                        f'{sha256[:12]}…); put the right file there')
    return _for_opencv(path)


def _for_opencv(path: str) -> str:
    """A path that ends in .onnx, by which OpenCV tells what it is."""
    if path.lower().endswith('.onnx'):
        return path
    named = f'{path}.onnx'
    if not os.path.isfile(named):
        shutil.copyfile(path, named)
    return named
