"""What `--target` names: image files, folders, globs and zips, each image with a name for its results."""

from __future__ import annotations

import dataclasses
import functools
import glob
import io
import os
import re
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click

from lia_plugin.host import UserError, parse_labels
from lia_plugin.images import LoadedImage, has_image_extension, read_image
from lia_plugin.placement import Placement

MAX_MEMBER_BYTES = 256 * 1024**2  # No image file of a sane size is larger unpacked; a zip bomb is.
LABEL_FILE = 'dataset.json'

Item = tuple[str, str | None]  # A file, or a zip and a file inside it.


class Target(NamedTuple):
    """One image: `path` alone is a file; with `member` it is a file inside the zip at `path`."""

    path: str
    member: str | None
    name: str  # Unique, without extension, fit for a file name.
    source: str | None = None  # The folder or zip that was named, if it was one: its dataset.json may know the class.

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.path if self.member is None else f'{self.path}:{self.member}'

    @property
    def stored_name(self) -> str:
        """What dataset.json and lists of images call it: '/'-separated, relative to its folder or zip."""
        return (self.member or os.path.relpath(self.path, self.source)).replace('\\', '/')

    @property
    def stem(self) -> str:
        """Its file's name without ending and folder, fit for a file name; of several images it may be the same."""
        return _safe((self.member or self.path).replace('\\', '/').rsplit('/', 1)[-1])

    def read(self, resolution: int, channels: int) -> LoadedImage:
        """Pixels at the network's size and channels. Raises UserError for whatever is wrong with the file."""
        loaded = read_image(self._file(), resolution, channels, name=self.label)
        assert loaded.placement is not None, 'it was fitted'
        return loaded._replace(placement=self.own(loaded.placement))

    def read_full(self, alpha: bool = False) -> LoadedImage:
        """The whole upright picture, with its transparency as one more channel if `alpha`. Raises UserError."""
        return read_image(self._file(), name=self.label, alpha=alpha)

    def own(self, placement: Placement) -> Placement:
        """The same crop, said to be of this picture."""
        return dataclasses.replace(placement, source=self.path, member=self.member)

    def _file(self) -> str | io.BytesIO:
        return self.path if self.member is None else io.BytesIO(_member_bytes(self.path, self.member))


def of_placement(placement: Placement) -> Target:
    """The picture that a crop was cut from."""
    (name,) = _result_names([(placement.source, placement.member)])
    return Target(placement.source, placement.member, name)


def collect(sources: Sequence[str], option: str = '--target', outdir: str | None = None) -> list[Target]:
    """All images that the sources name, sorted within each source, each file once; errors speak of `option`.

    A source that exists as a file is taken whatever its extension; folders are searched with their subfolders and
    zips listed, both for image extensions. What an earlier call has written to `outdir` is left out where a folder or
    pattern leads there from outside; their number is told on stderr.

    Raises:
        UserError: a source that does not exist, is no readable zip, or holds no image.
    """
    found: dict[Item, str | None] = {}
    for source in sources:
        items = _expand(source, option)
        if outdir is not None and _leads_to(source, outdir):
            items = _without_results(items, outdir, f'{option}={source}')
        if not items:
            raise UserError(f'{option}={source}: holds no image file')
        for item, root in items:
            found[item] = found.get(item) or root
    names = _result_names(list(found))
    return [Target(path, member, name, root) for ((path, member), root), name in zip(found.items(), names)]


def stored_labels(targets: Sequence[Target]) -> dict[str, int | list[float]] | None:
    """Name of each target -> its class number or vector in the dataset.json of its folder or zip.

    Returns None if no target's folder or zip has such labels.

    Raises:
        UserError: a damaged dataset.json, or targets without a label beside others that have one.
    """
    tables = {root: _label_table(root) for root in {target.source for target in targets} if root is not None}
    found = {}
    missing = []
    for target in targets:
        label = None if target.source is None else tables[target.source].get(target.stored_name)
        if label is None:
            missing.append(target.label)
        else:
            found[target.name] = label
    if not any(tables.values()):
        return None
    if missing:
        raise UserError(f'{missing[0]}: has no label in a {LABEL_FILE} ({len(missing)} of {len(targets)} images have '
                        'none); --class=N gives all images one class')
    return found


def _label_table(root: str) -> dict[str, int | list[float]]:
    data = _label_file(root)
    if data is None:
        return {}
    return dict(parse_labels(data, f'{root}: {LABEL_FILE}') or {})


