"""Programs that learn, most of which look ill to a simple monitor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unvanish.torch.zoo._case import Program, well
from unvanish.torch.zoo._data import (
    ALICE,
    characters,
    column,
    digits,
    pixels,
    remembered,
    table,
    vocabulary,
)

# mypy: disable-error-code="no-any-return"


class MLP(nn.Module):
    """The MLP of every tutorial."""

    def __init__(self, inputs: int = 64, hidden: int = 64, outputs: int = 10) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


@well("An ordinary MLP.")
def plain_mlp() -> Program:
    model = MLP()
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), F.cross_entropy)


@well("Converged: the gradients are tiny because the loss is.")
def converged() -> Program:
    model = MLP(30, 32, 2)
    batches = table("breast_cancer", 64, 9)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for x, y in (batches * 14)[:120]:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=1e-3), nn.CrossEntropyLoss())


class FrozenBackbone(nn.Module):
    """Random features, frozen on purpose, and a trained head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
        self.head = nn.Linear(128, 10)
        for parameter in self.backbone.parameters():
            nn.init.normal_(parameter, std=0.12)
            parameter.requires_grad = False

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


@well("The backbone is frozen: requires_grad is False and the optimizer does not have it.")
def frozen_backbone() -> Program:
    model = FrozenBackbone()
    return Program(model, digits(), torch.optim.Adam(model.head.parameters(), lr=1e-2), nn.CrossEntropyLoss())


class TwoHeads(nn.Module):
    """A classifier with an auxiliary head for a later stage."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.classifier = nn.Linear(64, 10)
        self.auxiliary = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.trunk(x))


@well("The auxiliary head is never called: its gradient is None.")
def unused_head() -> Program:
    model = TwoHeads()
    return Program(model, digits(), torch.optim.AdamW(model.parameters(), lr=3e-3), nn.CrossEntropyLoss())


def words() -> tuple[list[tuple[Tensor, Tensor]], int]:
    """Is the middle letter of a window a vowel? Windows of letters, in a vocabulary mostly unused."""
    codes = torch.tensor([ord(c) for c in ALICE])
    vowel = torch.tensor([c in "aeiou" for c in ALICE])
    starts = torch.randint(len(codes) - 5, (12, 64))
    windows = starts.unsqueeze(-1) + torch.arange(5)
    return [(codes[w], vowel[w[:, 2]].long()) for w in windows], 2000


@well("Embedding with rare rows: most get no gradient in a batch.")
def rare_embedding_rows() -> Program:
    batches, size = words()
    model = nn.Sequential(nn.Embedding(size, 16), nn.Flatten(), nn.Linear(80, 32), nn.ReLU(), nn.Linear(32, 2))
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=5e-3), nn.CrossEntropyLoss())


@well("nn.Embedding(sparse=True): the gradient is a sparse tensor.", holdout=True)
def sparse_embedding() -> Program:
    batches, size = words()
    model = nn.Sequential(nn.Embedding(size, 8, sparse=True), nn.Flatten(), nn.Linear(40, 2))
    return Program(model, batches, torch.optim.SGD(model.parameters(), lr=0.5), F.cross_entropy)


class Mixture(nn.Module):
    """Top-1 mixture of eight experts."""

    def __init__(self, experts: int = 8) -> None:
        super().__init__()
        self.router = nn.Linear(64, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)) for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        gate = self.router(x).softmax(-1)
        weight, chosen = gate.max(-1)
        out = x.new_zeros(x.shape[0], 10)
        for i, expert in enumerate(self.experts):
            mine = chosen == i
            if mine.any():
                out[mine] = weight[mine].unsqueeze(1) * expert(x[mine])
        return out


@well("A mixture whose router leaves experts idle for whole batches.")
def idle_experts() -> Program:
    model = Mixture()
    with torch.no_grad():
        model.router.bias[3] = -2.0
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=1e-2), nn.CrossEntropyLoss())


class LoRA(nn.Module):
    """A frozen linear layer with a low-rank adapter whose B starts at zero."""

    def __init__(self, base: nn.Linear, rank: int = 8) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.lora_a.t() @ self.lora_b.t()


@well("LoRA: B is zero, so A has no gradient in the first step.")
def lora() -> Program:
    model = nn.Sequential(
        LoRA(nn.Linear(64, 64)), nn.ReLU(), LoRA(nn.Linear(64, 64)), nn.ReLU(), LoRA(nn.Linear(64, 10))
    )
    trainable = [p for p in model.parameters() if p.requires_grad]
    return Program(model, digits(), torch.optim.AdamW(trainable, lr=1e-2), nn.CrossEntropyLoss())


class ReZero(nn.Module):
    """x + alpha f(x) with alpha = 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)
        self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.alpha * self.fc2(F.relu(self.fc1(x)))


