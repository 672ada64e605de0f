"""Programs whose loss or loop is no textbook's: several networks, derivatives in the loss, frozen and shared parts."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from catalogue import adam, program
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations

from unvanish.torch.zoo import Program
from unvanish.torch.zoo._data import ALICE, Batches, digits, pixels, table, vocabulary


def mlp(*widths: int, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1])


@program
def pinn() -> Program:
    """u'' = -pi^2 sin(pi x) with u(+-1) = 0: second derivatives of the network in the loss."""
    model = mlp(1, 32, 32, 1, act=nn.Tanh)

    def objective(net: nn.Module, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        u = net(x)
        (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (ddu,) = torch.autograd.grad(du.sum(), x, create_graph=True)
        residual = ddu + math.pi**2 * (math.pi * x).sin()
        edge = net(torch.tensor([[-1.0], [1.0]]))
        return residual.square().mean() + 10 * edge.square().mean()

    batches = [2 * torch.rand(64, 1) - 1 for _ in range(10)]
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=1e-2), objective=objective)


class GAN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = mlp(8, 64, 64)
        self.discriminator = mlp(64, 64, 1, act=lambda: nn.LeakyReLU(0.2))


def fakes(net: nn.Module, count: int) -> Tensor:
    return net(torch.randn(count, 8)).tanh()


def real() -> list[Tensor]:
    return [2 * x - 1 for x, _ in pixels(32)]


@program
def gan_discriminator() -> Program:
    """The discriminator is the model; the generator is another network in the objective's closure."""
    gan = GAN()
    generator = gan.generator

    def objective(net: nn.Module, x: Tensor) -> Tensor:
        fake = fakes(generator, len(x)).detach()
        good, bad = net(x), net(fake)
        return F.binary_cross_entropy_with_logits(good, torch.ones_like(good)) + F.binary_cross_entropy_with_logits(
            bad, torch.zeros_like(bad)
        )

    optimizer = torch.optim.Adam(gan.discriminator.parameters(), lr=2e-3, betas=(0.5, 0.999))
    return Program(gan.discriminator, real(), optimizer, objective=objective)


@program
def gan_generator() -> Program:
    """The generator is the model; the discriminator of the closure passes gradients and has its own optimizer."""
    gan = GAN()
    discriminator = gan.discriminator

    def objective(net: nn.Module, x: Tensor) -> Tensor:
        verdict = discriminator(fakes(net, len(x)))
        return F.binary_cross_entropy_with_logits(verdict, torch.ones_like(verdict))

    optimizer = torch.optim.Adam(gan.generator.parameters(), lr=1e-3, betas=(0.5, 0.999))
    return Program(gan.generator, real(), optimizer, objective=objective)


@program
def wgan_gradient_penalty() -> Program:
    """A critic whose loss is negative and holds the norm of its own input gradient."""
    gan = GAN()

    def objective(net: nn.Module, x: Tensor) -> Tensor:
        fake = 0.3 * torch.randn_like(x)
        between = (x + fake).mul(0.5).requires_grad_()
        (slope,) = torch.autograd.grad(net(between).sum(), between, create_graph=True)
        return net(fake).mean() - net(x).mean() + 10 * (slope.norm(dim=1) - 1).square().mean()

    critic = gan.discriminator
    return Program(critic, real(), torch.optim.Adam(critic.parameters(), lr=1e-3), objective=objective)


class GraphNet(nn.Module):
    """Two graph convolutions with a dense normalised adjacency, as Kipf and Welling write them."""

    def __init__(self, adjacency: Tensor) -> None:
        super().__init__()
        self.register_buffer("adjacency", adjacency)
        self.w1 = nn.Parameter(torch.empty(64, 32))
        self.w2 = nn.Parameter(torch.empty(32, 10))
        for w in (self.w1, self.w2):
            nn.init.xavier_uniform_(w)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.adjacency @ (x @ self.w1))
        return self.adjacency @ (F.dropout(h, 0.2, self.training) @ self.w2)