def _label_file(root: str) -> bytes | None:
    """Content of the dataset.json of a folder or zip, None if it has none."""
    if not os.path.isdir(root):
        has_labels = LABEL_FILE in _archive(root, os.path.getmtime(root)).namelist()
        return _member_bytes(root, LABEL_FILE) if has_labels else None
    try:
        with open(os.path.join(root, LABEL_FILE), 'rb') as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f'{root}: {LABEL_FILE} cannot be read ({error.strerror})') from None


def _expand(source: str, option: str) -> list[tuple[Item, str | None]]:
    """Images, each with the folder or zip that it was found in."""
    if os.path.isdir(source):
        return [((path, None), source) for path in _image_files(source)]
    if os.path.isfile(source):
        if zipfile.is_zipfile(source) or source.lower().endswith('.zip'):
            return [(item, source) for item in _zip_members(source, option)]
        return [((source, None), None)]
    matches = sorted(glob.glob(source, recursive=True))
    if not matches:
        raise UserError(f'{option}={source}: no such file, folder or pattern')
    images = [match for match in matches if os.path.isdir(match) or has_image_extension(match)]
    return [item for match in images for item in _expand(match, option)]


def _without_results(
    items: list[tuple[Item, str | None]], outdir: str, given: str
) -> list[tuple[Item, str | None]]:
    kept = [item for item in items if not _is_below(item[0][0], outdir)]
    if len(kept) < len(items):
        click.echo(f'{given}: {len(items) - len(kept)} images in {outdir}, where results go, are left out', err=True)
    return kept


def _leads_to(source: str, outdir: str) -> bool:
    """Whether a folder, or the one that a pattern starts from, lies above `outdir`: who names it itself means it."""
    if os.path.isfile(source):
        return False
    folder = source
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder) or os.curdir
    return _is_below(outdir, folder)


def _is_below(path: str, folder: str) -> bool:
    return Path(os.path.realpath(folder)) in Path(os.path.realpath(path)).parents


def _image_files(folder: str) -> list[str]:
    paths = (os.path.join(root, name) for root, _folders, names in os.walk(folder) for name in names)
    return sorted(path for path in paths if has_image_extension(path) and not _is_debris(os.path.relpath(path, folder)))


def _is_debris(name: str) -> bool:
    """What macOS leaves in zips and on foreign disks, `._name.png`: no images. Data sets leave it out too."""
    name = name.replace('\\', '/')
    return name.startswith('__MACOSX/') or name.rsplit('/', 1)[-1].startswith('._')


def _zip_members(path: str, option: str) -> list[Item]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f'{option}={path}: not a readable zip ({error})') from None
    return [(path, name) for name in sorted(set(names)) if has_image_extension(name) and not _is_debris(name)]


@functools.lru_cache(maxsize=2)
def _archive(path: str, changed: float) -> zipfile.ZipFile:
    # Kept open: reading the list of a large zip anew for each image would take longer than the image.
    return zipfile.ZipFile(path)


def _member_bytes(path: str, member: str) -> bytes:
    try:
        with _archive(path, os.path.getmtime(path)).open(member) as file:
            # Read to the limit, not to what the header claims.
            data = file.read(MAX_MEMBER_BYTES + 1)
    except Exception as error:  # Damaged archives raise zlib.error, BadZipFile, EOFError, RuntimeError (passwords) …
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise UserError(f'{path}:{member}: cannot be unpacked ({reason})') from None
    if len(data) > MAX_MEMBER_BYTES:
        raise UserError(f'{path}:{member}: more than {MAX_MEMBER_BYTES >> 20} MB unpacked; refused')
    return data


def _result_names(items: Sequence[Item]) -> list[str]:
    """File names without extension where they differ; else with their folder, else with a number."""
    paths = [(member or path).replace('\\', '/') for path, member in items]
    short = [_safe(path.rsplit('/', 1)[-1]) for path in paths]
    long = [_safe('_'.join(path.split('/')[-2:])) for path in paths]
    repeated = {name for name, count in Counter(name.lower() for name in short).items() if count > 1}
    taken: set[str] = set()
    names = []
    for brief, full in zip(short, long):
        stem = full if brief.lower() in repeated else brief
        name, number = stem, 2
        # Compared without case, because some file systems do.
        while name.lower() in taken:
            name, number = f'{stem}_{number}', number + 1
        taken.add(name.lower())
        names.append(name)
    return names


def _safe(file_name: str) -> str:
    """No extension, nothing that leaves the folder or hides the file."""
    stem = os.path.splitext(file_name)[0]
    return re.sub(r'[^\w.-]+', '_', stem).lstrip('.')[:100] or 'image'
