"""Models of the transformers library, small and random-initialised, as its examples train them."""

from __future__ import annotations

import torch
import transformers as hf
from catalogue import adam, program
from torch import Tensor, nn

from unvanish.torch.zoo import Program
from unvanish.torch.zoo._data import characters, digits, vocabulary

V = len(vocabulary()) + 4  # room for padding, mask, begin and end
PAD, MASK, BEGIN = V - 1, V - 2, V - 3
SHAPE = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
SMALL = {**SHAPE, "vocab_size": V}


def text(length: int = 16) -> list[dict[str, Tensor]]:
    """What a causal language model is given: it shifts the labels itself."""
    return [{"input_ids": x, "labels": x.clone()} for x, _ in characters(8, length, 10)]


def reversal() -> list[dict[str, Tensor]]:
    """Sequence to sequence: put out the same letters upwards."""
    return [{"input_ids": x, "labels": x.clone()} for x, _ in characters(8, 12, 10)]


@program
def gpt2() -> Program:
    """Tied embeddings, dropout, the model's own loss."""
    config = hf.GPT2Config(vocab_size=V, n_positions=32, n_embd=48, n_layer=2, n_head=4)
    model = hf.GPT2LMHeadModel(config).train()
    return Program(model, text(), adam(model, 3e-3))


@program
def gpt2_checkpointed() -> Program:
    config = hf.GPT2Config(vocab_size=V, n_positions=32, n_embd=48, n_layer=2, n_head=4, use_cache=False)
    model = hf.GPT2LMHeadModel(config).train()
    model.gradient_checkpointing_enable()
    return Program(model, text(), adam(model, 3e-3))


@program
def gpt2_classifier() -> Program:
    """A long text against a short one, padded, read at the last token."""
    config = hf.GPT2Config(vocab_size=V, n_positions=32, n_embd=48, n_layer=2, n_head=4, num_labels=2, pad_token_id=PAD)
    model = hf.GPT2ForSequenceClassification(config).train()
    return Program(model, padded(), adam(model))


def padded() -> list[dict[str, Tensor]]:
    batches = []
    for x, _ in characters(16, 20, 10):
        length = torch.randint(6, 21, (len(x), 1))
        mask = (torch.arange(20) < length).long()
        labels = (x[:, 0] > x.float().median()).long()
        batches.append({"input_ids": x.masked_fill(mask == 0, PAD), "attention_mask": mask, "labels": labels})
    return batches


@program
def bert_masked() -> Program:
    model = hf.BertForMaskedLM(hf.BertConfig(max_position_embeddings=32, **SMALL)).train()
    batches = []
    for x, _ in characters(8, 24, 10):
        hidden = torch.rand(x.shape) < 0.15
        batches.append({"input_ids": x.masked_fill(hidden, MASK), "labels": x.masked_fill(~hidden, -100)})
    return Program(model, batches, adam(model, 3e-3))


@program
def bert_classifier() -> Program:
    model = hf.BertForSequenceClassification(hf.BertConfig(max_position_embeddings=32, num_labels=2, **SMALL)).train()
    return Program(model, padded(), adam(model))


@program
def albert_classifier() -> Program:
    """One layer, used three times: parameters shared over depth."""
    config = hf.AlbertConfig(max_position_embeddings=32, embedding_size=16, **{**SMALL, "num_hidden_layers": 3})
    model = hf.AlbertForSequenceClassification(config).train()
    return Program(model, padded(), adam(model))


@program
def llama() -> Program:
    """RMSNorm, rotary positions, grouped queries, a gated MLP."""
    config = hf.LlamaConfig(num_key_value_heads=2, max_position_embeddings=32, **SMALL)
    model = hf.LlamaForCausalLM(config).train()
    return Program(model, text(), adam(model, 3e-3))


@program
def mixtral() -> Program:
    """A mixture of four experts with a load-balancing loss."""
    config = hf.MixtralConfig(
        num_key_value_heads=2, max_position_embeddings=32, num_local_experts=4, output_router_logits=True, **SMALL
    )
    model = hf.MixtralForCausalLM(config).train()
    return Program(model, text(), adam(model, 3e-3))


@program
def t5() -> Program:
    config = hf.T5Config(
        vocab_size=V, d_model=48, d_kv=12, d_ff=96, num_layers=2, num_heads=4, decoder_start_token_id=BEGIN,
        pad_token_id=PAD,
    )  # fmt: skip
    model = hf.T5ForConditionalGeneration(config).train()
    return Program(model, reversal(), adam(model, 3e-3))