@program
def graph_convolution() -> Program:
    """Semi-supervised: one graph, the loss on half of its nodes."""
    ((x, y),) = digits(200, 1)
    distance = torch.cdist(x, x)
    near = (distance <= distance.kthvalue(6, dim=1, keepdim=True).values).float()
    near = ((near + near.T) > 0).float()
    degree = near.sum(1).rsqrt()
    model = GraphNet(degree[:, None] * near * degree)
    known = torch.rand(len(y)) < 0.5

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output[known], target[known])

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=5e-4)
    return Program(model, [(x, y), (x, y)], optimizer, loss)


@program
def siamese() -> Program:
    """Contrastive loss on distances; pairs of digits, same or not."""
    model = mlp(64, 64, 16)

    def objective(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        a, b = net(x[::2]), net(x[1::2])
        same = (y[::2] == y[1::2]).float()
        distance = F.pairwise_distance(a, b)
        return (same * distance.square() + (1 - same) * F.relu(1 - distance).square()).mean()

    batches = []
    for x, y in digits(128, 10):
        order = y.argsort()
        order[1::4] = order[1::4].flip(0)
        batches.append((x[order], y[order]))
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=3e-3), objective=objective)


@program
def info_nce() -> Program:
    """SimCLR: two noisy views of each digit, a temperature, targets are positions in the batch."""
    model = mlp(64, 64, 32)

    def objective(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x = batch[0]
        a, b = (F.normalize(net(x + 0.2 * torch.randn_like(x)), dim=1) for _ in range(2))
        return F.cross_entropy(a @ b.T / 0.1, torch.arange(len(x)))

    return Program(model, digits(32, 10), torch.optim.Adam(model.parameters(), lr=3e-3), objective=objective)


@program
def triplet() -> Program:
    model = mlp(64, 64, 16)

    def objective(net: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return F.triplet_margin_loss(*(net(part) for part in batch), margin=1.0)

    batches = []
    for x, y in digits(64, 10):
        same = [int(torch.nonzero(y == c)[-1]) for c in y.tolist()]
        other = [int(torch.nonzero(y != c)[0]) for c in y.tolist()]
        batches.append((x, x[same], x[other]))
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=3e-3), objective=objective)


class QNet(nn.Module):
    """Online network and frozen target network; targets by one step of bootstrapping."""

    def __init__(self) -> None:
        super().__init__()
        self.online = mlp(4, 64, 64, 2)
        self.target = copy.deepcopy(self.online).requires_grad_(False)


def cart() -> list[dict[str, Tensor]]:
    """Transitions of a pushed cart: reward for being near the middle."""
    batches = []
    for _ in range(12):
        s = torch.randn(64, 4)
        a = torch.randint(2, (64,))
        after = s + 0.1 * torch.stack([s[:, 1], 2.0 * a - 1, s[:, 3], s[:, 2]], dim=1)
        done = (s[:, 0].abs() > 2).float()
        batches.append({"s": s, "a": a, "r": 1 - after[:, 0].abs(), "after": after, "done": done})
    return batches


@program
def dqn() -> Program:
    model = QNet()

    def objective(net: nn.Module, b: dict[str, Tensor]) -> Tensor:
        value = net.online(b["s"]).gather(1, b["a"].unsqueeze(1)).squeeze(1)
        with torch.no_grad():
            best = net.target(b["after"]).max(1).values
        return F.smooth_l1_loss(value, b["r"] + 0.9 * (1 - b["done"]) * best)

    return Program(model, cart(), torch.optim.Adam(model.online.parameters(), lr=3e-3), objective=objective)


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(4, 64, 64)
        self.actor, self.critic = nn.Linear(64, 2), nn.Linear(64, 1)

    def forward(self, s: Tensor) -> tuple[torch.distributions.Categorical, Tensor]:
        hidden = self.body(s).tanh()
        return torch.distributions.Categorical(logits=self.actor(hidden)), self.critic(hidden).squeeze(-1)


@program
def actor_critic() -> Program:
    """A2C: policy gradient times a detached advantage, value loss, entropy bonus."""
    model = ActorCritic()

    def objective(net: nn.Module, b: dict[str, Tensor]) -> Tensor:
        policy, value = net(b["s"])
        advantage = b["r"] - value.detach()
        actor = -(policy.log_prob(b["a"]) * advantage).mean()
        return actor + 0.5 * F.mse_loss(value, b["r"]) - 0.01 * policy.entropy().mean()

    return Program(model, cart(), torch.optim.Adam(model.parameters(), lr=3e-3), objective=objective)


