"""Words in pictures: nothing that the font lacks is drawn as a box, whatever files and labels are called."""

import pytest
import torch

from lia_plugin import lettering, sheets
from lia_plugin.lettering import drawable

BOX = bytes(lettering.font(13).getmask(lettering.NOWHERE))


@pytest.mark.parametrize(('text', 'drawn'), [
    ('anna_06, rho 0.95', 'anna_06, rho 0.95'), ('jürgen', 'jurgen'), ('ju\u0308rgen', 'jurgen'), ('Łódź', 'Lodz'),
    ('weiß', 'weiss'), ('猫', '?'), ('猫.7', '?.7'), ('‖z‖²', '|z|^2'), ('−1', '-1'), ('👩\u200d🔬', '??'),
    ('', ''), ('\u0301', ''),
])  # fmt: skip
def test_what_the_font_lacks_is_spelled_with_what_it_has(text: str, drawn: str) -> None:
    assert drawable(text) == drawn
    assert drawable(drawn) == drawn


def test_no_character_of_any_script_becomes_a_box() -> None:
    for code in (*range(32, 0x2600), *range(0x4E00, 0x4E80), *range(0x1F600, 0x1F640)):
        spelled = drawable(chr(code))
        assert all(part.isascii() or bytes(lettering.font(13).getmask(part)) != BOX for part in spelled), hex(code)


def test_sheets_draw_names_so() -> None:
    tile = torch.zeros([3, 128, 128], dtype=torch.uint8)
    assert torch.equal(sheets.sheet([[tile]], ['猫'], ['jürgen']), sheets.sheet([[tile]], ['?'], ['jurgen']))
