"""transformers.Trainer: a small vision transformer on digits; "cut" detaches its body, "rate" is far too high."""
# ruff: noqa: T201 - scripts print

import sys
import tempfile

import torch
from sklearn.datasets import load_digits
from torch import nn
from transformers import PrinterCallback, Trainer, TrainingArguments, ViTConfig, ViTModel


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        config = ViTConfig(
            image_size=8,
            patch_size=2,
            num_channels=1,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
        )
        self.body = ViTModel(config)
        self.head = nn.Linear(32, 10)

    def forward(self, pixel_values, labels=None):
        pooled = self.body(pixel_values=pixel_values).pooler_output
        logits = self.head(pooled.detach() if "cut" in sys.argv else pooled)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def main():
    torch.manual_seed(0)
    data = load_digits()
    images = torch.tensor(data.images / 8 - 1, dtype=torch.float32)[:, None]
    rows = [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, data.target, strict=True)]
    model = Reader()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=40,
            per_device_train_batch_size=32,
            learning_rate=3.0 if "rate" in sys.argv else 2e-3,
            lr_scheduler_type="constant",
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=rows)
        trainer.remove_callback(PrinterCallback)
        print(trainer.train().training_loss, sum(p.double().sum().item() for p in model.parameters()))


main()
