"""The mood: the latest score of an earlier day, how old it is, and how much it rests on."""

from __future__ import annotations

import numpy as np

from jaxtrader.data.features.registry import FeatureInputs, feature
from jaxtrader.data.sentiment import MAXIMUM_AGE_DAYS


@feature(warm_up=0)
def sentiment(inputs: FeatureInputs) -> np.ndarray:
    """The latest daily score of an earlier day, in [-1, 1]; 0 without one of the last week."""
    return inputs.sentiment.score


@feature(warm_up=0)
def sentiment_age(inputs: FeatureInputs) -> np.ndarray:
    """Calendar days since the day of that score / 7, in (0, 1]; 1 without one."""
    return np.minimum(inputs.sentiment.age, MAXIMUM_AGE_DAYS) / MAXIMUM_AGE_DAYS


@feature(warm_up=0)
def sentiment_count(inputs: FeatureInputs) -> np.ndarray:
    """log(1 + texts that the score rests on); 0 without one."""
    return np.log1p(inputs.sentiment.count)


@feature(warm_up=0)
def sentiment_missing(inputs: FeatureInputs) -> np.ndarray:
    """1 where no score of the last seven days is known, else 0."""
    return (inputs.sentiment.age > MAXIMUM_AGE_DAYS).astype(np.float64)