class Coupling(nn.Module):
    def __init__(self, flip: bool) -> None:
        super().__init__()
        self.flip = flip
        self.net = mlp(1, 32, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = (x[:, 1:], x[:, :1]) if self.flip else (x[:, :1], x[:, 1:])
        scale, shift = self.net(a).chunk(2, dim=1)
        scale = scale.tanh()
        b = b * scale.exp() + shift
        return torch.cat([b, a] if self.flip else [a, b], dim=1), scale.squeeze(1)


class RealNVP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Coupling(bool(i % 2)) for i in range(6))

    def forward(self, x: Tensor) -> Tensor:
        log_det = x.new_zeros(len(x))
        for layer in self.layers:
            x, change = layer(x)
            log_det = log_det + change
        return torch.distributions.Normal(0, 1).log_prob(x).sum(1) + log_det


@program
def normalising_flow() -> Program:
    """Negative log-likelihood of two moons: it can become negative."""
    model = RealNVP()
    batches = []
    for _ in range(10):
        t, side = math.pi * torch.rand(128), torch.randint(2, (128,)).float()
        moon = torch.stack([t.cos() + side - 0.5, t.sin() * (1 - 2 * side) + 0.5 * side - 0.25], 1)
        batches.append(moon + 0.05 * torch.randn(128, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Program(model, batches, optimizer, objective=lambda net, x: -net(x).mean())


class LoRALinear(nn.Module):
    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / rank)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2.0 * (x @ self.a.T) @ self.b.T


@program
def lora() -> Program:
    """Adapters on a network trained for other digits before."""
    base = mlp(64, 64, 64, 10)
    optimizer = torch.optim.Adam(base.parameters(), lr=3e-3)
    for x, y in digits(64, 40):
        optimizer.zero_grad()
        F.cross_entropy(base(x), (y + 3) % 10).backward()
        optimizer.step()
    base.zero_grad()
    model = nn.Sequential(*(LoRALinear(m) if isinstance(m, nn.Linear) else m for m in base))
    trained = [p for p in model.parameters() if p.requires_grad]
    return Program(model, digits(64, 10), torch.optim.AdamW(trained, lr=1e-2), nn.CrossEntropyLoss())


class Distilled(nn.Module):
    """A student and its own moving average as the teacher, updated inside forward."""

    def __init__(self) -> None:
        super().__init__()
        self.student = mlp(64, 64, 10)
        self.teacher = copy.deepcopy(self.student)
        for parameter in self.teacher.parameters():
            parameter.requires_grad = False

    @torch.no_grad()
    def follow(self) -> None:
        for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            slow.lerp_(fast, 0.05)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.training:
            self.follow()
        with torch.no_grad():
            teacher = self.teacher(x)
        return self.student(x + 0.1 * torch.randn_like(x)), teacher


@program
def mean_teacher() -> Program:
    model = Distilled()

    def loss(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        student, teacher = output
        return F.cross_entropy(student, target) + F.mse_loss(student.softmax(1), teacher.softmax(1))

    return Program(model, digits(), adam(model, 3e-3), loss)


@program
def distillation() -> Program:
    """A trained teacher in the loss's closure, KL divergence with a temperature."""
    teacher = mlp(64, 64, 10)
    optimizer = torch.optim.Adam(teacher.parameters(), lr=3e-3)
    for x, y in digits(64, 60):
        optimizer.zero_grad()
        F.cross_entropy(teacher(x), y).backward()
        optimizer.step()
    teacher.eval().requires_grad_(False)
    model = mlp(64, 32, 10)

    def objective(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, _ = batch
        soft = (teacher(x) / 2).log_softmax(1)
        return 4 * F.kl_div((net(x) / 2).log_softmax(1), soft, reduction="batchmean", log_target=True)

    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), objective=objective)


class Recommender(nn.Module):
    """Sparse embedding bags and factors; most rows are never seen in a batch."""

    def __init__(self, items: int = 500) -> None:
        super().__init__()
        self.history = nn.EmbeddingBag(items, 16, mode="mean", sparse=True)
        self.item = nn.Embedding(items, 16, sparse=True)

    def forward(self, history: Tensor, offsets: Tensor, item: Tensor) -> Tensor:
        return (self.history(history, offsets) * self.item(item)).sum(1)


@program
def recommender() -> Program:
    """People like items of the group they have bought from."""
    batches = []
    for _ in range(10):
        group = torch.randint(5, (64,))
        history = group.repeat_interleave(4) * 100 + torch.randint(100, (256,))
        item = torch.randint(500, (64,))
        item[::2] = group[::2] * 100 + torch.randint(100, (32,))
        batches.append(((history, torch.arange(0, 256, 4), item), (item // 100 == group).float()))
    model = Recommender()
    optimizer = torch.optim.SparseAdam(model.parameters(), lr=3e-2)
    return Program(model, batches, optimizer, nn.BCEWithLogitsLoss())


@program
def matrix_factorisation() -> Program:
    """Ratings from two embeddings and biases, small at the start."""

    class Factors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.user, self.item = nn.Embedding(50, 8), nn.Embedding(60, 8)
            self.bias = nn.Embedding(60, 1)
            for table_ in (self.user, self.item):
                nn.init.normal_(table_.weight, std=0.3)
            nn.init.zeros_(self.bias.weight)

        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            return (self.user(user) * self.item(item)).sum(1) + self.bias(item).squeeze(1)

    taste, kind = torch.randn(50, 3), torch.randn(60, 3)
    pairs = [(torch.randint(50, (128,)), torch.randint(60, (128,))) for _ in range(10)]
    batches = [((u, i), (taste[u] * kind[i]).sum(1) / 2) for u, i in pairs]
    model = Factors()
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=3e-2), nn.MSELoss())


@program
def skip_gram() -> Program:
    """word2vec with negative sampling: output vectors start at zero."""

    class SkipGram(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.inside, self.outside = nn.Embedding(size, 16), nn.Embedding(size, 16)
            nn.init.zeros_(self.outside.weight)

        def forward(self, centre: Tensor, near: Tensor, noise: Tensor) -> Tensor:
            c = self.inside(centre)
            good = (c * self.outside(near)).sum(1)
            bad = (c.unsqueeze(1) * self.outside(noise)).sum(2)
            return -(F.logsigmoid(good) + F.logsigmoid(-bad).sum(1)).mean()

    letters = {c: i for i, c in enumerate(vocabulary())}
    codes = torch.tensor([letters[c] for c in ALICE])
    batches = []
    for _ in range(10):
        at = torch.randint(1, len(codes) - 1, (128,))
        batches.append((codes[at], codes[at + 1], torch.randint(len(letters), (128, 3))))
    model = SkipGram(len(letters))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    return Program(model, batches, optimizer, objective=lambda net, batch: net(*batch))


class ODE(nn.Module):
    """Euler steps of one learnt vector field: the same weights twelve times."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.field, self.head = nn.Linear(64, 32), mlp(32, 32, 32, act=nn.Tanh), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        for _ in range(12):
            x = x + self.field(x) / 12
        return self.head(x)


@program
def neural_ode() -> Program:
    model = ODE()
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), F.cross_entropy)


@program
def mixture_density() -> Program:
    """Several answers for one question: a mixture of Gaussians, negative log-likelihood."""
    model = mlp(1, 32, 9, act=nn.Tanh)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        weight, mean, log_std = output.chunk(3, dim=1)
        log_p = -0.5 * ((target - mean) / log_std.exp()) ** 2 - log_std - 0.919
        return -torch.logsumexp(weight.log_softmax(1) + log_p, dim=1).mean()

    batches = []
    for _ in range(10):
        y = 2 * torch.rand(128, 1) - 1
        batches.append((y + 0.3 * (6.28 * y).sin() + 0.02 * torch.randn_like(y), y))
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=1e-2), loss)


class MultiTask(nn.Module):
    """Two tasks weighted by learnt uncertainties (Kendall et al.)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(64, 64, 64)
        self.classify, self.measure = nn.Linear(64, 10), nn.Linear(64, 1)
        self.log_var = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(x).relu()
        return self.classify(hidden), self.measure(hidden).squeeze(1)


@program
def multi_task() -> Program:
    model = MultiTask()

    def objective(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        logits, ink = net(x)
        losses = torch.stack([F.cross_entropy(logits, y), F.mse_loss(ink, x.mean(1) * 5)])
        return (losses * (-net.log_var).exp() + net.log_var).sum()

    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), objective=objective)


@program
def weight_normed() -> Program:
    model = mlp(64, 64, 64, 10)
    for i in (0, 2):
        parametrizations.weight_norm(model[i])
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), F.cross_entropy)


