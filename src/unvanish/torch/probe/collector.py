"""Many small objects at a time: Python's collector of cycles need not look through them."""

from __future__ import annotations

import gc


class without_collector:  # noqa: N801 - reads as what it does, like torch.no_grad
    """Pause the cycle collector: it would look through the many small objects made here again and again.

    They make no cycles.  So that it does not look through all of them right afterwards, they are put to the old ones
    it seldom looks at, where it would put them: ``freeze`` and ``unfreeze`` do so at no cost.
    """

    __slots__ = ("_running",)

    def __enter__(self) -> None:
        self._running = gc.isenabled()
        gc.disable()

    def __exit__(self, *error: object) -> None:
        if self._running:
            if gc.get_count()[0] > gc.get_threshold()[0] and not gc.get_freeze_count():
                gc.freeze()
                gc.unfreeze()
            gc.enable()
