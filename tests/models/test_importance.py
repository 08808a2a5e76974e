"""Importance finds the features that matter, by each of its measures."""

from __future__ import annotations

import numpy as np
import pytest
from trees import model_text

from models.boosting import FRAUD_PARAMS, Rows, Settings, Steps, fit
from models.importance import importance


def _rows(n: int = 4000) -> Rows:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(n, 3))
    x[:, 2] = 1.0
    return Rows(x, (x[:, 1] + 0.3 * rng.normal(size=n) > 1).astype(np.int8), ("noise", "signal", "constant"))


def test_the_feature_that_decides_is_first() -> None:
    data = _rows()
    train = np.arange(4000) < 2500
    text = fit(data, train, Settings(FRAUD_PARAMS, 20), 1, Steps(None, 1)).text
    before = data.x.copy()
    found = importance(text, data.x[~train], data.y[~train])
    assert np.array_equal(data.x, before)
    assert found.shap is not None
    for values in (found.gain, found.permutation, found.shap):
        assert values.shape == (3,) and np.argmax(values) == 1 and values[2] == 0.0
    assert found.gain.sum() == pytest.approx(1.0)
    assert found.permutation[1] > 0.3 > abs(found.permutation[0])
    again = importance(text, data.x[~train], data.y[~train])
    assert np.array_equal(again.permutation, found.permutation)


def test_a_model_that_nothing_explains_has_no_shap(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    found = importance(model_text("linear"), rng.normal(size=(40, 5)), np.arange(40) % 2)
    assert found.shap is None and "no reasons" in caplog.text
