"""Makes a data set for training out of any source: decode, flatten, crop, scale, check that all are alike, write."""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator

import numpy as np
import PIL.Image

from dnnlib.util import UserError, usable_cpus
from training.dataset_sources import ArraySource, Source, listed, open_source
from training.dataset_writers import check_dest, encode_png, image_name, label_json, open_dest
from training.image_archive import LABEL_FILE, Label
from training.image_decode import MAX_PIXELS

TRANSFORMS = ('center-crop', 'center-crop-wide')
RESIZE_FILTERS = {'box': PIL.Image.Resampling.BOX, 'lanczos': PIL.Image.Resampling.LANCZOS}
ALPHA_CHOICES = {'white': 255, 'black': 0, 'refuse': None}
COLOR_CHOICES = ('auto', 'rgb', 'grey')
ON_ERROR_CHOICES = ('stop', 'skip')

_CHUNK = 16  # Images sent to a worker at once.
_FEW_IMAGES = 256  # Fewer are done before worker processes have started.
_GREY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's mode L.


@dataclasses.dataclass(frozen=True)
class Options:
    """What is done to each image."""

    width: int | None = None  # Of the output. None = as in the input.
    height: int | None = None
    transform: str | None = None  # One of TRANSFORMS. None = scale, even if that stretches.
    resize_filter: str = 'lanczos'  # A key of RESIZE_FILTERS.
    alpha: str = 'white'  # A key of ALPHA_CHOICES: what lies behind transparent pixels.
    color: str = 'auto'  # One of COLOR_CHOICES; auto = as the first image.
    on_error: str = 'stop'  # One of ON_ERROR_CHOICES.
    include: str | None = None  # File with the names of the images to take, one a line. None = all.
    max_images: int | None = None  # Write no more than this. None = all.
    workers: int | None = None  # Processes. 0 = none besides this one, None = one for each CPU.

    def check(self) -> None:
        """UserError, named after the command line's option, if something can't be done."""
        for name, value in (('--width', self.width), ('--height', self.height), ('--max-images', self.max_images)):
            if value is not None and value < 1:
                raise UserError(f'{name}: got {value}, expected at least 1')
        if (self.width or 1) * (self.height or 1) > MAX_PIXELS:
            raise UserError(f'--resolution: {self.width}x{self.height} is more than {MAX_PIXELS} pixels')
        if self.transform is not None and (self.width is None or self.height is None):
            raise UserError(f'--transform={self.transform}: say the size too, as --resolution=256x256')
        if self.transform == 'center-crop-wide' and (self.height or 0) > (self.width or 0):
            raise UserError(f'--transform=center-crop-wide: {self.width}x{self.height} is not wide')


def _images(number: int) -> str:
    return f'{number} image{"" if number == 1 else "s"}'


@dataclasses.dataclass
class Report:
    """What became of a source."""

    num_images: int = 0  # Written.
    shape: tuple[int, int, int] = (0, 0, 0)  # Height, width, channels of each.
    label_kind: str = 'no labels'
    skipped: list[str] = dataclasses.field(default_factory=list)  # One error line for each bad image.
    counts: Counter[str] = dataclasses.field(default_factory=Counter)  # What was done to how many images.
    ignored: list[str] = dataclasses.field(default_factory=list)  # Files that are no images.

    def summary(self) -> str:
        height, width, channels = self.shape
        return f'{_images(self.num_images)}, {width}x{height} {"RGB" if channels == 3 else "grey"}, {self.label_kind}'

    def notes(self) -> list[str]:
        """Lines for what the user may not expect."""
        notes = [f'{_images(number)} {what}' for what, number in sorted(self.counts.items())]
        if self.skipped:
            notes.append(f'{_images(len(self.skipped))} skipped: unusable')
        if self.ignored:
            kinds = sorted({os.path.splitext(name)[1].lower() or 'no extension' for name in self.ignored})
            notes.append(f'{len(self.ignored)} other files ignored ({", ".join(kinds[:8])})')
        height, width, _ = self.shape
        if width != height or width & (width - 1):
            notes.append(f'{width}x{height} can\'t be trained on: that takes squares with a side of 2^n (--resolution)')
        return notes


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """One image, done: pixels or the reason why there are none."""

    index: int
    pixels: np.ndarray | None = None  # uint8 [height, width, 1 or 3]. None = unusable, or dropped.
    error: str | None = None
    done: tuple[str, ...] = ()  # What was done to it, as counted in the report.


# ---- One image ----


