"""What to say of numbers that lost their history on the way to the loss, and of attention that is shown padding alone."""

from __future__ import annotations

from dataclasses import dataclass

from unvanish.types import Cut, Flow


@dataclass(frozen=True)
class Told:
    """Confidence, message and remedy for one kind of cut."""

    confidence: float
    message: str
    remedy: str


KINDS = {
    "create_graph": Told(
        0.93,
        "The loss depends on a derivative that torch.autograd.grad() returned without create_graph=True: other numbers in its "
        "place change the loss, yet no gradient comes back through it, so that this part of the loss teaches the weights "
        "nothing. Expected: every derivative that the loss is made of has a graph. Pass create_graph=True to the last "
        "torch.autograd.grad() as well.",
        "pass create_graph=True to every torch.autograd.grad() whose result enters the loss",
    ),
    "sample": Told(
        0.9,
        "{where} is given what was drawn by .sample(), which has no history: through it the loss tells the weights that made "
        "the distribution nothing. Expected: .rsample(), which draws the same numbers as mean + scale * noise, with a gradient "
        "for both. Keep .sample() where only log_prob() is to be learnt from.",
        "draw with .rsample() instead of .sample()",
    ),
    "padding": Told(
        0.93,
        "{where}: the mask lets attention take in the padding and leaves out the content. The keys it takes in are the same "
        "in all samples, those it leaves out are not. Expected: the reverse. In key_padding_mask (nn.MultiheadAttention, "
        "nn.Transformer*) True means leave out, in attn_mask of scaled_dot_product_attention and in attention_mask of "
        "transformers True means take in. Turn the mask over.",
        "turn the padding mask of {where} over (~mask)",
    ),
}  # fmt: skip


def lost(flow: Flow) -> list[Cut]:
    """The cuts of these kinds."""
    return [cut for cut in flow.cuts if cut.op in KINDS]
