"""The predictor benchmark reports what `headrace bench predictor` promises."""

from __future__ import annotations

from benchmarks.predictor import make_model, run


def test_every_predictor_at_every_size() -> None:
    text, x = make_model(4, trees=5, leaves=4, rows=600)
    figures = run(text, x, rows=(1, 700), seconds=0.001, rounds=1)
    results = figures["results"]
    assert [(r["predictor"], r["rows"]) for r in results] == [
        (name, rows) for rows in (1, 700) for name in ("lightgbm", "compiled", "auto")
    ]
    assert all(r["bit_equal"] and r["rows_per_s"] > 0 and r["ratio_lightgbm"] > 0 for r in results)
    reasons = figures["reasons"]
    assert [(r["explainer"], r["rows"]) for r in reasons] == [
        (name, rows) for rows in (1, 700) for name in ("lightgbm", "compiled")
    ]
    assert all(r["difference_max"] < 1e-9 and r["rows_per_s"] > 0 and r["ratio_lightgbm"] > 0 for r in reasons)
    assert figures["features"] == 4 and len(figures["scores_sha256"]) == 64