def flatten_alpha(pixels: np.ndarray, background: int | None, where: str) -> tuple[np.ndarray, bool]:
    """Lays an image with alpha over a background.

    Args:
        pixels: uint8 [height, width, channels], channels 1 … 4.
        background: Grey level behind transparent pixels. None = refuse them.
        where: How errors call the image.

    Returns:
        uint8 [height, width, 1 or 3], and whether anything was transparent.
    """
    channels = pixels.shape[2]
    if channels in (1, 3):
        return pixels, False
    color, alpha = pixels[:, :, :-1], pixels[:, :, -1:].astype(np.uint32)
    if np.all(alpha == 255):
        return color, False
    if background is None:
        raise UserError(f'{where}: has transparent pixels; choose what lies behind them with --alpha=white|black')
    return ((color * alpha + background * (255 - alpha) + 127) // 255).astype(np.uint8), True


def resize(pixels: np.ndarray, width: int, height: int, resize_filter: str) -> np.ndarray:
    """uint8 [H, W, 1 or 3] → [height, width, 1 or 3]. Unchanged if it has that size already."""
    if pixels.shape[:2] == (height, width):
        return pixels
    image = PIL.Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return np.asarray(image.resize((width, height), RESIZE_FILTERS[resize_filter])).reshape(height, width, -1)


def center_crop(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """The largest centred part with the proportions width : height."""
    rows, columns = pixels.shape[:2]
    new_rows = min(rows, max(round(columns * height / width), 1))
    new_columns = min(columns, max(round(rows * width / height), 1))
    top, left = (rows - new_rows) // 2, (columns - new_columns) // 2
    return pixels[top:top + new_rows, left:left + new_columns]


def center_crop_wide(pixels: np.ndarray, width: int, height: int, resize_filter: str) -> np.ndarray | None:
    """LSUN's wide pictures on a black square of width x width; None if the image is too small.

    The geometry is that of the published LSUN Car sets, so that their results can be repeated: as many rows are kept as
    the whole picture would have at the output's width, *before* scaling. A wider picture is therefore stretched.
    """
    rows, columns = pixels.shape[:2]
    kept = round(width * rows / columns)
    if columns < width or kept < height:
        return None
    top = (rows - kept) // 2
    band = resize(pixels[top:top + kept], width, height, resize_filter)
    canvas = np.zeros((width, width, pixels.shape[2]), np.uint8)
    above = (width - height) // 2
    canvas[above:above + height] = band
    return canvas


def _transform(pixels: np.ndarray, options: Options) -> tuple[np.ndarray | None, list[str]]:
    rows, columns = pixels.shape[:2]
    width, height = options.width or columns, options.height or rows
    done = []
    if options.transform == 'center-crop-wide':
        result = center_crop_wide(pixels, width, height, options.resize_filter)
        return result, [] if result is not None else ['dropped: smaller than asked for']
    if options.transform == 'center-crop':
        pixels = center_crop(pixels, width, height)
    elif abs(columns * height - rows * width) > max(columns, rows):  # More than rounding to whole pixels explains.
        done.append('stretched to other proportions; --transform=center-crop crops instead')
    if min(pixels.shape[0] / height, pixels.shape[1] / width) < 1:
        done.append('enlarged: smaller than asked for')
    return resize(pixels, width, height, options.resize_filter), done


def to_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Grey → RGB by repetition, RGB → grey by luminance."""
    if pixels.shape[2] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=2)
    return np.rint(pixels @ np.array(_GREY_WEIGHTS)).astype(np.uint8)[:, :, np.newaxis]


def _convert_one(source: Source, options: Options, index: int) -> _Outcome:
    try:
        pixels, was_transparent = flatten_alpha(source.load(index), ALPHA_CHOICES[options.alpha], source.where(index))
    except UserError as error:
        return _Outcome(index, error=str(error))
    if options.color != 'auto':
        pixels = to_channels(pixels, 3 if options.color == 'rgb' else 1)
    result, done = _transform(pixels, options)
    if was_transparent and result is not None:
        done.append(f'with transparency laid over {options.alpha}')
    return _Outcome(index, result, done=tuple(done))


# ---- All images ----

_in_worker: tuple[Source, Options] | None = None  # Set once in each worker process, by `_start_worker`.


def _start_worker(source: Source, options: Options) -> None:
    global _in_worker
    _in_worker = source, options
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's business.


def _convert_chunk(indices: list[int]) -> list[_Outcome]:
    assert _in_worker is not None, 'the pool\'s initializer has run'
    return [_convert_one(*_in_worker, index) for index in indices]


def _num_workers(source: Source, options: Options) -> int:
    if options.workers is not None:
        return options.workers
    if isinstance(source, ArraySource):
        return 0  # Nothing to decode: sending the images around would take longer than scaling them.
    num_images = min(len(source), options.max_images or len(source))
    cpus = usable_cpus()
    return cpus if cpus > 1 and num_images > _FEW_IMAGES else 0


def _outcomes(source: Source, options: Options) -> Generator[_Outcome, None, None]:
    """All images in order, done by worker processes if there are many."""
    workers = _num_workers(source, options)
    if workers == 0:
        yield from (_convert_one(source, options, index) for index in range(len(source)))
        return
    indices = iter(range(len(source)))
    chunks = iter(lambda: list(itertools.islice(indices, _CHUNK)), [])
    # Not forked: this process may have threads by now, a progress bar's for one.
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context('spawn'), initializer=_start_worker, initargs=(source, options))
    try:
        # A bounded queue: the results of a whole data set would not fit into memory.
        queue = [pool.submit(_convert_chunk, chunk) for chunk in itertools.islice(chunks, 2 * workers)]
        while queue:
            yield from queue.pop(0).result()
            queue.extend(pool.submit(_convert_chunk, chunk) for chunk in itertools.islice(chunks, 1))
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError('--workers: a worker process died, perhaps for want of memory; try --workers=0') from error
    finally:
        pool.shutdown(cancel_futures=True)


def _fit_in(pixels: np.ndarray, report: Report, where: str) -> np.ndarray:
    """The image as the data set wants it, which the first image decides. UserError if it doesn't fit in."""
    if report.num_images == 0:
        report.shape = (pixels.shape[0], pixels.shape[1], pixels.shape[2])
    height, width, channels = report.shape
    if pixels.shape[:2] != (height, width):
        raise UserError(f'{where}: {pixels.shape[1]}x{pixels.shape[0]}, but the first image is {width}x{height}; '
                        'make them alike with --resolution')
    if pixels.shape[2] > channels:
        raise UserError(f'{where}: in colour, but the first image is grey; choose --color=rgb or --color=grey')
    if pixels.shape[2] < channels:
        report.counts['grey, stored as RGB like the first'] += 1
    return to_channels(pixels, channels)


def _usable(
    outcomes: Iterable[_Outcome], source: Source, options: Options, report: Report, on_skip: Callable[[str], None]
) -> Iterator[tuple[int, np.ndarray]]:
    """(index, pixels) of the images that go into the data set; errors stop or are told and skipped, as asked."""
    for outcome in outcomes:
        try:
            if outcome.error is not None:
                raise UserError(outcome.error)
            report.counts.update(outcome.done)
            if outcome.pixels is not None:
                yield outcome.index, _fit_in(outcome.pixels, report, source.where(outcome.index))
        except UserError as error:
            if options.on_error == 'stop':
                raise UserError(f'{error} (--on-error=skip goes on without it)') from error
            report.skipped.append(str(error))
            on_skip(str(error))


def _label_kind(labels: list[Label] | None) -> str:
    if not labels:
        return 'no labels'
    if isinstance(labels[0], list):
        return f'label vectors of length {len(labels[0])}'
    classes = {label for label in labels if isinstance(label, int)}
    return f'labels of {len(classes)} class{"es" if len(classes) > 1 else ""}'


def convert(
    source_path: str,
    dest: str,
    options: Options,
    progress: Callable[[int, int], None] = lambda done, total: None,
    on_skip: Callable[[str], None] = lambda line: None,
) -> Report:
    """Converts `source_path` (see `open_source`) to the zip or folder `dest`, which appears only when it is complete.

    Args:
        source_path: Folder, archive or URL.
        dest: A name with .zip, or else a folder that is empty or not there.
        options: What to do to each image.
        progress: Called after each image with the number done and the number there will be at most.
        on_skip: Called with one line for each bad image that is skipped.

    Raises:
        UserError: The source can't be read, an image can't be used (`on_error='stop'`), or none can.
    """
    options.check()
    check_dest(dest, source_path)
    source = open_source(source_path)
    report = Report(ignored=source.ignored)
    if options.include is not None:
        whole = len(source)
        source = listed(source, source_path, options.include)
        if len(source) < whole:
            report.counts['left out: not in --include'] = whole - len(source)
    total = min(len(source), options.max_images or len(source))
    kept: list[Label] = []
    with contextlib.closing(_outcomes(source, options)) as outcomes, open_dest(dest) as write:
        usable = _usable(outcomes, source, options, report, on_skip)
        for index, pixels in itertools.islice(usable, options.max_images):
            write(image_name(report.num_images), encode_png(pixels))
            report.num_images += 1
            if source.labels is not None:
                kept.append(source.labels[index])
            progress(report.num_images, total)
        if report.num_images == 0:
            raise UserError(f'{source_path}: none of its {len(source)} images can be used')
        labels = None if source.labels is None else kept
        write(LABEL_FILE, label_json(labels))
    report.label_kind = _label_kind(labels)
    return report
