"""A report as one HTML page: all text escaped, plots inside the page, nothing loaded from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from streams.errors import ConfigError, HeadraceError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLORS", "Page", "new_figure", "report_folder"]

#: of what was served or is the reference, of the newer, and of what is marked: told apart by the colour-blind too
COLORS = ("#4477aa", "#cc6677", "#222222")

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#222;background:#fff;max-width:1080px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.15rem;margin:2rem 0 .5rem;border-bottom:1px solid #ddd}
p.sub{color:#666;margin:.2rem 0 1rem}table{border-collapse:collapse;margin:.5rem 0;font-variant-numeric:tabular-nums}
td,th{padding:.2rem .8rem .2rem 0;text-align:right;border-bottom:1px solid #eee;vertical-align:top;white-space:nowrap}
th{font-weight:600;color:#555}td:first-child,th:first-child{text-align:left}img{max-width:100%;height:auto;display:block}
.wide{overflow-x:auto}ul{margin:.2rem 0 1rem;font-size:.92rem}.critical{color:#a1283b;font-weight:600}
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Page:
    """Sections in the order in which they are added; `write` puts the page and its plots into a folder."""

    def __init__(self, title: str, subtitle: str) -> None:
        self._title = title
        self._parts = [f"<h1>{escape(title)}</h1>", f'<p class="sub">{escape(subtitle)}</p>']
        self._plots: dict[str, bytes] = {}

    def heading(self, text: str) -> None:
        """A section begins."""
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def text(self, text: str, *, emphasis: bool = False) -> None:
        """A paragraph."""
        kind = ' class="critical"' if emphasis else ""
        self._parts.append(f"<p{kind}>{escape(text)}</p>")

    def lines(self, lines: Iterable[str]) -> None:
        """A list."""
        self._parts.append(f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>")

    def links(self, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A table whose first column leads to the page that the row ends with, beside this one."""
        top = "".join(f"<th>{escape(text)}</th>" for text in head)
        body = []
        for first, *others, target in rows:
            cells = "".join(f"<td>{escape(str(cell))}</td>" for cell in others)
            link = f'<a href="{escape(str(target))}">{escape(str(first))}</a>'
            body.append(f"<tr><td>{link}</td>{cells}</tr>")
        self._parts.append(f'<div class="wide"><table><tr>{top}</tr>{"".join(body)}</table></div>')

    def table(self, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A table; the first column is on the left, the others on the right."""
        top = "".join(f"<th>{escape(text)}</th>" for text in head)
        body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
        self._parts.append(f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>')

    def plot(self, name: str, figure: Figure, alt: str) -> None:
        """A plot, in the page and beside it as ``name``.png; ``alt`` says in words what it shows."""
        file = BytesIO()
        figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
        self._plots[name] = file.getvalue()
        data = base64.b64encode(self._plots[name]).decode("ascii")
        self._parts.append(f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">')

    def html(self) -> str:
        """The page."""
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(self._title)}</title>'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n<body>\n'
            + "\n".join(self._parts)
            + "\n</body></html>\n"
        )

    def write(self, folder: Path, name: str = "index.html") -> Path:
        """Writes the page and its plots into the folder, which is there; returns the page's path."""
        path = folder / name
        try:
            for name, data in self._plots.items():
                (folder / f"{name}.png").write_bytes(data)
            path.write_text(self.html(), "utf-8")
        except OSError as error:
            raise HeadraceError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
        return path


def new_figure(width: float = 9.5, height: float = 3.2) -> Figure:
    """An empty figure, in inches: no window, no global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def report_folder(option: str, path: Path) -> Path:
    """The folder that a command's option names, made where it is not there. ConfigError: it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{option} {path}: cannot be made ({error.strerror}); name another folder") from error
    return path
