"""One self-contained HTML page of pictures and tables: nothing beside it is needed to look at it."""

import base64
import html
import os
from collections.abc import Sequence
from typing import NamedTuple

import torch

from lia_plugin.host import atomic_write
from lia_plugin.images import png_bytes

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #222 }
img { image-rendering: pixelated; max-width: 100% }
figure { display: inline-block; margin: 0 1em 1em 0; vertical-align: top }
figcaption { color: #555 }
table { border-collapse: collapse; margin: 1em 0 }
td, th { padding: .2em .8em; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child { text-align: left }
"""


class Section(NamedTuple):
    """A heading and ready HTML fragments from `figure`, `paragraph` and `table`."""

    heading: str
    parts: Sequence[str]


def paragraph(text: str) -> str:
    return f'<p>{html.escape(text)}</p>'


def figure(img: torch.Tensor, caption: str = '') -> str:
    """One CHW image (floats in [-1, 1] or pixels), embedded in the page."""
    data = base64.b64encode(png_bytes(img)).decode('ascii')
    text = html.escape(caption, quote=True)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = ''.join(f'<th>{html.escape(cell)}</th>' for cell in header)
    body = ''.join('<tr>' + ''.join(f'<td>{html.escape(cell)}</td>' for cell in row) + '</tr>' for row in rows)
    return f'<table><tr>{head}</tr>{body}</table>'


def render(title: str, sections: Sequence[Section]) -> str:
    """The whole page as text."""
    content = '\n'.join(f'<h2>{html.escape(s.heading)}</h2>\n' + '\n'.join(s.parts) for s in sections)
    name = html.escape(title)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f'<style>{STYLE}</style></head>\n<body><h1>{name}</h1>\n{content}\n</body></html>\n'
    )


def save_page(path: str | os.PathLike[str], title: str, sections: Sequence[Section]) -> None:
    """Writes the page, whole or not at all; of file names that are not UTF-8, the odd bytes as escapes."""
    with atomic_write(os.fspath(path)) as file:
        file.write(render(title, sections).encode('utf-8', errors='backslashreplace'))
