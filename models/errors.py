"""Errors of the model side; each text names what was wrong and ends with what to do."""

from __future__ import annotations

__all__ = ["ModelError", "PackageError", "PredictorUnavailableError", "UnsupportedModelError"]


class ModelError(Exception):
    """Base: a model, package or registry that cannot be used as asked."""


class PackageError(ModelError):
    """A model package that must not be loaded or written: names both sides of what differs."""


class UnsupportedModelError(ModelError):
    """A model that a predictor would not score as LightGBM does; `lightgbm` serves it."""


class PredictorUnavailableError(ModelError):
    """A predictor whose library or device is not there."""
