"""Pieces of the report's HTML: sections, tables, tiles and pictures, all in one file without any request.

Pictures are data URIs; style and script are inlined. Every text that comes from a bank is escaped.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Cell:
    """A table cell: a number is right-aligned; ``html`` is inserted as it is, ``text`` escaped."""

    text: str = ""
    html: str = ""
    number: bool = False
    strong: bool = False

    def markup(self, tag: str) -> str:
        """The cell as ``<td>`` or ``<th>``."""
        kind = " ".join(name for name, on in (("number", self.number), ("strong", self.strong)) if on)
        return f'<{tag} class="{kind}">{self.html or escape(self.text)}</{tag}>'


@dataclass(frozen=True)
class Section:
    """A part of the page: its anchor, its heading (also in the navigation), and its HTML."""

    anchor: str
    heading: str
    body: str


def page(
    title: str, lead: str, tiles: Sequence[tuple[str, str]], sections: Sequence[Section], foot: str
) -> str:
    """The whole document.

    Args:
        title: Heading and title.
        lead: HTML under the heading.
        tiles: (figure, what it counts).
        sections: In order.
        foot: HTML of the footer.
    """
    links = "".join(f'<a href="#{part.anchor}">{escape(part.heading)}</a>' for part in sections)
    boxes = "".join(f'<div class="tile"><b>{escape(a)}</b><span>{escape(b)}</span></div>' for a, b in tiles)
    headed = [(part.anchor, f"<h2>{escape(part.heading)}</h2>{part.body}") for part in sections]
    body = "".join(f'<section id="{anchor}">{inside}</section>' for anchor, inside in headed)
    style = (FOLDER / "report.css").read_text(encoding="utf-8")
    script = (FOLDER / "report.js").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>\n{style}</style></head><body>"
        f'<header><h1>{escape(title)}</h1><p class="lead">{lead}</p><div class="tiles">{boxes}</div></header>'
        f"<nav><div>{links}</div></nav><main>{body}<footer>{foot}</footer></main>"
        f"<script>\n{script}</script></body></html>\n"
    )


def table(head: Sequence[Cell], rows: Sequence[Sequence[Cell] | str]) -> str:
    """A table that scrolls within itself when narrow; a row given as a string is a group's heading (HTML)."""
    top = "".join(cell.markup("th") for cell in head)
    lines = []
    for row in rows:
        if isinstance(row, str):
            lines.append(f'<tr class="group"><td colspan="{len(head)}">{row}</td></tr>')
        else:
            lines.append("<tr>" + "".join(cell.markup("td") for cell in row) + "</tr>")
    inside = f"<thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="scroll"><table>{inside}</table></div>'


def card(body: str, heading: str = "", note: str = "") -> str:
    """A framed box; heading and note are plain text."""
    top = f"<h3>{escape(heading)}</h3>" if heading else ""
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<div class="card">{top}{body}{below}</div>'


def picture(path: Path | None, alternative: str) -> str:
    """A JPEG as a data URI within its frame; where there is none, a frame that says so."""
    if path is None or not path.exists():
        return '<div class="frame"><span class="note">no thumbnail</span></div>'
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    shown = f'alt="{escape(alternative, quote=True)}" src="data:image/jpeg;base64,{data}"'
    return f'<div class="frame"><img loading="lazy" {shown}></div>'


def tag(text: str, warn: bool = False) -> str:
    """A small label."""
    return f'<span class="tag{" warn" if warn else ""}">{escape(text)}</span>'


def duration(seconds: float) -> str:
    """``4211`` -> ``1 h 10 min``; ``72`` -> ``1 min 12 s``; ``3.4`` -> ``3.4 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
