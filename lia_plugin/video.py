"""Moving pictures: MP4 by ffmpeg (imageio-ffmpeg brings it), GIF and WebP by Pillow, and how a refinement went."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from lia_plugin.background import Background
from lia_plugin.host import UserError, atomic_write, one_line
from lia_plugin.images import side_by_side, to_uint8, with_channels

FORMATS = ('mp4', 'gif', 'webp')
FPS = 25  # GIF counts in hundredths of a second.
MAX_GIF_FPS = 50  # Browsers show frames of under two hundredths of a second for ten.
WEBP_QUALITY = 90
MAX_WEBP_SIDE = 16383  # By the format's 14 bits.
MAX_FRAMES = 125  # Of a refinement: five seconds …
HOLD = 25  # … and its end, for another one.
MAX_SIDE = 256  # Larger images are shown at this size.
AHEAD = 8  # Frames that wait for ffmpeg at most.


def best_format() -> str:
    """'mp4' where ffmpeg is at hand, else 'gif'."""
    return 'mp4' if importlib.util.find_spec('imageio_ffmpeg') else 'gif'


def check_format(kind: str, fps: int = FPS) -> None:
    """UserError if videos of this format can't be written here, or not with so many frames a second."""
    if kind == 'mp4' and best_format() != 'mp4':
        raise UserError('MP4 needs ffmpeg: pip install imageio-ffmpeg, or take gif or webp')
    if kind == 'webp' and not _has_webp():
        raise UserError('WebP: this Pillow was built without it; take mp4 or gif')
    if kind == 'gif' and fps > MAX_GIF_FPS:
        raise UserError(f'GIF shows at most {MAX_GIF_FPS} frames a second, asked for are {fps}; take mp4 or webp')


def check_name(path: str, fps: int = FPS) -> str:
    """The format that a file's name asks for. UserError if there is none, or `check_format` refuses it."""
    kind = os.path.splitext(path)[1].lower().removeprefix('.')
    if kind not in FORMATS:
        raise UserError(f'{path}: videos end in .mp4, .gif or .webp')
    check_format(kind, fps)
    return kind


def _has_webp() -> bool:
    import PIL.features

    return bool(PIL.features.check('webp'))


def save_video(path: str, frames: Iterable[torch.Tensor], fps: int = FPS) -> None:
    """Writes frames, CHW of one size and 1 or 3 channels, floats in [-1, 1] or pixels; whole or not at all.

    The name's ending says the format. MP4 is H.264 with 4:2:0 colours, which players take; odd sizes get a white
    line more. GIF has 256 colours a frame, and equal frames in a row become one that stays longer, as they do in WebP.
    GIF and WebP play for ever.

    Raises:
        UserError: an unknown ending, too many frames a second for GIF, or ffmpeg is missing or failed.
        ValueError: no frame, or one of another size.
    """
    kind = check_name(path, fps)
    with tempfile.TemporaryDirectory() as folder:
        draft = os.path.join(folder, f'video.{kind}')
        {'mp4': _write_mp4, 'gif': _write_gif, 'webp': _write_webp}[kind](draft, _arrays(frames), fps)
        with open(draft, 'rb') as done, atomic_write(path) as file:
            shutil.copyfileobj(done, file)


def _arrays(frames: Iterable[torch.Tensor]) -> Iterator[npt.NDArray[np.uint8]]:
    """Frames as [H, W, 3], sizes checked."""
    size = None
    for frame in frames:
        pixels = with_channels(frame if frame.dtype == torch.uint8 else to_uint8(frame), 3)
        if size is not None and pixels.shape != size:
            raise ValueError(f'frames: expected all of size {list(size)}, got {list(pixels.shape)}')
        size = pixels.shape
        yield np.ascontiguousarray(pixels.cpu().permute(1, 2, 0).numpy())
    if size is None:
        raise ValueError('frames: expected at least one, got none')


