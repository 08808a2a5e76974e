"""headrace models: what changes who scores, told on model-events where a log is named."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest
from swaps import add_model, model_events

from models.auto import BATCH_SIZES
from models.registry import Registry
from streams.cli.main import main
from streams.log import connect


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """m@1, the champion, m@2 and m@3."""
    folder = tmp_path_factory.mktemp("models")
    for version in (1, 2, 3):
        add_model(folder, version, "champion" if version == 1 else None)
    return folder


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    try:
        code = main([str(word) for word in words])
    except SystemExit as left:
        code = int(left.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_shadow_canary_and_back(capsys: pytest.CaptureFixture[str], models: Path) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    where: Sequence[object] = ("--models", models, "--bootstrap", url)
    registry = Registry(models)
    assert run(capsys, "models", "shadow", "m@2", *where)[:2] == (0, "m@2 is shadow\n")
    code, out, _ = run(capsys, "models", "canary", "m@3", "--share", "0.05", *where)
    assert (code, out) == (0, "m@3 is canary of 0.05 of the cards\n") and registry.canary == ("m@3", 0.05)
    code, out, _ = run(capsys, "models", "list", "--models", models)
    assert "champion" in out and "shadow" in out and "canary 0.05" in out
    listed = json.loads(run(capsys, "models", "list", "--models", models, "--json")[1])["models"]
    assert [entry.get("canary_share") for entry in listed] == [None, None, 0.05]
    assert run(capsys, "models", "shadow", "--off", *where)[1] == "m@2 is shadow no more\n"
    assert run(capsys, "models", "shadow", "--off", *where)[1].startswith("there is no shadow")
    assert run(capsys, "models", "promote", "canary", *where)[1] == "m@3 is champion (before: m@1)\n"
    assert registry.aliases() == {"champion": "m@3"}
    assert run(capsys, "models", "rollback", "--json", *where)[0] == 0
    told = [(e["event"], e["model"], e["sha256"]) for e in sorted(model_events(connect(url)), key=lambda e: e["time"])]
    assert sorted(told) == sorted(
        (event, label, registry.fingerprint(label))
        for event, label in (
            ("shadow", "m@2"),
            ("canary", "m@3"),
            ("shadow-ended", "m@2"),
            ("promoted", "m@3"),
            ("rolled-back", "m@1"),
        )
    )


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["shadow"], 2, "give a package, or --off"),
        (["shadow", "m@2", "--off"], 2, "give a package, or --off"),
        (["shadow", "m@9"], 2, "there: m@1, m@2, m@3"),
        (["canary", "m@2"], 2, "Give --share"),
        (["canary", "m@2", "--share", "0.7"], 1, "at most 0.5"),
        (["canary", "m@1", "--share", "0.1"], 1, "m@1 is the champion"),
        (["diff", "m@1", "m@9"], 2, "there: m@1, m@2, m@3"),
    ],
)
def test_wrong_use(capsys: pytest.CaptureFixture[str], models: Path, words: list[str], code: int, said: str) -> None:
    found, _, err = run(capsys, "models", *words, "--models", models)
    assert found == code and said in err
    assert Registry(models).aliases() == {"champion": "m@1"}


def test_diff(capsys: pytest.CaptureFixture[str], models: Path) -> None:
    code, out, _ = run(capsys, "models", "diff", "m@1", "m@3", "--models", models)
    assert code == 0
    lines = {line[:28].strip(): line[28:].split() for line in out.splitlines()}
    assert lines[""] == ["m@1", "m@3"] and lines["trees"] == ["3", "5"]
    figures = json.loads(run(capsys, "models", "diff", "m@1", "m@3", "--models", models, "--json")[1])
    assert figures["models"] == ["m@1", "m@3"] and figures["size"]["trees"] == [3, 5]


def test_show_says_what_auto_chose(capsys: pytest.CaptureFixture[str], models: Path) -> None:
    shown = json.loads(run(capsys, "models", "show", "champion", "--models", models, "--json")[1])
    assert shown["predictor"] in ("compiled", "lightgbm", "auto(compiled|lightgbm)", "auto(lightgbm|compiled)")
    assert "against lightgbm, by rows:" in shown["predictor_reason"]
    assert {len(us) for us in shown["predictor_us_per_row"].values()} == {len(BATCH_SIZES)}
