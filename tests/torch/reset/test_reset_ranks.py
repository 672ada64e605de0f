"""Two processes with different data reset the same units to the same weights."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from reset_nets import DEAD, plain, seeded
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from unvanish.torch.reset import Dead, UnitReset


def _net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), *plain(8, 8, 2)).double()
    model = nn.Sequential(model[0], model[1], nn.ReLU(), *list(model)[2:]).double()
    model[1].bias.data[3] = DEAD
    return model


def _data(rank):
    """Unit 5 of the first layer fires on rank 1 only."""
    x = torch.randn(32, 4, dtype=torch.float64, generator=seeded(rank))
    return x + (10 * rank)


def _work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(100 + rank)
    model = _net().eval()
    model[0].weight.data[5] = 1.0
    model[0].bias.data[5] = -20.0
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(wrapped.parameters())
    reset = UnitReset(wrapped, optimizer, Dead(patience=1), every=1, maturity=0)
    alone = bool((model[:3](_data(rank)) > 0).any(dim=0)[5])
    events = reset.step(_data(rank))
    torch.save(
        {"weights": model.state_dict(), "events": reset.state_dict()["events"], "alone": alone, "n": len(events)},
        f"{folder}/{rank}",
    )
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_agree(tmp_path):
    # not fork: a process with threads may hang in it
    mp.start_processes(_work, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    first, second = (torch.load(tmp_path / str(rank)) for rank in (0, 1))
    assert [first["alone"], second["alone"]] == [False, True], "rank 0 alone would have called unit 5 dead"
    units = {e["layer"]: e["units"] for e in first["events"]}
    assert units["0"] == (3,)
    assert first["events"] == second["events"]
    torch.testing.assert_close(first["weights"], second["weights"], rtol=0, atol=0)
    model, both = _net(), torch.cat([_data(0), _data(1)])
    row = first["weights"]["0.weight"][3]
    assert not torch.equal(row, model[0].weight[3])
    u = both @ row
    torch.testing.assert_close(first["weights"]["1.running_mean"][3], u.mean(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(first["weights"]["1.running_var"][3], u.var(), rtol=1e-10, atol=1e-10)
