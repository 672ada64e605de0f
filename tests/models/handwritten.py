"""Networks as users write them themselves: the standard architectures in plain PyTorch."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from catalogue import adam, program
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from unvanish.torch.zoo import Program
from unvanish.torch.zoo._data import ALICE, characters, digits, pixels, table, vocabulary

V = len(vocabulary())


class Seq2Seq(nn.Module):
    """nn.Transformer with learnt positions, as in the PyTorch tutorial."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.embed = nn.Embedding(V + 1, width)
        self.positions = nn.Embedding(32, width)
        self.transformer = nn.Transformer(width, 4, 2, 2, 96, dropout=0.1, batch_first=True)
        self.generator = nn.Linear(width, V)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        place = self.positions(torch.arange(source.shape[1]))
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        hidden = self.transformer(self.embed(source) + place, self.embed(target) + place, tgt_mask=mask)
        return self.generator(hidden)


def per_token(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.reshape(-1, output.shape[-1]), target.reshape(-1))


def teacher_forced() -> list[tuple[tuple[Tensor, Tensor], Tensor]]:
    """Put out the source backwards; the decoder is fed with the target shifted by one."""
    batches = []
    for x, _ in characters(16, 10, 10):
        y = x.flip(1)
        batches.append(((x, torch.cat([torch.full_like(y[:, :1], V), y[:, :-1]], dim=1)), y))
    return batches


@program
def transformer_seq2seq() -> Program:
    model = Seq2Seq()
    return Program(model, teacher_forced(), adam(model, 3e-3), per_token)


class RowClassifier(nn.Module):
    """The rows of a digit as tokens, nn.TransformerEncoder, a learnt class token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 48)
        self.token = nn.Parameter(torch.zeros(1, 1, 48))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 9, 48))
        layer = nn.TransformerEncoderLayer(48, 4, 96, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x.squeeze(1))], dim=1)
        return self.head(self.encoder(tokens + self.positions)[:, 0])


@program
def transformer_encoder() -> Program:
    model = RowClassifier()
    return Program(model, digits(image=True), adam(model, 3e-3), nn.CrossEntropyLoss(label_smoothing=0.1))


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.shortcut(x)
        return self.relu(out)


class ResNet18(nn.Module):
    """Two basic blocks in each of four stages; in-place adds and ReLUs."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(BasicBlock(a, b, 1 if i == 0 else 2), BasicBlock(b, b))
                for i, (a, b) in enumerate(pairwise(widths))
            )
        )
        self.fc = nn.Linear(8 * width, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(F.relu(self.bn1(self.conv1(x)), inplace=True))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


@program
def resnet18() -> Program:
    model = ResNet18()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    return Program(model, digits(32, image=True), optimizer, nn.CrossEntropyLoss())


def double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
    )  # fmt: skip


