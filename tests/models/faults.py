"""One fault each in a program that is healthy without it: what is broken, the cause to name, and where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from catalogue import PROGRAMS
from torch import Tensor, nn

from unvanish.torch.zoo import Program


@dataclass(frozen=True)
class Fault:
    """``place`` is a regex that one of the finding's places must match."""

    model: str
    cause: tuple[str, ...]
    place: str
    inject: Callable[[Program], Program]

    def build(self) -> Program:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.inject(PROGRAMS[self.model](0))


FAULTS: dict[str, Fault] = {}


def fault(model: str, cause: str, place: str, *accept: str) -> Callable[[Callable[[Program], Program]], Any]:
    def register(inject: Callable[[Program], Program]) -> Callable[[Program], Program]:
        FAULTS[inject.__name__] = Fault(model, (cause, *accept), place, inject)
        return inject

    return register


def own_loss(p: Program) -> Callable[..., Tensor]:
    assert p.loss_fn is not None
    return p.loss_fn


def at_rate(p: Program, lr: float) -> Program:
    for group in p.optimizer.param_groups:
        group["lr"] = lr
    return p


@fault("transformer_encoder", "loss-mismatch", "^loss$")
def softmax_before_cross_entropy(p: Program) -> Program:
    return replace(p, loss_fn=lambda output, target: F.cross_entropy(output.softmax(-1), target))


@fault("own_attention_pooling", "loss-mismatch", "^loss$")
def predictions_broadcast_against_targets(p: Program) -> Program:
    return replace(p, loss_fn=lambda output, target: (output.unsqueeze(1) - target).square().mean())


@fault("bert_classifier", "learning-rate-low", "^optimizer$")
def rate_of_1e_8(p: Program) -> Program:
    return at_rate(p, 1e-8)


@fault("llama", "learning-rate-high", "^optimizer$")
def rate_of_10(p: Program) -> Program:
    return at_rate(p, 10.0)


@fault("densenet", "learning-rate-high", "^optimizer$")
def rate_of_1000(p: Program) -> Program:
    return at_rate(p, 1000.0)


@fault("transformer_seq2seq", "disconnected", "encoder")
def detached_memory(p: Program) -> Program:
    p.model.transformer.encoder.register_forward_hook(lambda module, args, output: output.detach())
    return p


@fault("bilstm_tagger", "disconnected", "lstm|embed")
def only_the_head_in_the_optimizer(p: Program) -> Program:
    return replace(p, optimizer=torch.optim.Adam(p.model.tag.parameters(), lr=1e-4))


@fault("unet", "non-finite", "^input$")
def nan_in_the_input(p: Program) -> Program:
    p.batches[0][0][3, 0, 2, 2] = float("nan")
    return p


@fault("vae", "non-finite", "log|loss")
def logarithm_of_zero(p: Program) -> Program:
    def loss(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
        x, mean, log_var = output
        return -(target * (x.round()).log()).sum() - 0.5 * (1 + log_var - mean**2 - log_var.exp()).sum()

    return replace(p, loss_fn=loss)


@fault("text_cnn", "dead-units", "convs")
def biases_of_minus_ten(p: Program) -> Program:
    for conv in p.model.convs:
        nn.init.constant_(conv.bias, -10.0)
    return p


@fault("tabular_regression", "input-scale", "target")
def raw_targets(p: Program) -> Program:
    return replace(p, batches=[(x, 1e5 * y) for x, y in p.batches], loss_fn=F.mse_loss)


@fault("autoencoder", "initialization", "down|code|up")
def weights_times_one_hundredth(p: Program) -> Program:
    with torch.no_grad():
        for parameter in p.model.parameters():
            parameter.mul_(0.01)
    return p


@fault("coordinates_to_image", "symmetry", "net")
def all_weights_zero(p: Program) -> Program:
    for parameter in p.model.parameters():
        nn.init.zeros_(parameter)
    return p


@fault("gpt2_classifier", "precision", "optimizer|h\\.0")
def bfloat16_weights_at_a_small_rate(p: Program) -> Program:
    p.model.bfloat16()
    return at_rate(p, 1e-5)


@fault("neural_ode", "saturation", "field", "exploding", "initialization")
def weights_times_one_hundred(p: Program) -> Program:
    with torch.no_grad():
        for layer in p.model.field:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(100)
    return p


@fault("vit", "symmetry", "encoder|layer|embed|classifier")
def transformer_of_equal_rows(p: Program) -> Program:
    for parameter in p.model.parameters():
        if parameter.ndim > 1:
            nn.init.constant_(parameter, 0.01)
    return p


@fault("gan_generator", "learning-rate-low", "^optimizer$")
def generator_that_stands_still(p: Program) -> Program:
    return at_rate(p, 1e-9)


@fault("mixtral", "disconnected", "lm_head|embed|self_attn")
def experts_only_in_the_optimizer(p: Program) -> Program:
    mine = [parameter for name, parameter in p.model.named_parameters() if "experts" in name]
    return replace(p, optimizer=torch.optim.AdamW(mine, lr=1e-3))


@fault("resnet18", "normalization", "bn")
def batch_of_two(p: Program) -> Program:
    """At the last stage one pixel is left: a statistic over two numbers."""
    return replace(p, batches=[(x[:2], y[:2]) for x, y in p.batches])
