"""A page of sections: text, tables and pictures, all in one file."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

import numpy as np
import numpy.typing as npt

from featx.errors import UsageError
from featx.figures.map_page import data_url
from featx.figures.thumbnails import jpeg

_MARK = b"<!doctype html>"


def refuse_foreign_page(path: Path) -> None:
    """Raise UsageError unless a path is free for a page, or holds one."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"-o {path.name}: a page is written; call it {path.stem}.html")
    if path.is_dir() or (path.exists() and not path.read_bytes()[:64].lower().startswith(_MARK)):
        raise UsageError(f"{path} exists and is no page; choose another name with -o")


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, as HTML."""

    title: str
    body: str


def render(title: str, sections: Sequence[Section], footer: str) -> str:
    """The whole page."""
    template = Template((files("featx.figures") / "pages" / "report.html").read_text(encoding="utf-8"))
    contents = "".join(
        f'<a href="#part-{number}">{html.escape(section.title)}</a>' for number, section in enumerate(sections)
    )
    body = "\n".join(
        f'<section id="part-{number}"><h2>{html.escape(section.title)}</h2>\n{section.body}</section>'
        for number, section in enumerate(sections)
    )
    return template.substitute(title=html.escape(title), contents=contents, body=body, footer=html.escape(footer))


def paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>\n"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in columns)
    lines = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>\n'


def picture(draw: Callable[[Path], None], text: str) -> str:
    """A picture that is drawn into a file of that name.

    Args:
        text: what it shows, for those who do not see it.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        draw(path)
        address = data_url(path.read_bytes(), "image/png")
    return f'<p><img src="{address}" alt="{html.escape(text, quote=True)}"></p>\n'


def photos(pictures: Sequence[npt.NDArray[np.uint8]], captions: Sequence[str]) -> str:
    """Photographs (h, w, 3) with a line below each."""
    items = "".join(
        f'<li><img src="{data_url(jpeg(one, 85), "image/jpeg")}" alt="">{html.escape(caption)}</li>'
        for one, caption in zip(pictures, captions, strict=True)
    )
    return f'<ul class="photos">{items}</ul>\n'


def frame(page: str, text: str) -> str:
    """Another page inside this one."""
    inside = html.escape(page, quote=True)
    return f'<iframe sandbox="allow-scripts" title="{html.escape(text, quote=True)}" srcdoc="{inside}"></iframe>\n'