def _write_gif(path: str, frames: Iterator[npt.NDArray[np.uint8]], fps: int) -> None:
    import PIL.Image

    def picture(index: int, frame: npt.NDArray[np.uint8]) -> PIL.Image.Image:
        made = PIL.Image.fromarray(frame)
        made.info['duration'] = _duration(index, fps, unit=10)
        return made

    pictures = (picture(i, frame) for i, frame in enumerate(frames))
    next(pictures).save(path, save_all=True, append_images=pictures, loop=0)


def _duration(index: int, fps: int, unit: int) -> int:
    """Milliseconds that a frame stays, a multiple of `unit`; what rounding takes from one, another gets."""
    ends = [round(1000 * i / fps / unit) for i in (index, index + 1)]
    return (ends[1] - ends[0]) * unit


def _write_webp(path: str, frames: Iterator[npt.NDArray[np.uint8]], fps: int) -> None:
    import PIL.Image

    first = PIL.Image.fromarray(next(frames))
    if max(first.size) > MAX_WEBP_SIDE:
        raise UserError(f'WebP: frames of {first.width}x{first.height} are too large for it; take mp4')
    others = [PIL.Image.fromarray(frame) for frame in frames]
    times = [_duration(i, fps, unit=1) for i in range(len(others) + 1)]
    first.save(path, format='WEBP', save_all=True, append_images=others, duration=times, loop=0, quality=WEBP_QUALITY)


def _write_mp4(path: str, frames: Iterator[npt.NDArray[np.uint8]], fps: int) -> None:
    import imageio_ffmpeg

    first = next(frames)
    height, width = first.shape[:2]
    even = [(0, height % 2), (0, width % 2), (0, 0)]
    size = (width + width % 2, height + height % 2)
    writer = imageio_ffmpeg.write_frames(path, size, fps=fps, codec='libx264', quality=8, macro_block_size=2,
                                         ffmpeg_log_level='error')  # fmt: skip

    def send(frame: npt.NDArray[np.uint8]) -> None:
        writer.send(np.pad(frame, even, constant_values=255).tobytes())

    try:
        with contextlib.closing(writer), Background(threads=1, most_waiting=AHEAD) as background:
            writer.send(None)
            for frame in itertools.chain([first], frames):  # No tuple of them: that would keep them all.
                background.do(send, frame)
    except OSError as error:  # A pipe that broke carries ffmpeg's own words.
        raise UserError(f'{path}: ffmpeg failed ({one_line(error)})') from error


class Recorder:
    """Keeps evenly spaced states of a refinement as its callback: original | progress | best so far, image by image."""

    def __init__(self, img: torch.Tensor, steps: int, max_frames: int = MAX_FRAMES) -> None:
        self.original = _shown(img)
        self.wanted = {round(step) for step in np.linspace(0, steps, min(max_frames, steps + 1))}
        self.best_losses: torch.Tensor | None = None
        self.best = self.original
        self.steps: list[int] = []
        self.states: list[tuple[torch.Tensor, torch.Tensor]] = []  # uint8 NCHW each: progress, best.

    def __call__(self, step: int, losses: torch.Tensor, recon: torch.Tensor) -> None:
        won = torch.isfinite(losses) if self.best_losses is None else losses < self.best_losses
        if step not in self.wanted and not won.any():
            return
        progress, won = _shown(recon), won.cpu()
        self.best = torch.where(won[:, None, None, None], progress, self.best)
        self.best_losses = losses if self.best_losses is None else torch.minimum(losses, self.best_losses)
        if step in self.wanted:
            self.steps.append(step)
            self.states.append((progress, self.best))

    def frames(self, index: int) -> Iterator[torch.Tensor]:
        """The frames of one image, the last one held for a second."""
        frame = None
        for step, (progress, best) in zip(self.steps, self.states):
            trio = [self.original[index], progress[index], best[index]]
            frame = side_by_side(trio, ['original', f'step {step}', 'best'])
            yield frame
        if frame is not None:
            yield from [frame] * HOLD


def _shown(img: torch.Tensor) -> torch.Tensor:
    """NCHW floats -> uint8 on the CPU, no larger than MAX_SIDE."""
    if img.shape[2] > MAX_SIDE:
        img = F.interpolate(img, size=[MAX_SIDE, MAX_SIDE], mode='area')
    return to_uint8(img).cpu()