@well("ReZero: 20 branches are closed at the start and their weights have gradient zero.")
def rezero() -> Program:
    model = nn.Sequential(nn.Linear(64, 48), *[ReZero(48) for _ in range(20)], nn.Linear(48, 10))
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), nn.CrossEntropyLoss())


@well("Wide and sparse: nine of ten ReLUs are off for any sample, few for all.")
def sparse_wide_relu() -> Program:
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10))
    with torch.no_grad():
        model[0].weight.mul_(3.0)  # type: ignore[operator]
        model[0].bias.fill_(-2.2)  # type: ignore[operator]
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), nn.CrossEntropyLoss())


class CharLSTM(nn.Module):
    """LSTM language model."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(vocabulary()), 24)
        self.lstm = nn.LSTM(24, 64, batch_first=True)
        self.head = nn.Linear(64, len(vocabulary()))

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(self.embed(x))
        return self.head(out).transpose(1, 2)


@well("An LSTM language model: its gradient fades over time, and each step has its own target.")
def lstm_language_model() -> Program:
    model = CharLSTM()
    return Program(model, characters(), torch.optim.Adam(model.parameters(), lr=1e-2), nn.CrossEntropyLoss())


class KeepingGRU(nn.Module):
    """A GRU whose update gates start closed, so that it keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 32, batch_first=True)
        self.fc = nn.Linear(32, 8)
        with torch.no_grad():
            self.gru.bias_ih_l0[32:64] += 5.0  # type: ignore[index, operator]

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.gru(x)
        return self.fc(out[:, -1])


@well("A GRU with saturated, closed gates: that is how it remembers.")
def closed_gates() -> Program:
    model = KeepingGRU()
    return Program(model, remembered(40, 0), torch.optim.Adam(model.parameters(), lr=2e-2), nn.CrossEntropyLoss())


class SharpAttention(nn.Module):
    """Attention over the rows of a digit with sharp, one-hot-like weights."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(8, 32)
        self.key = nn.Linear(8, 32)
        self.value = nn.Linear(8, 32)
        self.head = nn.Linear(8 * 32, 10)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.view(-1, 8, 8)
        scores = 20 * self.query(rows) @ self.key(rows).transpose(1, 2) / 32**0.5
        return self.head((scores.softmax(-1) @ self.value(rows)).flatten(1))


@well("Saturated softmax in attention, and the net trains all the same.")
def saturated_attention() -> Program:
    model = SharpAttention()
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=5e-3), F.cross_entropy)


class GAN(nn.Module):
    """Generator and discriminator of 8x8 digits in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.Sigmoid())
        self.discriminator = nn.Sequential(nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))


@well("The discriminator's step of a GAN: the fakes are detached on purpose, the generator has its own step.")
def gan_discriminator_step() -> Program:
    model = GAN()

    def objective(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        assert isinstance(net, GAN)
        real, noise = batch
        fake = net.generator(noise).detach()
        right, wrong = net.discriminator(real), net.discriminator(fake)
        return F.softplus(-right).mean() + F.softplus(wrong).mean()

    batches = [(x, torch.randn(len(x), 16)) for x, _ in pixels()]
    optimizer = torch.optim.Adam(model.discriminator.parameters(), lr=2e-3, betas=(0.5, 0.999))
    return Program(model, batches, optimizer, objective=objective)


class VAE(nn.Module):
    """Variational autoencoder of the digits."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.mu = nn.Linear(64, 8)
        self.log_var = nn.Linear(64, 8)
        self.decoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encoder(x)
        mu, log_var = self.mu(h), self.log_var(h)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * log_var)
        return self.decoder(z), mu, log_var


@well("A VAE: two losses of different size, noise in the forward pass.")
def vae() -> Program:
    model = VAE()

    def loss(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
        logits, mu, log_var = output
        rebuilt = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1).mean()
        kl = -0.5 * (1 + log_var - mu.pow(2) - log_var.exp()).sum(1).mean()
        return rebuilt + kl

    batches = [(x, x) for x, _ in pixels()]
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=5e-3), loss)


class UNet(nn.Module):
    """One level of a U-Net that removes noise."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(1, 12, 3, padding=1)
        self.down2 = nn.Conv2d(12, 24, 3, padding=1)
        self.up = nn.ConvTranspose2d(24, 12, 2, stride=2)
        self.fuse = nn.Conv2d(24, 12, 3, padding=1)
        self.out = nn.Conv2d(12, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.down1(x))
        b = F.relu(self.down2(F.max_pool2d(a, 2)))
        return self.out(F.relu(self.fuse(torch.cat([a, self.up(b)], 1))))


@well("A U-Net with skips by concatenation.", holdout=True)
def unet() -> Program:
    model = UNet()
    batches = [(x + 0.5 * torch.randn_like(x), x) for x, _ in digits(32, image=True)]
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=5e-3), nn.MSELoss())


