"""From files of bars to a `Dataset`: checked, causal, split in time and traceable."""

from jaxtrader.data.bars import Bars, read_bars
from jaxtrader.data.builders import dataset_from_bars, load_dataset, synthetic_dataset
from jaxtrader.data.dataset import Dataset
from jaxtrader.data.features import (
    FEATURE_NAMES,
    FeatureInputs,
    compute_features,
    feature,
    warm_up_bars,
)
from jaxtrader.data.lookahead import find_lookahead
from jaxtrader.data.macro import MacroSeries, read_macro
from jaxtrader.data.scaler import Scaler
from jaxtrader.data.sentiment import DailySentiment, read_sentiment
from jaxtrader.data.sessions import Sessions, sessions_of
from jaxtrader.data.splits import Split, chronological_splits, split_boundaries
from jaxtrader.data.synthetic import synthetic_bars
from jaxtrader.data.universe import Universe

__all__ = [
    "FEATURE_NAMES",
    "Bars",
    "DailySentiment",
    "Dataset",
    "FeatureInputs",
    "MacroSeries",
    "Scaler",
    "Sessions",
    "Split",
    "Universe",
    "chronological_splits",
    "compute_features",
    "dataset_from_bars",
    "feature",
    "find_lookahead",
    "load_dataset",
    "read_bars",
    "read_macro",
    "read_sentiment",
    "sessions_of",
    "split_boundaries",
    "synthetic_bars",
    "synthetic_dataset",
    "warm_up_bars",
]
