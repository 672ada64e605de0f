"""Normalisation layers put into a network that exists."""

from unvanish.torch.normalize.insert import insert_normalization_
from unvanish.torch.normalize.layers import ChannelsLast, FeaturesLast
from unvanish.torch.normalize.report import Inserted, LeftOut, NormalizationReport

__all__ = ["ChannelsLast", "FeaturesLast", "Inserted", "LeftOut", "NormalizationReport", "insert_normalization_"]
