"""A copy runs once and is listened to; then each piece of it is checked by itself, in float64."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from unvanish.torch.gradcheck.capture import ModuleCall, Recorder
from unvanish.torch.gradcheck.inspect import inspect
from unvanish.torch.gradcheck.lots import right_together
from unvanish.torch.gradcheck.pieces import function_unit, module_unit
from unvanish.torch.gradcheck.report import Given, Report
from unvanish.torch.gradcheck.results import GradientCheck, Skipped
from unvanish.torch.gradcheck.units import Supply, Unit, Which
from unvanish.torch.gradcheck.values import continuous, fill, held_in
from unvanish.torch.gradcheck.whole import whole_loss
from unvanish.torch.probe.scopes import clean
from unvanish.torch.rehearsal.copies import working_copy
from unvanish.torch.rehearsal.objective import Objective, fresh

_MOST_CALLS = 3  # of each module and each Function: the first, one in the middle, the last


def eager() -> AbstractContextManager[Any]:
    """Compiled parts run as they are written; where nothing was compiled, the compiler is not loaded."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@dataclass(slots=True)
class Session:
    """One check of one program, on copies."""

    model: nn.Module
    goal: Objective
    recorder: Recorder
    batch: Any
    names: dict[nn.Module, str]

    @classmethod
    def of(cls, model: nn.Module, loss_fn: Any, objective: Any, batch: Any) -> Session:
        """Copy the program, listen to one forward pass, turn the copy to float64."""
        work = working_copy(model, None, (loss_fn, objective))
        goal, recorder, own = Objective(*work.loss), Recorder(), fresh(batch)
        template = recorder.keeper.keep(own)  # so that what enters a module as it is in the batch is known as such
        with recorder.recording(work.model):
            loss = goal.run(work.model, own)
        if not loss.requires_grad:
            raise ValueError(
                "The loss does not depend on any parameter of the model that requires a gradient. "
                "Expected: a loss computed from the given model's output, with nothing detached in between. "
                "Look for .detach(), .data, .item() and torch.no_grad() on the way, and for a model from outside."
            )
        goal.forget()
        _to_float64(work.model, goal)
        names = {module: clean(name) for name, module in work.model.named_modules()}
        return cls(work.model, goal, recorder, template, names)

    def check(self) -> GradientCheck:
        """All pieces, in the order of the forward pass, then the whole."""
        report = Report({held: Given("", "batch", name) for name, held in held_in(self.batch, "batch")})
        wrong = self._functions(report)
        groups = _grouped([(call.module, call) for call in self.recorder.modules])
        calls = [one for calls in groups for one in _spread(calls)]
        units = {call: self._unit(call, which) for which, call in calls if call not in wrong}
        right = right_together(units.values(), report)
        for _, call in calls:
            if call in wrong:
                report.skipped.append(self._excused(call, wrong[call]))
            elif units[call] in right:
                report.right(units[call], right[units[call]])
            else:
                inspect(units[call], report)
        if self.recorder.root not in wrong:
            inspect(self._loss_unit(), report)
        self._silent(report)
        return report.result(whole_loss(self.model, self._run, report))

    def _functions(self, report: Report) -> dict[ModuleCall, str]:
        """Check custom Functions; the calls that use a wrong one, with its name."""
        wrong: dict[ModuleCall, str] = {}
        keyed = [((call.function, call.caller.module), call) for call in self.recorder.functions]
        for calls in _grouped(keyed):
            spread = _spread(calls)
            ok = [inspect(function_unit(call, self._name(call.caller), which), report) for which, call in spread]
            if not all(ok):
                wrong.update({call.caller: call.function.__name__ for call in calls})
        return wrong

    def _unit(self, call: ModuleCall, which: Which) -> Unit:
        return module_unit(call, self._name(call), which, self.names)

    def _name(self, call: ModuleCall) -> str:
        return "loss" if call.module is None else self.names[call.module]

    def _excused(self, call: ModuleCall, function: str) -> Skipped:
        return Skipped(self._name(call), type(call.module).__name__, f"it calls {function}, which is wrong")

    def _loss_unit(self) -> Unit:
        unit = module_unit(self.recorder.root, "loss", Which(), self.names, (self._run, self.batch))
        loss_fn = self.goal.loss_fn if self.goal.loss_fn is not None else self.goal.objective
        parameters = [(name, p, True) for name, p in self.model.named_parameters() if p.requires_grad]
        if isinstance(loss_fn, nn.Module):
            parameters += [(f"loss_fn.{name}", p, True) for name, p in loss_fn.named_parameters() if p.requires_grad]
            unit = replace(unit, modules=tuple(loss_fn.modules()))
        kind = getattr(loss_fn, "__name__", type(loss_fn).__name__)
        return replace(unit, kind=kind, parameters=tuple(parameters))

    def _run(self, supply: Supply) -> Any:
        """The program on the copies, in float64."""
        try:
            return self.goal.run(self.model, fill(self.batch, supply))
        finally:
            self.goal.forget()

    def _silent(self, report: Report) -> None:
        """Modules that nobody called cannot be checked; containers of others never are called."""
        called = {call.module for call in self.recorder.modules}
        for module, name in self.names.items():
            weights = module.named_parameters(recurse=False)
            own = [key for key, p in weights if p.requires_grad and id(p) not in report.seen]
            if module not in called and own:
                report.skipped.append(Skipped(name, type(module).__name__, f"not used by this batch: {', '.join(own)}"))


def _doubled(values: torch.Tensor) -> torch.Tensor:
    if not continuous(values):
        return values
    return values.to(torch.complex128 if values.is_complex() else torch.float64)


def _to_float64(model: nn.Module, goal: Objective) -> None:
    """The copies in float64, also tensors that are plain attributes; power iterations as they stand."""
    parts = [part for part in (model, goal.loss_fn, goal.objective) if isinstance(part, nn.Module)]
    try:
        for part in parts:
            part._apply(_doubled)
    except Exception as error:
        raise ValueError(
            f"The model could not be turned to float64: {type(error).__name__}: {error}. "
            "Derivatives are checked in float64, which needs ordinary weights on a device that has it (MPS has not). "
            "Move the model and the batch to the CPU, or check the model before it is quantised."
        ) from error
    for module in (module for part in parts for module in part.modules()):
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor):
                vars(module)[name] = _doubled(value.detach()) if continuous(value) else value
        hooks = module._forward_pre_hooks.values()
        if isinstance(module, _SpectralNorm) or any(isinstance(hook, SpectralNorm) for hook in hooks):
            module.training = False  # in training it turns its vectors at each call, and takes them for constants


def _grouped(keyed: list[tuple[Any, Any]]) -> list[list[Any]]:
    groups: dict[Any, list[Any]] = {}
    for key, call in keyed:
        groups.setdefault(key, []).append(call)
    return list(groups.values())


def _spread(calls: list[Any]) -> list[tuple[Which, Any]]:
    count = len(calls)
    chosen = range(count) if count <= _MOST_CALLS else (0, count // 2, count - 1)
    return [(Which(k + 1, count), calls[k]) for k in chosen]
