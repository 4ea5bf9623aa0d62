"""The market's features: causal, stationary and dimensionless, one function each.

A module a group. A new feature is one function with the decorator `feature` and a docstring that
gives its formula and source; the page of all features lists it by itself.
"""

from jaxtrader.data.features import macro, regime, sentiment, technical
from jaxtrader.data.features.registry import (
    FEATURE_NAMES,
    FEATURES,
    Feature,
    FeatureInputs,
    chosen_features,
    compute_features,
    feature,
    warm_up_bars,
)

__all__ = [
    "FEATURES",
    "FEATURE_NAMES",
    "Feature",
    "FeatureInputs",
    "chosen_features",
    "compute_features",
    "feature",
    "macro",
    "regime",
    "sentiment",
    "technical",
    "warm_up_bars",
]
