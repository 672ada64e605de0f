"""A program of the zoo in the plain loop that its user would write."""
# ruff: noqa: T201 - scripts print

import sys

import torch

from unvanish.torch.zoo import cases

torch.set_num_threads(1)
case = next(case for case in cases() if case.name == sys.argv[1])
program = case.build(0)
for step in range(60):
    batch = program.batches[step % len(program.batches)]
    program.optimizer.zero_grad()
    loss = program.loss(batch)
    loss.backward()
    program.optimizer.step()
print(float(loss))
