"""Pictures of edits, `steps` of each image in turn: drawn in batches, measured, written, and kept small for a strip."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lia_plugin import similarity
from lia_plugin.codes import Codes
from lia_plugin.edit_session import Session
from lia_plugin.images import save_png, to_float
from lia_plugin.paste_back import CodePaster


@dataclass
class EditedPictures:
    """How the pictures of one command are drawn and written."""

    session: Session
    steps: int  # Pictures of each image.
    names: Sequence[str]  # Of each picture.
    images: bool  # Write each as a file of its own.
    paster: CodePaster | None  # Put each back into its full picture.

    def draw(
        self, codes: Codes, before: torch.Tensor, most: int, tiles: Callable[[torch.Tensor, int], list[torch.Tensor]]
    ) -> tuple[list[torch.Tensor], list[float]]:
        """Draws N·steps codes of N images; `before` are pixels uint8 NCHW of these.

        Gives `tiles(pictures, number of the first)` of the first `most` images, and each picture's MSE to its image
        before, in [-1, 1].
        """
        shown: list[torch.Tensor] = []
        mse: list[float] = []
        for batch in self.session.render_batches(codes.code, codes.c, codes.noise, desc='Drawing'):
            first = len(mse)
            own = before[[k // self.steps for k in range(first, first + len(batch))]]
            mse += similarity.mse(to_float(batch), to_float(own)).tolist()
            self._write(batch, first)
            if first < most * self.steps:
                shown += tiles(batch[: most * self.steps - first], first)
        return shown, mse

    def _write(self, pictures: torch.Tensor, first: int) -> None:
        for k, img in enumerate(pictures, first):
            path = os.path.join(self.session.outdir, self.names[k])
            if self.images:
                save_png(img, f'{path}.png')
            if self.paster is not None:
                self.paster.save(k // self.steps, img, f'{path}_pasted.png')