@program
def bart() -> Program:
    """Post-norm encoder and decoder with shared embeddings."""
    config = hf.BartConfig(
        vocab_size=V, d_model=48, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=96, decoder_ffn_dim=96, max_position_embeddings=32,
        decoder_start_token_id=BEGIN, pad_token_id=PAD, bos_token_id=BEGIN, eos_token_id=BEGIN,
    )  # fmt: skip
    model = hf.BartForConditionalGeneration(config).train()
    return Program(model, reversal(), adam(model, 3e-3))


@program
def vit() -> Program:
    config = hf.ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        num_labels=10,
        **{k: v for k, v in SMALL.items() if k != "vocab_size"},
    )
    model = hf.ViTForImageClassification(config).train()
    batches = [{"pixel_values": x, "labels": y} for x, y in digits(16, 10, image=True)]
    return Program(model, batches, adam(model))


@program
def masked_autoencoder() -> Program:
    """Fixed position codes stand among the weights, and in the optimizer; most patches are dropped at random."""
    config = hf.ViTMAEConfig(
        image_size=8, patch_size=2, num_channels=1, decoder_hidden_size=32, decoder_num_hidden_layers=1,
        decoder_num_attention_heads=4, decoder_intermediate_size=64, **SHAPE,
    )  # fmt: skip
    model = hf.ViTMAEForPreTraining(config).train()
    return Program(model, [{"pixel_values": x} for x, _ in digits(16, 10, image=True)], adam(model, 3e-3))


@program
def convnext() -> Program:
    """Depthwise convolutions, and branches scaled by 1e-6 at the start."""
    config = hf.ConvNextConfig(
        num_channels=1, patch_size=1, num_stages=2, hidden_sizes=[16, 32], depths=[2, 2], num_labels=10
    )
    model = hf.ConvNextForImageClassification(config).train()
    batches = [{"pixel_values": x, "labels": y} for x, y in digits(16, 10, image=True)]
    return Program(model, batches, adam(model, 3e-3))


@program
def mamba() -> Program:
    """A state-space model; its scan runs as a Python loop."""
    config = hf.MambaConfig(vocab_size=V, hidden_size=32, num_hidden_layers=2, state_size=8)
    model = hf.MambaForCausalLM(config).train()
    return Program(model, text(12), adam(model, 3e-3))


@program
def clip() -> Program:
    """Two towers and a contrastive loss whose targets are the batch's own positions."""
    config = hf.CLIPConfig(
        text_config={**SMALL, "max_position_embeddings": 8, "bos_token_id": BEGIN, "eos_token_id": PAD},
        vision_config={**SHAPE, "image_size": 8, "patch_size": 2, "num_channels": 1},
        projection_dim=32,
    )
    model = hf.CLIPModel(config).train()
    batches = []
    for x, y in digits(10, 10, image=True):
        ids = torch.stack([torch.full_like(y, BEGIN), y, y + 10, torch.full_like(y, PAD)], dim=1)
        batches.append({"pixel_values": x, "input_ids": ids, "return_loss": True})
    return Program(model, batches, adam(model))


@program
def wav2vec_ctc() -> Program:
    """Raw waves, strided convolutions, CTC over the letters."""
    config = hf.Wav2Vec2Config(
        conv_dim=(32, 32), conv_stride=(5, 4), conv_kernel=(10, 8), num_feat_extract_layers=2,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4, pad_token_id=0,
        ctc_loss_reduction="mean", mask_time_prob=0.0,
        **{**SMALL, "vocab_size": 6},
    )  # fmt: skip
    model = hf.Wav2Vec2ForCTC(config).train()
    batches = []
    for _ in range(8):
        labels = torch.randint(1, 6, (8, 3))
        tone = labels.repeat_interleave(160, dim=1) * torch.arange(480) * 0.1
        batches.append({"input_values": torch.sin(tone) + 0.05 * torch.randn(8, 480), "labels": labels})
    return Program(model, batches, adam(model, 3e-3))


class Regressor(nn.Module):
    """A pretrained-style encoder, kept frozen, under a head of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = hf.DistilBertModel(
            hf.DistilBertConfig(vocab_size=V, dim=48, n_layers=2, n_heads=4, hidden_dim=96)
        )
        self.head = nn.Linear(48, 2)
        for parameter in self.encoder.parameters():
            parameter.requires_grad = False

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.head(states[:, 0])


@program
def frozen_distilbert() -> Program:
    model = Regressor()
    batches = [({k: b[k] for k in ("input_ids", "attention_mask")}, b["labels"]) for b in padded()]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    return Program(model, batches, optimizer, nn.CrossEntropyLoss())