@program
def spectral_normed() -> Program:
    model = mlp(64, 64, 64, 10, act=lambda: nn.LeakyReLU(0.1))
    for i in (0, 2):
        parametrizations.spectral_norm(model[i])
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), F.cross_entropy)


@program
def orthogonal() -> Program:
    model = mlp(64, 64, 64, 10, act=nn.Tanh)
    parametrizations.orthogonal(model[2])
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), F.cross_entropy)


@program
def compiled() -> Program:
    """torch.compile around the model; nothing is compiled until it runs."""
    model = torch.compile(mlp(64, 64, 64, 10), backend="eager")
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), F.cross_entropy)


@program
def autocast_bf16() -> Program:
    """float32 weights, the forward pass in bfloat16."""
    model = nn.Sequential(
        nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10)
    )

    def objective(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(net(batch[0]), batch[1])

    return Program(model, digits(), torch.optim.AdamW(model.parameters(), lr=3e-3), objective=objective)


@program
def half_precision() -> Program:
    """All in float16, with a rate and an eps that float16 can hold."""
    model = mlp(64, 64, 10).half()
    batches = [(x.half(), y) for x, y in digits()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Program(model, batches, optimizer, lambda output, target: F.cross_entropy(output.float(), target))


@program
def bfloat16_weights() -> Program:
    """Pure bfloat16 with a rate large enough for its 8 bits."""
    model = mlp(64, 64, 10).bfloat16()
    batches = [(x.bfloat16(), y) for x, y in digits()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return Program(model, batches, optimizer, lambda output, target: F.cross_entropy(output.float(), target))


@program
def diffusion() -> Program:
    """DDPM: predict the noise that was added; zero-initialised output."""

    class Denoiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.time = nn.Sequential(nn.Linear(1, 64), nn.SiLU(), nn.Linear(64, 128))
            self.enter, self.middle, self.leave = nn.Linear(64, 128), nn.Linear(128, 128), nn.Linear(128, 64)
            nn.init.zeros_(self.leave.weight)
            nn.init.zeros_(self.leave.bias)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            h = F.silu(self.enter(x) + self.time(t))
            return self.leave(F.silu(self.middle(h)) + h)

    def objective(net: nn.Module, x: Tensor) -> Tensor:
        t = torch.rand(len(x), 1)
        noise = torch.randn_like(x)
        return F.mse_loss(net((math.pi / 2 * t).cos() * x + (math.pi / 2 * t).sin() * noise, t), noise)

    model = Denoiser()
    return Program(model, real(), torch.optim.AdamW(model.parameters(), lr=3e-3), objective=objective)


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30 * x)


@program
def siren() -> Program:
    """Sines of frequency 30 with the initialisation of the paper."""
    model = mlp(2, 64, 64, 1, act=Sine)
    with torch.no_grad():
        for i, layer in enumerate(m for m in model if isinstance(m, nn.Linear)):
            bound = 1 / 2 if i == 0 else math.sqrt(6 / 64) / 30
            layer.weight.uniform_(-bound, bound)
    image = pixels(1, 1, image=True)[0][0][0, 0]
    grid = torch.stack(torch.meshgrid(*2 * [torch.linspace(-1, 1, 8)], indexing="ij"), -1).reshape(-1, 2)
    batches: Batches = [(grid, image.reshape(-1, 1))] * 4
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=1e-3), nn.MSELoss())