class BasicBlock(nn.Module):
    """ResNet's block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(x + self.bn2(self.conv2(out)), inplace=True)


@well("A small ResNet with zero-initialised last BatchNorm gammas and biases before BatchNorm of no effect.")
def resnet() -> Program:
    stem = [nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()]
    model = nn.Sequential(
        *stem, *[BasicBlock(12) for _ in range(4)], nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(48, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    return Program(model, digits(image=True), optimizer, nn.CrossEntropyLoss())


class PreNormBlock(nn.Module):
    """x + W2 gelu(W1 norm(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


@well("Forty pre-norm residual blocks: deep, and fine.")
def prenorm_forty() -> Program:
    model = nn.Sequential(
        nn.Linear(64, 48), *[PreNormBlock(48) for _ in range(40)], nn.LayerNorm(48), nn.Linear(48, 10)
    )
    return Program(model, digits(32), torch.optim.AdamW(model.parameters(), lr=1e-3), nn.CrossEntropyLoss())


class RowTransformer(nn.Module):
    """Reads the eight rows of a digit as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.position = nn.Parameter(0.02 * torch.randn(8, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.classifier = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.encoder(self.embed(x.squeeze(1)) + self.position).mean(1))


@well("A post-norm transformer encoder with dropout.")
def transformer_classifier() -> Program:
    model = RowTransformer()
    return Program(model, digits(image=True), torch.optim.Adam(model.parameters(), lr=3e-3), nn.CrossEntropyLoss())


class PINN(nn.Module):
    """u(t) for a differential equation."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, t: Tensor) -> Tensor:
        return self.net(t)


@well("A physics-informed net: u' = -u, u(0) = 1, with autograd.grad inside the objective.")
def pinn() -> Program:
    model = PINN()

    def objective(net: nn.Module, t: Tensor) -> Tensor:
        t = t.clone().requires_grad_(True)
        u = net(t)
        (du,) = torch.autograd.grad(u.sum(), t, create_graph=True)
        start = net(torch.zeros(1, 1)) - 1
        return (du + u).pow(2).mean() + 10 * start.pow(2).mean()

    batches = [3 * torch.rand(64, 1) for _ in range(12)]
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=5e-3), objective=objective)


@well("Batch size 1 with LayerNorm: noisy, no statistics over the batch, and it learns.")
def batch_of_one() -> Program:
    model = nn.Sequential(
        nn.Linear(30, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 2)
    )
    return Program(model, table("breast_cancer", 1, 60), torch.optim.SGD(model.parameters(), lr=0.02), F.cross_entropy)


class MultiTask(nn.Module):
    """One trunk, a class head and a sum-of-pixels head."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.label = nn.Linear(64, 10)
        self.ink = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.trunk(x)
        return {"label": self.label(h), "ink": self.ink(h)}


@well("Two losses a hundred times apart in size, and outputs in a dict.")
def uneven_losses() -> Program:
    model = MultiTask()

    def loss(output: dict[str, Tensor], target: dict[str, Tensor]) -> Tensor:
        label = F.cross_entropy(output["label"], target["label"])
        return label + 0.01 * F.mse_loss(output["ink"].squeeze(1), target["ink"])

    batches = [(x, {"label": y, "ink": x.mean(1)}) for x, y in digits()]
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=3e-3), loss)


class Autoencoder(nn.Module):
    """Weight-tied autoencoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(64, 24)
        self.bias = nn.Parameter(torch.zeros(64))

    def forward(self, x: Tensor) -> Tensor:
        code = torch.tanh(self.encoder(x))
        return F.linear(code, self.encoder.weight.t(), self.bias)


@well("An autoencoder with tied weights: one parameter, used twice.")
def tied_autoencoder() -> Program:
    model = Autoencoder()
    batches = [(x, x) for x, _ in table("digits")]
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=1e-2), nn.MSELoss())


@well("A regression on standardised features and target.")
def regression() -> Program:
    model = MLP(10, 64, 1)
    return Program(model, column(table("diabetes")), torch.optim.Adam(model.parameters(), lr=3e-3), nn.MSELoss())


