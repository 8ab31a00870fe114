"""A network at hand for editing: inputs become codes, codes become pictures, the same way in every command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click
import torch

from lia_plugin import codes, inversion, memory, sampling, spaces
from lia_plugin.codes import Codes
from lia_plugin.host import UserError, load_network_pkl
from lia_plugin.images import to_uint8
from lia_plugin.outputs import check_output
from lia_plugin.process_options import use_precision

MAX_TOLD = 5


@dataclass
class Session:
    """G_ema of a pickle, frozen, on its device, and how it is to draw."""

    G: Any
    network: str
    device: torch.device
    outdir: str = 'out'
    trunc: float = 1.0
    class_idx: int | None = None
    noise_mode: str = 'const'
    batch: int = 8
    seed: int = 0
    contents: dict[str, Any] | None = None  # The whole snapshot: D and what else it holds.

    @classmethod
    def open(
        cls,
        network: str,
        outdir: str = 'out',
        device: str | None = None,
        trust_pickle: bool = False,
        precision: str | None = None,
        batch: int | None = 8,
        **settings: Any,
    ) -> Session:
        """Loads and checks what `edit_options.common_options` say. Raises UserError for what can't be used.

        batch: None = as many as fit into memory.
        """
        check_output('--outdir', outdir, folder=True)
        where = inversion.pick_device(device)
        use_precision(precision, where)
        contents = load_network_pkl(network, trust=trust_pickle)
        G = contents.get('G_ema')
        if G is None:
            raise UserError(f'{network}: holds no generator (G_ema)')
        G = G.eval().requires_grad_(False).to(where)
        batch = memory.picture_batch(G, where) if batch is None else batch
        session = cls(G, network, where, outdir, **settings, batch=batch, contents=contents)
        torch.manual_seed(session.seed)
        return session

    def generator(self) -> torch.Generator:
        """A fresh source of random numbers, on the CPU so that every device draws the same."""
        return torch.Generator().manual_seed(self.seed)

    def read(
        self, inputs: Sequence[str], option: str = 'INPUT', failures: list[tuple[str, str]] | None = None
    ) -> Codes:
        """Codes of seeds, .npz files and images; see `codes.read_inputs`. Without `failures` a bad image raises."""
        found = codes.read_inputs(
            inputs, self.G, self.network, self.class_idx, self.trunc, self.batch, failures, option, self.outdir
        )
        tell_crops(found)
        return found

    def render(
        self,
        code: torch.Tensor,
        c: torch.Tensor | None = None,
        noise: Sequence[dict[str, torch.Tensor]] = (),
        desc: str | None = None,
    ) -> torch.Tensor:
        """Codes [N, dim] or [N, num_ws, dim] -> pixels uint8 NCHW on the CPU; a bar named `desc` shows the way."""
        return torch.cat(list(self.render_batches(code, c, noise, desc)))

    def render_batches(
        self,
        code: torch.Tensor,
        c: torch.Tensor | None = None,
        noise: Sequence[dict[str, torch.Tensor]] = (),
        desc: str | None = None,
    ) -> Iterator[torch.Tensor]:
        """The same, batch by batch, for more pictures than the memory holds."""
        from tqdm import tqdm

        with tqdm(total=len(code), desc=desc, unit='image', disable=True if desc is None else None) as bar:
            for start in range(0, len(code), self.batch):
                rows = slice(start, start + self.batch)
                pixels = self._draw(code[rows], None if c is None else c[rows], noise[rows], start)
                yield pixels
                bar.update(len(pixels))

    def _draw(
        self, code: torch.Tensor, c: torch.Tensor | None, noise: Sequence[dict[str, torch.Tensor]], first: int
    ) -> torch.Tensor:
        """One batch, whose first picture has the number `first`: random noise goes by numbers, whatever the batch."""
        if self.noise_mode != 'random':
            return to_uint8(codes.render(self.G, code, c, noise, self.noise_mode)).cpu()
        seeds = [self.seed * 2**20 + first + i for i in range(len(code))]
        return sampling.render(self.G, spaces.code_to_ws(self.G, code, c), None, 'random', seeds)


def report_failures(failures: Sequence[tuple[str, str]]) -> int:
    """Names on stderr what could not be used; the exit code, 1 if there is any."""
    for _label, reason in failures[:MAX_TOLD]:
        click.echo(reason, err=True)
    if failures:
        more = '' if len(failures) <= MAX_TOLD else f', {MAX_TOLD} of them named above'
        click.echo(f'Error: {len(failures)} images could not be used{more}', err=True)
    return 1 if failures else 0


def tell_crops(found: Codes) -> None:
    """Says on stderr which pictures were no squares, and what was taken of them; stored codes have their own crops."""
    cut = [f'{source}: of {place.size[0]}x{place.size[1]} pixels only the centre square is edited'
           for source, place in zip(found.sources, found.placements)
           if place is not None and place.size[0] != place.size[1] and not codes.is_code_file(source)]  # fmt: skip
    for line in cut[:MAX_TOLD]:
        click.echo(line, err=True)
    if cut:
        more = f'… and {len(cut) - MAX_TOLD} more; ' if len(cut) > MAX_TOLD else ''
        click.echo(f'{more}another crop: invert.py --align=…, then edit the .npz that it writes', err=True)
