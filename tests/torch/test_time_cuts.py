"""A state that is cut off from its history in a loop over time: found, confirmed, and told from what is meant so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import unvanish

Batches = list[tuple[Tensor, Tensor]]
STEPS = 6


class Loop(nn.Module):
    """Reads a sequence; ``keep`` is what becomes of the state between two steps."""

    def __init__(self, keep: Callable[[Tensor], Tensor], cell: str = "gru", *, alone: bool = False) -> None:
        super().__init__()
        self.keep, self.alone = keep, alone
        self.cell = {"gru": nn.GRUCell, "lstm": nn.LSTMCell}.get(cell, nn.Identity)(4, 16)
        if cell == "hand":
            self.enter, self.again = nn.Linear(4, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        if isinstance(self.cell, nn.LSTMCell):
            return self.cell(x, (state, state))[0]
        if isinstance(self.cell, nn.GRUCell):
            return self.cell(x, state)
        return torch.tanh(self.enter(x) + self.again(state))

    def forward(self, x: Tensor) -> Tensor:
        state = start = x.new_zeros(len(x), 16)
        for t in range(STEPS):
            state = self.step(x[:, t], start if self.alone else self.keep(state))
        return self.head(state)


def batches() -> Batches:
    """What the first steps held is asked for."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(4):
        x = torch.randn(32, STEPS, 4, generator=generator)
        made.append((x, x[:, 0, :3].argmax(dim=1)))
    return made


KEEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "detach": Tensor.detach,
    "data": lambda h: h.data,
    "numpy": lambda h: torch.from_numpy(h.detach().numpy().copy()),
    "clone": lambda h: h.detach().clone(),
}


def diagnosed(model: nn.Module) -> unvanish.Diagnosis:
    return unvanish.diagnose(model, F.cross_entropy, batches(), torch.optim.Adam(model.parameters(), lr=1e-2), steps=20)


@pytest.mark.parametrize("keep", list(KEEPS))
@pytest.mark.parametrize("cell", ["gru", "lstm", "hand"])
def test_a_state_cut_off_at_every_step(cell: str, keep: str) -> None:
    torch.manual_seed(0)
    found = diagnosed(Loop(KEEPS[keep], cell))
    assert found.findings[0].cause == "disconnected"
    assert found.findings[0].where == (("enter", "again") if cell == "hand" else ("cell",))
    assert f"only the last 1 of {STEPS} calls" in found.findings[0].message


@pytest.mark.parametrize("cell", ["gru", "lstm", "hand"])
def test_a_loop_with_its_history(cell: str) -> None:
    torch.manual_seed(0)
    assert diagnosed(Loop(lambda state: state, cell)).flow.cuts == ()


def test_calls_that_the_loss_does_not_depend_on() -> None:
    """Nothing is handed on, so nothing is cut off."""
    torch.manual_seed(0)
    assert diagnosed(Loop(Tensor.detach, alone=True)).flow.cuts == ()


def test_recycling_that_trains_is_meant_so() -> None:
    class Refined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.refine, self.head = nn.Linear(24, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            guess = x.new_zeros(len(x), 8)
            for _ in range(STEPS):
                guess = torch.tanh(self.refine(torch.cat([x[:, :4].flatten(1), guess.detach()], dim=1)))
            return self.head(guess)

    torch.manual_seed(0)
    found = diagnosed(Refined())
    assert [cut.calls for cut in found.flow.cuts] == [STEPS - 1]
    assert found.healthy
    assert any("only the last 1 of 6 calls of refine" in note for note in found.notes)