@program
def hypernetwork() -> Program:
    """One network makes the weights of another."""

    class Hyper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Parameter(torch.randn(1, 8))
            self.maker = nn.Linear(8, 64 * 32)
            self.head = nn.Linear(32, 10)
            nn.init.normal_(self.maker.weight, std=0.05)

        def forward(self, x: Tensor) -> Tensor:
            weight = self.maker(self.embedding).view(32, 64)
            return self.head(F.relu(F.linear(x, weight)))

    model = Hyper()
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), F.cross_entropy)


@program
def maml() -> Program:
    """One inner gradient step through functional_call, second-order outer gradient."""
    model = mlp(1, 32, 32, 1, act=nn.Tanh)

    def objective(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        total = torch.zeros(())
        for task in range(len(x)):
            weights = dict(net.named_parameters())
            inner = F.mse_loss(functional_call(net, weights, (x[task, :10],)), y[task, :10])
            slopes = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
            moved = {k: w - 0.1 * g for (k, w), g in zip(weights.items(), slopes, strict=True)}
            total = total + F.mse_loss(functional_call(net, moved, (x[task, 10:],)), y[task, 10:])
        return total / len(x)

    batches = []
    for _ in range(8):
        x = 4 * torch.rand(4, 20, 1) - 2
        batches.append((x, (0.5 + torch.rand(4, 1, 1)) * (x + torch.rand(4, 1, 1)).sin()))
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=1e-2), objective=objective)