class Sine(nn.Module):
    """sin(30 x)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30 * x)


@well("SIREN: sin(30 x) layers with their own initialisation fit an image.", holdout=True)
def siren() -> Program:
    model = nn.Sequential(nn.Linear(2, 64), Sine(), nn.Linear(64, 64), Sine(), nn.Linear(64, 1))
    nn.init.uniform_(model[0].weight, -0.5, 0.5)  # type: ignore[arg-type]
    bound = (6 / 64) ** 0.5 / 30
    for i in (2, 4):
        nn.init.uniform_(model[i].weight, -bound, bound)  # type: ignore[arg-type]
    grid = torch.stack(torch.meshgrid(torch.linspace(-1, 1, 8), torch.linspace(-1, 1, 8), indexing="ij"), -1).view(
        64, 2
    )
    image = digits(1, 1)[0][0].view(64, 1)
    batches = [(grid[i], image[i]) for i in (torch.randperm(64)[:48] for _ in range(12))]
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=1e-3), nn.MSELoss())


@well("Ten SELU layers with LeCun init normalise themselves.")
def selu_ten() -> Program:
    layers: list[nn.Module] = []
    for i in range(10):
        layers += [nn.Linear(64 if i == 0 else 48, 48), nn.SELU()]
    model = nn.Sequential(*layers, nn.Linear(48, 10))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            nn.init.zeros_(layer.bias)
    return Program(model, digits(), torch.optim.SGD(model.parameters(), lr=0.05), nn.CrossEntropyLoss())


@well("Raw inputs up to 1680, but BatchNorm comes first: the scale is harmless.")
def batchnorm_first() -> Program:
    model = nn.Sequential(nn.BatchNorm1d(13), nn.Linear(13, 32), nn.Tanh(), nn.Linear(32, 3))
    return Program(model, table("wine", 32, raw=True), torch.optim.Adam(model.parameters(), lr=1e-2), F.cross_entropy)


@well("LogSoftmax in the model with NLLLoss: the right pair.")
def logsoftmax_nll() -> Program:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10), nn.LogSoftmax(dim=1))
    return Program(model, digits(), torch.optim.SGD(model.parameters(), lr=0.3), nn.NLLLoss())


@well("log_softmax before CrossEntropyLoss is idempotent, so it does no harm.", holdout=True)
def logsoftmax_cross_entropy() -> Program:
    model = nn.Sequential(nn.Linear(13, 32), nn.ELU(), nn.Linear(32, 3), nn.LogSoftmax(dim=-1))
    return Program(model, table("wine", 32), torch.optim.Adam(model.parameters(), lr=1e-2), nn.CrossEntropyLoss())


@well("Sigmoid output with BCELoss: the right pair.", holdout=True)
def sigmoid_bce() -> Program:
    model = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 1), nn.Sigmoid())
    return Program(model, column(table("breast_cancer")), torch.optim.Adam(model.parameters(), lr=3e-3), nn.BCELoss())


@well("A linear model, all of whose weights start at zero: convex, so zero is a fine start.", holdout=True)
def linear_zero_start() -> Program:
    model = nn.Linear(64, 10)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return Program(model, digits(), torch.optim.SGD(model.parameters(), lr=0.1), F.cross_entropy)


@well("Dropout of a half: half of the units are zero in every pass.")
def dropout_net() -> Program:
    model = nn.Sequential(
        nn.Linear(64, 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, 10),
    )
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), nn.CrossEntropyLoss())


class DepthwiseNet(nn.Module):
    """MobileNet-like conv net with GroupNorm and SiLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.pointwise = nn.Conv2d(16, 32, 1)
        self.norm = nn.GroupNorm(4, 32)
        self.fc = nn.Linear(32 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        x = F.silu(self.norm(self.pointwise(self.depthwise(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 2).flatten(1))


@well("Depthwise convolutions and GroupNorm, trained with channels_last images.", holdout=True)
def depthwise_groupnorm() -> Program:
    model = DepthwiseNet()
    batches = [(x.contiguous(memory_format=torch.channels_last), y) for x, y in digits(image=True)]
    return Program(model, batches, torch.optim.RMSprop(model.parameters(), lr=3e-3), nn.CrossEntropyLoss())


class BagOfRows(nn.Module):
    """A vanilla RNN over eight rows: short enough."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(8, 48, batch_first=True)
        self.fc = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        _, state = self.rnn(x.squeeze(1))
        return self.fc(state[-1])


@well("A vanilla RNN over eight rows: its gradient fades a little, and that is enough.", holdout=True)
def short_rnn() -> Program:
    model = BagOfRows()
    return Program(model, digits(image=True), torch.optim.Adam(model.parameters(), lr=5e-3), nn.CrossEntropyLoss())