class UNet(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = double(1, width), double(width, 2 * width), double(2 * width, 4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.up1 = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.conv2, self.conv1 = double(4 * width, 2 * width), double(3 * width, width)
        self.out = nn.Conv2d(width, 1, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(self.pool(a))
        c = self.bottom(self.pool(b))
        b = self.conv2(torch.cat([self.up2(c), b], dim=1))
        return self.out(self.conv1(torch.cat([self.up1(b), a], dim=1)))


def dice_and_bce(output: Tensor, target: Tensor) -> Tensor:
    p = output.sigmoid()
    dice = 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
    return F.binary_cross_entropy_with_logits(output, target) + dice


@program
def unet() -> Program:
    """Segment the ink of noisy digits."""
    model = UNet()
    batches = [(x + 0.3 * torch.randn_like(x), (x > 0.4).float()) for x, _ in pixels(16, image=True)]
    return Program(model, batches, adam(model), dice_and_bce)


class DenseNet(nn.Module):
    def __init__(self, growth: int = 8, layers: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, growth, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(growth * (i + 1)) for i in range(layers))
        self.convs = nn.ModuleList(nn.Conv2d(growth * (i + 1), growth, 3, padding=1) for i in range(layers))
        self.fc = nn.Linear(growth * (layers + 1), 10)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        return self.fc(torch.cat(features, 1).mean((2, 3)))


@program
def densenet() -> Program:
    model = DenseNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    return Program(model, digits(32, image=True), optimizer, F.cross_entropy)


class WordModel(nn.Module):
    """The LSTM of PyTorch's word_language_model example: dropout, tied weights."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.1)
        self.encoder = nn.Embedding(V, width)
        self.rnn = nn.LSTM(width, width, 2, dropout=0.1, batch_first=True)
        self.decoder = nn.Linear(width, V)
        self.decoder.weight = self.encoder.weight
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(self.drop(self.encoder(x)))
        return F.log_softmax(self.decoder(self.drop(out)), dim=-1)


@program
def lstm_language_model() -> Program:
    model = WordModel()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.nll_loss(output.view(-1, V), target.view(-1))

    return Program(model, characters(16, 30), torch.optim.Adam(model.parameters(), lr=1e-2), loss)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(V + 1, 32, padding_idx=V)
        self.lstm = nn.LSTM(32, 32, bidirectional=True, batch_first=True)
        self.tag = nn.Linear(64, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embed(x), lengths, batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=x.shape[1])
        return self.tag(out)


@program
def bilstm_tagger() -> Program:
    """Tag letters as vowel, consonant or other; sentences of different length, padding ignored in the loss."""
    kind = torch.tensor([0 if c in "aeiouAEIOU" else 1 if c.isalpha() else 2 for c in vocabulary()])
    batches = []
    for x, _ in characters(16, 25, 10):
        lengths = torch.randint(5, 26, (len(x),))
        padding = torch.arange(25) >= lengths.unsqueeze(1)
        batches.append(((x.masked_fill(padding, V), lengths), kind[x].masked_fill(padding, -100)))
    model = Tagger()
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=1e-2), per_token)


class Attending(nn.Module):
    """GRU encoder, GRUCell decoder unrolled by hand, additive attention, teacher forcing."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.embed = nn.Embedding(V + 1, width)
        self.encoder = nn.GRU(width, width, batch_first=True)
        self.cell = nn.GRUCell(2 * width, width)
        self.query, self.key, self.score = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 1)
        self.out = nn.Linear(2 * width, V)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        states, hidden = self.encoder(self.embed(source))
        hidden, keys = hidden[0], self.key(states)
        outputs = []
        for t in range(target.shape[1]):
            weights = self.score(torch.tanh(keys + self.query(hidden).unsqueeze(1))).softmax(dim=1)
            context = (weights * states).sum(1)
            hidden = self.cell(torch.cat([self.embed(target[:, t]), context], dim=1), hidden)
            outputs.append(self.out(torch.cat([hidden, context], dim=1)))
        return torch.stack(outputs, dim=1)


@program
def gru_attention() -> Program:
    model = Attending()
    return Program(model, teacher_forced(), torch.optim.Adam(model.parameters(), lr=5e-3), per_token)


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.mean, self.log_var = nn.Linear(64, 8), nn.Linear(64, 8)
        self.decoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.Sigmoid())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.encoder(x)
        mean, log_var = self.mean(hidden), self.log_var(hidden)
        z = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
        return self.decoder(z), mean, log_var


def elbo(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
    """As in PyTorch's example: summed over the batch."""
    x, mean, log_var = output
    return F.binary_cross_entropy(x, target, reduction="sum") - 0.5 * (1 + log_var - mean**2 - log_var.exp()).sum()


@program
def vae() -> Program:
    model = VAE()
    batches = [(x, x) for x, _ in pixels(64)]
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=3e-3), elbo)