class StraightThrough(nn.Module):
    """VQ-like bottleneck: rounds forward, identity backward; a commitment loss on detached values."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(64, 64, 16), mlp(16, 64, 64)
        self.codes = nn.Embedding(32, 4)
        nn.init.uniform_(self.codes.weight, -0.5, 0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x).view(len(x), 4, 4)
        nearest = torch.cdist(z.detach().flatten(0, 1), self.codes.weight).argmin(1)
        q = self.codes(nearest).view_as(z)
        extra = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
        return self.decoder((z + (q - z).detach()).flatten(1)), extra


@program
def vector_quantised() -> Program:
    model = StraightThrough()

    def loss(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        return F.mse_loss(output[0], target) + output[1]

    return Program(model, [(x, x) for x, _ in digits()], torch.optim.Adam(model.parameters(), lr=3e-3), loss)


@program
def equilibrium() -> Program:
    """A fixed point found without gradients, one step with them (phantom gradient)."""

    class Equilibrium(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.again, self.head = nn.Linear(64, 48), nn.Linear(48, 48), nn.Linear(48, 10)
            nn.init.orthogonal_(self.again.weight, 0.5)

        def forward(self, x: Tensor) -> Tensor:
            u = self.lift(x)
            z = torch.zeros_like(u)
            with torch.no_grad():
                for _ in range(8):
                    z = torch.tanh(self.again(z) + u)
            return self.head(torch.tanh(self.again(z) + u))

    model = Equilibrium()
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), F.cross_entropy)


@program
def lbfgs_regression() -> Program:
    """A second-order optimizer with its closure."""
    model = mlp(10, 16, 1, act=nn.Tanh)
    batches = [(x, y.unsqueeze(1)) for x, y in table("diabetes", 128, 4)]
    return Program(model, batches, torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=5), nn.MSELoss())


@program
def batch_of_one() -> Program:
    """Online learning, sample by sample, with LayerNorm."""
    model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 10))
    return Program(model, digits(1, 16), torch.optim.SGD(model.parameters(), lr=0.03), F.cross_entropy)


@program
def own_attention_pooling() -> Program:
    """Multiple-instance learning: gated attention over a bag of digits, one label a bag."""

    class Bags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = mlp(64, 32, 32)
            self.v, self.u, self.w = nn.Linear(32, 16), nn.Linear(32, 16), nn.Linear(16, 1)
            self.head = nn.Linear(32, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.features(x))
            a = self.w(torch.tanh(self.v(h)) * torch.sigmoid(self.u(h))).softmax(1)
            return self.head((a * h).sum(1)).squeeze(-1)

    batches = []
    for x, y in digits(160, 10):
        batches.append((x.view(32, 5, 64), (y.view(32, 5) == 3).any(1).float()))
    model = Bags()
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=5e-3), nn.BCEWithLogitsLoss())


class SimSiam(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32))
        self.predictor = mlp(32, 16, 32)


@program
def simsiam() -> Program:
    """A loss that starts at 0 and falls to -1; one side of each pair is detached on purpose."""
    model = SimSiam()

    def objective(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        a, b = (net.encoder(batch[0] + 0.2 * torch.randn_like(batch[0])) for _ in range(2))
        return -F.cosine_similarity(net.predictor(a), b.detach()).mean()

    return Program(model, digits(), torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), objective=objective)


@program
def ddpg_actor() -> Program:
    """The actor climbs a critic that others train: the loss has no floor and no scale."""
    actor, critic = nn.Sequential(*mlp(4, 64, 1), nn.Tanh()), mlp(5, 64, 1)

    def objective(net: nn.Module, s: Tensor) -> Tensor:
        return -critic(torch.cat([s, net(s)], dim=1)).mean()

    batches = [torch.randn(64, 4) for _ in range(10)]
    return Program(actor, batches, torch.optim.Adam(actor.parameters(), lr=1e-3), objective=objective)


@program
def clipped_policy() -> Program:
    """PPO: where the ratio is clipped, no gradient is meant to flow."""
    model = mlp(4, 64, 64, 3, act=nn.Tanh)

    def objective(net: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        s, a, advantage = batch
        out = net(s)
        log_p = out[:, :2].log_softmax(1).gather(1, a.unsqueeze(1)).squeeze(1)
        ratio = (log_p + math.log(2)).exp()
        actor = -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
        return actor + 0.5 * F.mse_loss(out[:, 2], advantage)

    batches = []
    for _ in range(10):
        s, a = torch.randn(128, 4), torch.randint(2, (128,))
        batches.append((s, a, 2.0 * (a == (s[:, 0] > 0)) - 1))
    return Program(model, batches, torch.optim.Adam(model.parameters(), lr=3e-3), objective=objective)


class Spike(torch.autograd.Function):
    """A step forward, a smooth bump backward."""

    @staticmethod
    def forward(ctx, v):
        ctx.save_for_backward(v)
        return (v > 0).float()

    @staticmethod
    def backward(ctx, grad):
        return grad / (1 + 5 * ctx.saved_tensors[0].abs()) ** 2


class Spiking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(64, 100), nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        voltage, out = torch.zeros(len(x), 100), torch.zeros(len(x), 10)
        for _ in range(8):
            voltage = 0.9 * voltage + self.enter(x)
            spikes = Spike.apply(voltage - 1)
            voltage = voltage - spikes.detach()
            out = out + self.leave(spikes)
        return out / 8


@program
def spiking() -> Program:
    model = Spiking()
    return Program(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), nn.CrossEntropyLoss())


class Discrete(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(64, 64), mlp(64, 64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(F.gumbel_softmax(self.encoder(x).view(-1, 8, 8), tau=1.0, hard=True).flatten(1))


@program
def gumbel_autoencoder() -> Program:
    model = Discrete()
    return Program(model, [(x, x) for x, _ in digits()], torch.optim.Adam(model.parameters(), lr=3e-3), nn.MSELoss())


@program
def gentle_fine_tuning() -> Program:
    """Trained before; the rate is now so small that nothing visible happens in a few dozen steps."""
    model = mlp(64, 64, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for x, y in digits(64, 200):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.zero_grad()
    return Program(model, digits(), torch.optim.AdamW(model.parameters(), lr=2e-5), nn.CrossEntropyLoss())


@program
def quantiles() -> Program:
    """The pinball loss, written by hand."""
    model, levels = mlp(10, 32, 3), torch.tensor([0.1, 0.5, 0.9])

    def loss(output: Tensor, target: Tensor) -> Tensor:
        error = target.unsqueeze(1) - output
        return torch.max(levels * error, (levels - 1) * error).mean()

    return Program(model, table("diabetes"), torch.optim.Adam(model.parameters(), lr=1e-2), loss)


@program
def echo_state() -> Program:
    """A random recurrent layer that nobody trains, and a readout."""

    class Reservoir(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = nn.RNN(8, 128, batch_first=True), nn.Linear(128, 10)
            self.rnn.requires_grad_(False)
            nn.init.orthogonal_(self.rnn.weight_hh_l0, 0.9)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rnn(x.squeeze(1))[0][:, -1])

    model = Reservoir()
    return Program(model, digits(image=True), torch.optim.Adam(model.out.parameters(), lr=1e-2), F.cross_entropy)
