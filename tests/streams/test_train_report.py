"""The report of a training: all in one file, nothing from elsewhere, every name escaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from models.package import Manifest
from models.registry import Registry
from models.train import DAY_MS, Recipe, Split, Trained, train_fraud
from streams.report_page import new_figure
from streams.train_report import METRIC_TITLES, page, write_report

EVIL = "a<img_src=x>&$b$"
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def trained() -> Trained:
    rng = np.random.default_rng(2)
    rows = 3000
    x = rng.normal(size=(rows, 2))
    time = np.sort(rng.integers(0, 30 * DAY_MS, rows))
    y = (x[:, 0] + rng.normal(size=rows) > 1.5).astype(np.int8)
    split = Split(0, 14 * DAY_MS, 21 * DAY_MS, 30 * DAY_MS)
    recipe = Recipe(search=1, budget_us=1e6, resamples=10)
    made = train_fraud(x, y, time, rng.integers(0, 900, rows), ["amount", "b"], split, recipe)
    # LightGBM takes no such name, a foreign model text may have it
    return Trained(**{name: getattr(made, name) for name in Trained.__dataclass_fields__} | {"features": (EVIL, "b")})


@pytest.fixture(scope="module")
def manifest(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    made = Trained(
        **{name: getattr(trained, name) for name in Trained.__dataclass_fields__} | {"features": ("amount", "b")}
    )
    draft = made.draft("toy", "<b>5c4e</b>", "2024-05-01T00:00:00Z")
    return Registry(tmp_path_factory.mktemp("models")).add(draft)


class _Sources(HTMLParser):
    """Whatever a browser would fetch, and the tags."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_report_is_one_file_that_needs_nothing_else(trained: Trained, manifest: Manifest, tmp_path: Path) -> None:
    path = write_report(tmp_path, manifest, trained)
    assert path == tmp_path / "report.html"
    names = ["importance.png", "ranking.png", "report.html", "scores.png"]
    assert sorted(file.name for file in path.parent.iterdir()) == names
    assert all((path.parent / name).read_bytes().startswith(PNG) for name in names if name.endswith(".png"))
    text = path.read_text("utf-8")
    found = _Sources()
    found.feed(text)
    assert found.open == [] and "script" not in found.tags
    assert len(found.fetched) == 3 and all(source.startswith("data:image/png;base64,") for source in found.fetched)
    assert "url(" not in text and "default-src 'none'" in text
    shown = re.sub(r"<[^>]*>", " ", text)
    for name, title in METRIC_TITLES.items():
        assert title in shown and f"{manifest.metrics[name]:.4f}" in shown
    for part in ("toy@1", "Conformal sets", "Search", "Budget", "num_leaves", "lightgbm"):
        assert part in shown
    # a second report takes the place of the first
    assert write_report(path.parent, manifest, trained) == path
    assert sorted(file.name for file in path.parent.iterdir()) == names


def _empty() -> dict[str, Figure]:
    return {name: new_figure(1, 1) for name in ("ranking", "scores", "importance")}


def test_texts_are_escaped(manifest: Manifest) -> None:
    text = page(manifest, _empty()).html()
    assert "&lt;b&gt;5c4e" in text and "<b>" not in text


def test_a_plain_training_has_no_search_and_no_budget(trained: Trained, manifest: Manifest) -> None:
    plain = {k: v for k, v in manifest.training.items() if k not in ("search", "budget")}
    values = {name: getattr(manifest, name) for name in Manifest.__dataclass_fields__} | {"training": plain}
    text = page(Manifest(**values), _empty()).html()
    assert "Search" not in text and "Budget" not in text and "Settings" in text
