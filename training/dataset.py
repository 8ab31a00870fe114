"""Data sets as the training loop and the metrics see them: uint8 images, float32 labels, picklable for workers."""

import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from dnnlib.util import EasyDict, UserError
from training import data_loading, image_cache
from training.image_reader import ImageReader


def split_indices(num_images: int, split: str | None, val_share: float, val_seed: int) -> np.ndarray:
    """Which images belong to a split: the same for everyone who names the same share and seed.

    Args:
        num_images: How many images there are.
        split: 'train', 'val', or None = all of them.
        val_share: Share of images held out, 0 ≤ val_share < 1. At least one image if above 0.
        val_seed: Which ones.

    Returns:
        Sorted int64 indices.
    """
    everything = np.arange(num_images, dtype=np.int64)
    if split not in (None, 'train', 'val'):
        raise UserError(f'split: got {split!r}, expected \'train\', \'val\' or None')
    if not 0 <= val_share < 1:
        raise UserError(f'val_share: got {val_share}, expected 0 <= share < 1')
    if split is None:
        return everything
    num_val = math.ceil(val_share * num_images - 1e-9)  # 0.07 * 100 is a hair above 7 in floating point.
    if split == 'val' and num_val == 0:
        raise UserError('split: nothing is held out with val_share=0; hold out a share, or use the whole data set')
    if num_val >= num_images:
        raise UserError(f'{num_images} images: a held-out share of {val_share} leaves none to train on; take more, or '
                        'hold out none (train.py --val=none)')
    order = np.random.RandomState(val_seed).permutation(everything)
    return np.sort(order[:num_val] if split == 'val' else order[num_val:])


