"""Small real data for the zoo, without any download: scikit-learn's bundled sets and a page of Alice."""

from __future__ import annotations

from functools import cache

import torch
from sklearn import datasets
from torch import Tensor

Batches = list[tuple[Tensor, Tensor]]

ALICE = (
    "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: "
    "once or twice she had peeped into the book her sister was reading, but it had no pictures or conversations "
    "in it, 'and what is the use of a book,' thought Alice, 'without pictures or conversations?' So she was "
    "considering in her own mind (as well as she could, for the hot day made her feel very sleepy and stupid), "
    "whether the pleasure of making a daisy-chain would be worth the trouble of getting up and picking the "
    "daisies, when suddenly a White Rabbit with pink eyes ran close by her. There was nothing so very remarkable "
    "in that; nor did Alice think it so very much out of the way to hear the Rabbit say to itself, 'Oh dear! Oh "
    "dear! I shall be late!' (when she thought it over afterwards, it occurred to her that she ought to have "
    "wondered at this, but at the time it all seemed quite natural); but when the Rabbit actually took a watch "
    "out of its waistcoat-pocket, and looked at it, and then hurried on, Alice started to her feet, for it "
    "flashed across her mind that she had never before seen a rabbit with either a waistcoat-pocket, or a watch "
    "to take out of it, and burning with curiosity, she ran across the field after it, and fortunately was just "
    "in time to see it pop down a large rabbit-hole under the hedge. "
)


@cache
def _load(name: str) -> tuple[Tensor, Tensor]:
    load = {
        "digits": datasets.load_digits,
        "breast_cancer": datasets.load_breast_cancer,
        "wine": datasets.load_wine,
        "iris": datasets.load_iris,
        "diabetes": lambda: datasets.load_diabetes(scaled=False),
    }[name]
    bunch = load()
    x = torch.tensor(bunch.data, dtype=torch.float32)
    y = torch.tensor(bunch.target)
    return x, y.float() if name == "diabetes" else y.long()


def standardize(x: Tensor) -> Tensor:
    """Zero mean and unit variance per feature, as ``StandardScaler`` does."""
    return (x - x.mean(0)) / x.std(0).clamp_min(1e-6)


def draw(x: Tensor, y: Tensor, batch: int, count: int) -> Batches:
    """``count`` shuffled batches, going through the set as often as needed."""
    order = torch.cat([torch.randperm(len(x)) for _ in range(1 + batch * count // len(x))])
    return [(x[i].clone(), y[i].clone()) for i in order[: batch * count].split(batch)]


def digits(batch: int = 64, count: int = 12, *, image: bool = False) -> Batches:
    """8x8 handwritten digits, globally standardised: rows of 64 pixels, or (1, 8, 8) images."""
    x, y = _load("digits")
    x = (x - 4.9) / 6.0
    return draw(x.view(-1, 1, 8, 8) if image else x, y, batch, count)


def pixels(batch: int = 64, count: int = 12, *, image: bool = False) -> Batches:
    """The digits as pixel values in 0..1, all of them positive."""
    x, y = _load("digits")
    return draw((x / 16).view(-1, 1, 8, 8) if image else x / 16, y, batch, count)


def table(name: str, batch: int = 64, count: int = 12, *, raw: bool = False) -> Batches:
    """breast_cancer, wine, iris (class targets) or diabetes (a number); standardised unless ``raw``."""
    x, y = _load(name)
    if raw:
        return draw(x, y, batch, count)
    return draw(standardize(x), standardize(y) if y.is_floating_point() else y, batch, count)


def column(batches: Batches) -> Batches:
    """The same batches with float targets of shape (n, 1)."""
    return [(x, y.float().unsqueeze(1)) for x, y in batches]


def vocabulary() -> list[str]:
    """The characters of the page."""
    return sorted(set(ALICE))


def characters(batch: int = 32, length: int = 24, count: int = 12) -> Batches:
    """Windows of the page and the same windows one character on: a language model's (input, target)."""
    index = {c: i for i, c in enumerate(vocabulary())}
    text = torch.tensor([index[c] for c in ALICE])
    starts = torch.randint(len(text) - length - 1, (count, batch))
    window = starts.unsqueeze(-1) + torch.arange(length)
    return [(text[w], text[w + 1]) for w in window]


def remembered(length: int, position: int, *, classes: int = 8, batch: int = 32, count: int = 12) -> Batches:
    """Sequences of small noise that show their class once, at ``position``; the target is the class."""
    y = torch.randint(classes, (count, batch))
    x = 0.1 * torch.randn(count, batch, length, classes)
    x[:, :, position] += torch.nn.functional.one_hot(y, classes).float()
    return list(zip(x, y, strict=True))
