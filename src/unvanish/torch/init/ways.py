"""Ops that hand a layer's units on, by what they do to the order of the units."""

SAME = frozenset({"contiguous", "clone", "to", "float", "double", "half", "bfloat16", "type", "pad"})
SAME |= {"dropout", "dropout1d", "dropout2d", "dropout3d"}
TURNS = frozenset({"permute", "transpose", "swapaxes", "movedim", "t"})
FOLDS = frozenset({"flatten", "view", "reshape", "ravel", "squeeze", "unsqueeze", "unflatten"})
AVERAGES = frozenset({"avg_pool1d", "avg_pool2d", "avg_pool3d", "mean"})
AVERAGES |= {"adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"}
