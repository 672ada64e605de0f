"""What a user may have got wrong when making a regulariser."""

from __future__ import annotations

from numbers import Integral

from torch import nn


def check_model(name: str, model: object) -> None:
    """Raise ValueError for what is no model."""
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"{name}: the model is a {type(model).__name__}. Expected an nn.Module. Pass the network itself, not its "
            "parameters or its output."
        )


def check_whole(name: str, field: str, value: object, least: int | None, why: str) -> None:
    """Raise ValueError for what is no whole number, or too small a one."""
    if not isinstance(value, bool) and isinstance(value, Integral) and (least is None or int(value) >= least):
        return
    at_least = f" of at least {least}" if least is not None else ""
    raise ValueError(f"{name}: {field}={value!r}. Expected a whole number{at_least}. {why}")