class Dataset(torch.utils.data.Dataset):
    """Images with optional labels. Subclasses say where they come from.

    An item is `(image, label)`: uint8 [channels, height, width], values 0 … 255, and float32 [label_dim].
    Order of choices: split, then `max_size`, then `xflip`.
    """

    def __init__(
        self,
        name: str,  # Name of the data set; metric caches are named after it.
        raw_shape: list[int],  # [N, channels, height, width] of all images there are.
        max_size: int | None = None,  # Use a random subset of this many images. None = all.
        use_labels: bool = False,  # False = label_dim is 0.
        xflip: bool = False,  # Add the mirror image of each. Never done to the 'val' split.
        random_seed: int = 0,  # Chooses the subset of max_size.
        split: str | None = None,  # 'train' | 'val' | None = all.
        val_share: float = 0.0,  # Share of the images held out for 'val'.
        val_seed: int = 0,  # Chooses the held-out images.
    ) -> None:
        if max_size is not None and max_size < 1:
            raise UserError(f'max_size: got {max_size}, expected at least 1 image')
        self._name = name
        self._raw_shape = list(raw_shape)
        self._use_labels = use_labels
        self._labels: np.ndarray | None = None
        self._label_shape: list[int] | None = None
        chosen = split_indices(self._raw_shape[0], split, val_share, val_seed)
        if max_size is not None and max_size < len(chosen):
            chosen = np.sort(np.random.RandomState(random_seed).permutation(chosen)[:max_size])
        copies = 2 if xflip and split != 'val' else 1
        self._indices = np.tile(chosen, copies)
        self._flipped = np.arange(len(self._indices)) >= len(chosen)

    def _load_raw_image(self, raw_idx: int) -> np.ndarray:
        """Image number `raw_idx` of all there are: uint8 [channels, height, width]."""
        raise NotImplementedError

    def _load_raw_labels(self) -> np.ndarray | None:
        """Labels of all images: int64 [N] class numbers, float32 [N, D] vectors, or None."""
        raise NotImplementedError

    def close(self) -> None:
        """Releases files. The data set stays usable: they are opened again when needed."""

    def __del__(self) -> None:
        try:
            self.close()
        except Exception:  # An object whose constructor failed, or the interpreter's end: nothing left to tell.
            pass

    def _raw_labels(self) -> np.ndarray:
        if self._labels is None:
            loaded = self._load_raw_labels() if self._use_labels else None
            self._labels = np.zeros([self._raw_shape[0], 0], np.float32) if loaded is None else loaded
        return self._labels

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, idx: int) -> tuple[np.ndarray, np.ndarray]:
        image = self._load_raw_image(int(self._indices[idx]))
        if image.dtype != np.uint8 or list(image.shape) != self.image_shape:
            raise UserError(f'{self._name}: image {idx} is {image.dtype} {list(image.shape)}, '
                            f'expected uint8 {self.image_shape}')
        return (image[:, :, ::-1] if self._flipped[idx] else image).copy(), self.get_label(idx)

    def get_label(self, idx: int) -> np.ndarray:
        """Label of item `idx`: float32 [label_dim], one-hot for class numbers, empty without labels."""
        label = self._raw_labels()[self._indices[idx]]
        if not self.has_onehot_labels:
            return np.array(label, dtype=np.float32)
        one_hot = np.zeros(self.label_shape, dtype=np.float32)
        one_hot[label] = 1
        return one_hot

    def places(self, items: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Of each item: its number among all images (int64), and whether it is shown mirrored (bool)."""
        chosen = np.asarray(items, dtype=np.int64)
        return self._indices[chosen], self._flipped[chosen]

    def stream(
        self, items: Iterable[int], batch_size: int, device: torch.device, num_workers: int | None = None,
        **loader_kwargs: Any,
    ) -> data_loading.Batches:
        """Batches of the items, made ahead: see `data_loading.stream`. Close it when done."""
        return data_loading.stream(self, items, batch_size, device, num_workers, **loader_kwargs)

    def get_details(self, idx: int) -> EasyDict:
        """`raw_idx` among all images, `xflip`, and `raw_label` as stored."""
        raw_idx = int(self._indices[idx])
        return EasyDict(raw_idx=raw_idx, xflip=bool(self._flipped[idx]), raw_label=self._raw_labels()[raw_idx].copy())

    @property
    def name(self) -> str:
        return self._name

    @property
    def image_shape(self) -> list[int]:
        """[channels, height, width]"""
        return self._raw_shape[1:]

    @property
    def num_channels(self) -> int:
        return self.image_shape[0]

    @property
    def resolution(self) -> int:
        """Width and height. ValueError if they differ."""
        _, height, width = self.image_shape
        if height != width:
            raise ValueError(f'{self._name}: images are {width}x{height}, not square')
        return height

    @property
    def label_shape(self) -> list[int]:
        """[label_dim]. Taken from all images, so that every subset of a data set has the same."""
        if self._label_shape is None:
            labels = self._raw_labels()
            self._label_shape = [int(labels.max()) + 1] if self.has_onehot_labels else list(labels.shape[1:])
        return list(self._label_shape)

    @property
    def label_dim(self) -> int:
        return self.label_shape[0]

    @property
    def has_labels(self) -> bool:
        return self.label_dim > 0

    @property
    def has_onehot_labels(self) -> bool:
        return self._raw_labels().dtype == np.int64


class ImageFolderDataset(Dataset):
    """Square images of one size in a folder or zip, as `dataset_tool.py` writes them.

    Args:
        path: Folder or zip.
        resolution: Width and height that the images must have. None = whatever they have.
        name: None = file name of `path` without extension.
        super_kwargs: See `Dataset`.

    Raises:
        UserError: Missing or damaged file, no images, or (also later, when an item is read) an image that is
            damaged, not square, transparent, or unlike the first one.
    """

    def __init__(
        self,
        path: str,
        resolution: int | None = None,
        name: str | None = None,
        **super_kwargs: Any,
    ) -> None:
        self.reader = ImageReader(path, resolution)
        stem = os.path.splitext(os.path.basename(os.path.abspath(path)))[0]
        shape = [len(self.reader.archive.names), *self.reader.image_shape]
        super().__init__(name=name or stem, raw_shape=shape, **super_kwargs)

    @property
    def is_plain(self) -> bool:
        """Whether items are images of `reader`, mirrored or not, so that others may read them: unless a subclass
        changes them."""
        changing = ('__getitem__', '_load_raw_image', 'places')
        return all(getattr(type(self), name) is getattr(ImageFolderDataset, name) for name in changing)

    def image_name(self, idx: int) -> str:
        """File name of item `idx` inside the folder or zip."""
        return self.reader.archive.names[int(self._indices[idx])]

    def check_headers(self) -> None:
        """UserError if an image's header doesn't fit the first image; see `ImageReader.check_headers`."""
        self.reader.check_headers()

    def close(self) -> None:
        if 'reader' in self.__dict__:
            self.reader.archive.close()

    def _load_raw_image(self, raw_idx: int) -> np.ndarray:
        cache = image_cache.recall(self.reader)
        return self.reader.read(raw_idx) if cache is None else cache.fetch(raw_idx, self.reader)

    def _load_raw_labels(self) -> np.ndarray | None:
        return self.reader.archive.label_array()