class Autoencoder(nn.Module):
    """Convolutions down, transposed convolutions up."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 16, 3, 2, 1), nn.LeakyReLU(0.2)
        )
        self.code = nn.Linear(64, 16)
        self.up = nn.Sequential(
            nn.Linear(16, 64), nn.Unflatten(1, (16, 2, 2)), nn.ReLU(), nn.ConvTranspose2d(16, 16, 2, 2), nn.ReLU(),
            nn.ConvTranspose2d(16, 1, 2, 2), nn.Tanh(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.code(self.down(x).flatten(1)))


@program
def autoencoder() -> Program:
    model = Autoencoder()
    batches = [(2 * x - 1, 2 * x - 1) for x, _ in pixels(32, image=True)]
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=3e-3), nn.MSELoss())


class Mixer(nn.Module):
    """MLP-Mixer: linear layers over transposed axes, LayerNorm, GELU."""

    def __init__(self, tokens: int = 16, width: int = 32, blocks: int = 3) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 2, 2)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * blocks))
        self.over_tokens = nn.ModuleList(
            nn.Sequential(nn.Linear(tokens, 32), nn.GELU(), nn.Linear(32, tokens)) for _ in range(blocks)
        )
        self.over_channels = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width)) for _ in range(blocks)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        for i, (tokens, channels) in enumerate(zip(self.over_tokens, self.over_channels, strict=True)):
            x = x + tokens(self.norms[2 * i](x).transpose(1, 2)).transpose(1, 2)
            x = x + channels(self.norms[2 * i + 1](x))
        return self.head(x.mean(1))


@program
def mixer() -> Program:
    model = Mixer()
    return Program(model, digits(32, image=True), adam(model, 3e-3), nn.CrossEntropyLoss())


class TextCNN(nn.Module):
    """Convolutions of several widths over letters, max over time."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(V, 32)
        self.convs = nn.ModuleList(nn.Conv1d(32, 32, k) for k in (2, 3, 4))
        self.fc = nn.Linear(96, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).transpose(1, 2)
        x = torch.cat([F.relu(conv(x)).max(dim=2).values for conv in self.convs], dim=1)
        return self.fc(F.dropout(x, 0.3, self.training))


@program
def text_cnn() -> Program:
    """Does the window hold the word "the"?"""
    letters = vocabulary()
    batches = []
    for x, _ in characters(64, 30, 10):
        words = ["".join(letters[i] for i in row) for row in x.tolist()]
        batches.append((x, torch.tensor([int("the" in word) for word in words])))
    model = TextCNN()
    assert "the" in ALICE
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=3e-3), F.cross_entropy)


class WaveNet(nn.Module):
    """Gated, dilated, causal convolutions with residual and skip paths; next value of a wave."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.start = nn.Conv1d(1, width, 1)
        self.gates = nn.ModuleList(nn.Conv1d(width, 2 * width, 2, dilation=2**i) for i in range(4))
        self.skips = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(4))
        self.end = nn.Conv1d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        total: Tensor | float = 0.0
        for gate, skip in zip(self.gates, self.skips, strict=True):
            a, b = gate(F.pad(x, (gate.dilation[0], 0))).chunk(2, dim=1)
            out = torch.tanh(a) * torch.sigmoid(b)
            total = total + skip(out)
            x = x + out
        return self.end(F.relu(total))


@program
def wavenet() -> Program:
    batches = []
    for _ in range(10):
        t = torch.arange(33) * (0.2 + 0.6 * torch.rand(16, 1)) + 6 * torch.rand(16, 1)
        wave = (t.sin() + 0.5 * (3 * t).sin()).unsqueeze(1)
        batches.append((wave[..., :-1], wave[..., 1:]))
    model = WaveNet()
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=1e-2), F.mse_loss)


class TabularNet(nn.Module):
    """BatchNorm first, so raw features do no harm; dropout and SELU."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.BatchNorm1d(inputs), nn.Linear(inputs, 64), nn.SELU(), nn.AlphaDropout(0.05),
            nn.Linear(64, 32), nn.SELU(), nn.Linear(32, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1)


@program
def tabular_regression() -> Program:
    model = TabularNet(10)
    mean, std = 152.0, 77.0
    batches = [(x, (y - mean) / std) for x, y in table("diabetes", raw=True)]
    return Program(model, batches, torch.optim.RMSprop(model.parameters(), lr=3e-3), nn.SmoothL1Loss())


@program
def linear_softmax_regression() -> Program:
    """One layer, nothing to lose."""
    model = nn.Linear(64, 10)
    return Program(model, digits(), torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss())


class PositionalMLP(nn.Module):
    """An image as a function of its coordinates, with Fourier features."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.arange(3))
        self.net = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, x: Tensor) -> Tensor:
        angles = (x.unsqueeze(-1) * self.frequencies).flatten(1)
        return self.net(torch.cat([angles.sin(), angles.cos()], dim=1))


@program
def coordinates_to_image() -> Program:
    model = PositionalMLP()
    image = pixels(1, 1, image=True)[0][0][0, 0]
    batches = []
    for _ in range(10):
        i, j = torch.randint(8, (2, 64))
        batches.append((torch.stack([i, j], 1) / 4 - 1, image[i, j].unsqueeze(1)))
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=3e-3), nn.MSELoss())
