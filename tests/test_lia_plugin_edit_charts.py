"""Charts of an evaluation: where lines and cells are, and what they do with numbers that are none."""

import numpy as np
import torch

from lia_plugin import canvas
from lia_plugin import edit_charts as ec
from lia_plugin.edit_charts import Line
from lia_plugin.edit_evaluation_report import Table, number, with_interval
from lia_plugin.edit_statistics import Estimate


def colour(text: str) -> torch.Tensor:
    return torch.tensor([int(text[i : i + 2], 16) for i in (1, 3, 5)], dtype=torch.uint8)


def test_lines_run_from_corner_to_corner() -> None:
    x = np.array([0.0, 1, 2])
    picture = ec.lines([Line('rising', x, x), Line('none', x, x * np.nan)], 'title', 'x')
    assert picture.dtype == torch.uint8
    assert picture.shape == (3, ec.HEIGHT + 2 * canvas.LEGEND_LINE, ec.WIDTH)
    middle_x = (canvas.LEFT + ec.WIDTH - canvas.RIGHT) // 2
    middle_y = (canvas.TOP + ec.HEIGHT - canvas.BOTTOM) // 2
    near = picture[:, middle_y - 2 : middle_y + 3, middle_x - 2 : middle_x + 3].flatten(1).t()
    assert (near == colour(ec.COLOURS[0])).all(dim=1).any()
    off = picture[:, canvas.TOP + 5 : middle_y - 20, canvas.LEFT + 5 : middle_x - 20]
    assert int(off.min()) >= int(colour(canvas.GRID).min()), 'nothing but the grid'
    beneath = picture[:, ec.HEIGHT :].flatten(1).t()
    assert all((beneath == colour(one)).all(dim=1).any() for one in ec.COLOURS[:2]), 'both are named'


def test_cells_are_the_darker_the_larger() -> None:
    picture = ec.heat_map(np.array([[0.5, np.nan], [0.25, 0]]), ['a', 'b'], ['x', 'y'])
    assert picture.shape == (3, 3 * ec.CELL_HEIGHT, ec.LABEL_WIDTH + 2 * ec.CELL_WIDTH)

    def corner(row: int, column: int) -> list[int]:
        return picture[:, ec.CELL_HEIGHT * (row + 1) + 1, ec.LABEL_WIDTH + ec.CELL_WIDTH * column + 1].tolist()

    assert corner(0, 0) == list(ec.SHADE) and corner(0, 1) == [255] * 3 and corner(1, 1) == [255] * 3
    assert corner(1, 0) == [round(255 + (part - 255) / 2) for part in ec.SHADE]
    assert ec.heat_map(np.full([1, 1], np.nan), ['a'], ['x']).shape[0] == 3


def test_tables_are_markdown() -> None:
    table = Table('T', 'Note.', ['edit', '|z|'], [['a', '1'], ['b', number(float('nan'))]])
    assert table.markdown().splitlines() == [
        '## T', '', 'Note.', '', '| edit | \\|z\\| |', '|---|---|', '| a | 1 |', '| b | — |']
    assert with_interval(Estimate(0.12345, 0.1, 1e-17)) == '0.123 [0.1, 0]'
    assert with_interval(Estimate(float('nan'), 0.1, 0.2)) == '—'
