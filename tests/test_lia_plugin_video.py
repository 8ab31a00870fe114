"""Videos: as many frames as were given, of the right colours, in both formats; the states of a refinement."""

import weakref
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import PIL.Image
import pytest
import torch

from lia_plugin import video
from lia_plugin.host import UserError


def ramp(count: int, height: int = 18, width: int = 21) -> list[torch.Tensor]:
    """Grey frames, each a little lighter."""
    return [torch.full([1, height, width], i * 255 // count, dtype=torch.uint8) for i in range(count)]


def read_mp4(path: Path) -> tuple[dict[str, object], list[np.ndarray]]:
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    width, height = meta['size']
    return meta, [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]


def test_mp4_holds_every_frame(tmp_path: Path) -> None:
    video.save_video(str(tmp_path / 'a.mp4'), ramp(12))
    meta, frames = read_mp4(tmp_path / 'a.mp4')
    assert len(frames) == 12 and meta['fps'] == video.FPS and meta['size'] == (22, 18), 'odd widths get a column'
    for i, frame in enumerate(frames):
        assert abs(float(frame[:, :16].mean()) - i * 255 // 12) < 6
    assert [path.name for path in tmp_path.iterdir()] == ['a.mp4']


def test_gif_holds_every_frame_and_merges_equal_ones(tmp_path: Path) -> None:
    frames = ramp(12)
    video.save_video(str(tmp_path / 'a.gif'), [*frames, *[frames[-1]] * 5], fps=20)
    with PIL.Image.open(tmp_path / 'a.gif') as picture:
        assert picture.n_frames == 12 and picture.size == (21, 18)
        times = []
        for i in range(12):
            picture.seek(i)
            times.append(picture.info['duration'])
            assert abs(int(np.asarray(picture.convert('L'))[0, 0]) - i * 255 // 12) <= 2
    assert times == [50] * 11 + [300]


def test_webp_holds_every_frame_and_plays_for_ever(tmp_path: Path) -> None:
    video.save_video(str(tmp_path / 'a.webp'), ramp(12), fps=30)
    with PIL.Image.open(tmp_path / 'a.webp') as picture:
        assert picture.format == 'WEBP' and picture.n_frames == 12 and picture.size == (21, 18)
        assert picture.info['loop'] == 0
        times = []
        for i in range(12):
            picture.seek(i)
            picture.load()
            times.append(picture.info['duration'])
            assert abs(float(np.asarray(picture.convert('L')).mean()) - i * 255 // 12) <= 3
    assert sum(times) == 400 and set(times) <= {33, 34}
    assert [path.name for path in tmp_path.iterdir()] == ['a.webp']


@pytest.mark.parametrize('fps', [7, 24, 30, 50])
def test_gifs_run_at_the_speed_asked_for_though_they_count_in_hundredths(fps: int, tmp_path: Path) -> None:
    video.save_video(str(tmp_path / 'a.gif'), ramp(fps), fps=fps)
    with PIL.Image.open(tmp_path / 'a.gif') as picture:
        times = []
        for i in range(picture.n_frames):
            picture.seek(i)
            times.append(picture.info['duration'])
    assert len(times) == fps and sum(times) == 1000 and max(times) - min(times) <= 10


def test_speeds_and_sizes_that_a_format_cannot_show(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='GIF shows at most 50 frames a second, asked for are 60'):
        video.save_video(str(tmp_path / 'a.gif'), ramp(2), fps=60)
    with pytest.raises(UserError, match='16400x1 are too large'):
        video.save_video(str(tmp_path / 'a.webp'), ramp(2, height=1, width=16400))
    assert not list(tmp_path.iterdir())


def test_floats_and_pixels_are_the_same(tmp_path: Path) -> None:
    for name, frame in (('a', torch.full([3, 8, 8], 255, dtype=torch.uint8)), ('b', torch.ones([3, 8, 8]))):
        video.save_video(str(tmp_path / f'{name}.gif'), [frame])
    assert (tmp_path / 'a.gif').read_bytes() == (tmp_path / 'b.gif').read_bytes()


def test_bad_frames_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match='at least one'):
        video.save_video(str(tmp_path / 'a.gif'), [])
    with pytest.raises(ValueError, match=r'expected all of size \[3, 8, 8\], got \[3, 9, 8\]'):
        video.save_video(str(tmp_path / 'a.gif'), [torch.zeros([1, 8, 8]), torch.zeros([1, 9, 8])])
    with pytest.raises(UserError, match=r'end in \.mp4, \.gif or \.webp'):
        video.save_video(str(tmp_path / 'a.avi'), ramp(2))
    monkeypatch.setattr(video, 'best_format', lambda: 'gif')
    with pytest.raises(UserError, match='pip install imageio-ffmpeg'):
        video.save_video(str(tmp_path / 'a.mp4'), ramp(2))
    assert not list(tmp_path.iterdir())


def test_a_recorder_keeps_even_steps_and_the_best_of_each_image() -> None:
    img = torch.zeros([2, 1, 8, 8])
    recorder = video.Recorder(img, steps=10, max_frames=6)
    for step in range(11):
        # The first image is best at step 3, which is not shown itself; the second at the end.
        losses = torch.tensor([abs(step - 3.0), 10.0 - step])
        recorder(step, losses, torch.full([2, 1, 8, 8], step / 10))
    assert recorder.steps == [0, 2, 4, 6, 8, 10]
    level = [round(float(value) * 127.5 + 127.5) for value in (0, 0.2, 0.3, 0.3, 0.3, 0.3)]
    best = [int(best[0, 0, 0, 0]) for _progress, best in recorder.states]
    assert np.abs(np.array(best) - level).max() <= 1
    assert [int(best[1, 0, 0, 0]) for _, best in recorder.states] == [
        int(progress[1, 0, 0, 0]) for progress, _ in recorder.states
    ]
    frames = list(recorder.frames(0))
    assert len(frames) == 6 + video.HOLD and len({tuple(frame.shape) for frame in frames}) == 1


def test_short_refinements_show_every_state_and_large_images_are_made_smaller() -> None:
    recorder = video.Recorder(torch.zeros([1, 3, 512, 512]), steps=3)
    assert recorder.wanted == {0, 1, 2, 3} and recorder.original.shape == (1, 3, video.MAX_SIDE, video.MAX_SIDE)


def test_an_mp4_is_written_as_its_frames_come(tmp_path: Path) -> None:
    """The memory that it takes has nothing to do with its length."""
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    def frames() -> Iterator[torch.Tensor]:
        nonlocal most
        for i in range(60):
            frame = torch.full([3, 16, 16], i, dtype=torch.uint8)
            alive.add(frame)
            most = max(most, len(alive))
            yield frame

    video.save_video(str(tmp_path / 'long.mp4'), frames())
    assert len(read_mp4(tmp_path / 'long.mp4')[1]) == 60 and most <= video.AHEAD + 4


def test_an_error_among_the_frames_leaves_no_video(tmp_path: Path) -> None:
    def frames() -> Iterator[torch.Tensor]:
        yield torch.zeros([3, 16, 16], dtype=torch.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        video.save_video(str(tmp_path / 'half.mp4'), frames())
    assert not list(tmp_path.iterdir())
