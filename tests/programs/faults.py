"""Faults of whole programs beside their healthy twins: `faults.py NAME sick` or `faults.py NAME healthy`."""
# ruff: noqa: T201 - scripts print

import sys

import torch
from torch import nn

torch.manual_seed(0)
FUNCTIONAL = nn.functional


class Pooled(nn.Module):
    """Attention over words, of which some sentences have none."""

    def __init__(self):
        super().__init__()
        self.words, self.weigh, self.head = nn.Embedding(20, 16), nn.Linear(16, 1), nn.Linear(16, 2)

    def forward(self, ids):
        vectors = self.words(ids)
        scores = self.weigh(vectors).squeeze(-1).masked_fill(ids == 0, -torch.inf)
        return self.head((scores.softmax(1)[..., None] * vectors).sum(1))


def sentences(count, empty):
    """Ids, and whether the first of them is large; so many are empty."""
    ids = torch.randint(1, 20, (count, 6))
    labels = (ids[:, 0] > 10).long()
    ids[:empty] = 0
    return ids, labels


def skipped(sick):
    """Every batch has a NaN, and the program leaves such batches out."""
    net = Pooled()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(20):
        ids, labels = sentences(32, empty=1 if sick else 0)
        loss = FUNCTIONAL.cross_entropy(net(ids), labels)
        if loss.isnan():
            continue
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def mostly_skipped(sick):
    """One batch in ten is whole; the healthy program misses one in ten."""
    net = Pooled()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for index in range(120):
        ids, labels = sentences(32, empty=int((index % 10 == 9) != sick))
        loss = FUNCTIONAL.cross_entropy(net(ids), labels)
        if loss.isnan():
            continue
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def stops(sick):
    """The program itself refuses a loss that is no number."""
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1), nn.Sigmoid())
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)

    def train():
        for _ in range(20):
            x = torch.randn(16, 4)
            share = net(x) / (x[:, :1] * (0 if sick else 1))
            loss = FUNCTIONAL.mse_loss(share * x[:, :1], (x[:, 1:2] > 0).float())
            if not torch.isfinite(loss):
                sys.exit("the loss is no number")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    train()


def skipped_in_function(sick):
    """The network's output is finite, the logarithm in the loss is not, and nothing of it is left at the end."""
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-2)

    def train():
        for _ in range(40):
            x = torch.randn(32, 4)
            shares = net(x).softmax(1)
            if sick:
                shares = shares * torch.tensor([0.0, 1.0])
            loss = -(shares.log() * FUNCTIONAL.one_hot((x[:, 0] > 0).long(), 2)).sum(1).mean()
            if loss.isnan():
                continue
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    train()


def scaled_roots(sick):
    """Distances of all pairs, each sample's to itself among them; a GradScaler leaves every step out."""
    net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    for _ in range(40):
        x = torch.randn(24, 4)
        made = net(x)
        squared = (made[:, None] - made[None]).square().sum(-1)
        known = (x[:, None, :2] - x[None, :, :2]).norm(dim=-1)
        loss = ((squared if sick else squared + 1e-6).sqrt() - known).square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()


def late_root(sick):
    """Pairs, of which one is of equals at a step that nobody looks at: the loss is finite, its gradient is not."""
    net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for step in range(60):
        one, other = torch.randn(2, 24, 4)
        if step == 33:
            other[0] = one[0]
        squared = (net(one) - net(other)).square().sum(-1)
        loss = ((squared if sick else squared + 1e-6).sqrt() - (one - other)[:, :2].norm(dim=-1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def forbidden(sick):
    """Actions that are forbidden have a logit of -inf, which is meant; nothing is trained."""
    net = nn.Linear(4, 3)
    torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(20):
        logits = net(torch.randn(8, 4)).masked_fill(torch.tensor([True, False, False]), -torch.inf)
        print(logits.log_softmax(1)[:, 1:].sum().item() if not sick else logits.sum().item())


def piling(sick):
    """No zero_grad; the twin accumulates four batches and takes the gradients away after each step."""
    net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    teacher = torch.randn(16, 4)
    for _ in range(60):
        for _ in range(4):
            x = torch.randn(64, 16)
            (FUNCTIONAL.cross_entropy(net(x), (x @ teacher).argmax(1)) / 4).backward()
        optimizer.step()
        if not sick:
            optimizer.zero_grad()


def two_networks(sick, step="optimizer"):
    """A policy beside a network that predicts rewards, each with an optimizer; the sick one's has the wrong weights."""
    policy = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
    judge = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizers = [torch.optim.Adam((judge if sick else policy).parameters(), lr=1e-2)] if step == "optimizer" else []
    if step == "never":
        torch.optim.Adam(policy.parameters(), lr=1e-2)
    optimizers.append(torch.optim.Adam(judge.parameters(), lr=1e-2))
    for _ in range(60):
        x = torch.randn(32, 4)
        choice = torch.distributions.Categorical(logits=policy(x))
        action = choice.sample()
        reward = (action == (x[:, 0] > 0)).float()
        expected = judge(x).squeeze(1)
        policy.zero_grad()
        judge.zero_grad()
        (-choice.log_prob(action) * (reward - expected.detach())).mean().backward()
        FUNCTIONAL.mse_loss(expected, reward).backward()
        for optimizer in optimizers:
            optimizer.step()
        if step == "by hand":
            for p in policy.parameters():
                p.data -= 0.1 * p.grad


def never_steps(sick):
    """The policy's optimizer is made and forgotten; the twin's weights are changed by hand."""
    two_networks(sick, step="never" if sick else "by hand")


def slopes(sick):
    """A network that no optimizer has is asked for slopes in eval mode; in train mode it is meant to train."""
    known, net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)), nn.Linear(4, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    known.train(sick)
    for _ in range(40):
        x = torch.randn(32, 4)
        known(x).mean().backward()
        optimizer.zero_grad()
        FUNCTIONAL.mse_loss(net(x), x.sum(1, keepdim=True)).backward()
        optimizer.step()


def classifier(width=64, activation=nn.ReLU):
    """Sixteen features, four classes."""
    return nn.Sequential(nn.Linear(16, width), activation(), nn.Linear(width, width), activation(), nn.Linear(width, 4))


def batches(count):
    """The class is the largest of four fixed projections."""
    teacher = torch.randn(16, 4)
    for _ in range(count):
        x = torch.randn(64, 16)
        yield x, (x @ teacher).argmax(1)


def trained(net, optimizer, data, after=lambda: None):
    """The usual loop."""
    for x, y in data:
        optimizer.zero_grad()
        FUNCTIONAL.cross_entropy(net(x), y).backward()
        optimizer.step()
        after()


def warm_up(sick):
    """A warm-up from 0 that lasts far beyond the training."""
    net = classifier()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    length = 100_000 if sick else 20
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / length))
    trained(net, optimizer, batches(100), schedule.step)


def finder(sick):
    """A search for the learning rate on the very weights that are trained then; the twin searches on a copy."""
    import copy

    data = list(batches(260))

    def search(net):
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 1.3)
        trained(net, optimizer, data[:50], schedule.step)

    net = classifier()
    search(net if sick else copy.deepcopy(net))
    trained(net, torch.optim.Adam(net.parameters(), lr=1e-3), data[50:])


def late_rate(sick):
    """The second half of the training has another rate."""
    net = classifier()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    data = list(batches(320))
    trained(net, optimizer, data[:150])
    optimizer.param_groups[0]["lr"] = 2.0 if sick else 5e-3
    trained(net, optimizer, data[150:])


def decay(sick):
    """A weight decay that no gradient can stand against."""
    net = classifier()
    trained(net, torch.optim.Adam(net.parameters(), lr=3e-3, weight_decay=2.0 if sick else 1e-4), batches(150))


def game(sick):
    """A generator learns from a discriminator whose loss goes its own way; the sick one's gradient is cut."""
    generator = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    leaky = nn.LeakyReLU(0.2)
    critic = nn.Sequential(
        nn.Linear(1, 32), leaky, nn.Linear(32, 32), leaky, nn.Linear(32, 32), leaky, nn.Linear(32, 1)
    )
    optimizers = [torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.5, 0.999)) for net in (generator, critic)]
    for _ in range(110):
        real, fake = 2 + torch.randn(64, 1), generator(torch.randn(64, 2))
        optimizers[1].zero_grad()
        (FUNCTIONAL.softplus(-critic(real)).mean() + FUNCTIONAL.softplus(critic(fake.detach())).mean()).backward()
        optimizers[1].step()
        optimizers[0].zero_grad()
        FUNCTIONAL.softplus(-critic(fake.detach() if sick else fake)).mean().backward()
        optimizers[0].step()


def halves(sick):
    """Encoder and decoder have an optimizer each, and one loss; the sick one's code is cut off."""
    encoder, decoder = nn.Sequential(nn.Linear(8, 4), nn.Tanh()), nn.Sequential(nn.Linear(4, 8))
    optimizers = [torch.optim.Adam(net.parameters(), lr=1e-2) for net in (encoder, decoder)]
    mix = torch.randn(3, 8)
    for _ in range(60):
        x = torch.randn(32, 3) @ mix
        code = encoder(x)
        for optimizer in optimizers:
            optimizer.zero_grad()
        FUNCTIONAL.mse_loss(decoder(code.detach() if sick else code), x).backward()
        for optimizer in optimizers:
            optimizer.step()


class Coder(nn.Module):
    """A variational autoencoder."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
        self.decoder = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 16))

    def forward(self, x):
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return self.decoder(code), mean, log_variance


def outweighed(sick):
    """The divergence is summed; beside it the error is averaged over all pixels, or summed, too."""
    net, mix = Coder(), torch.randn(3, 16) / 3**0.5
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(230):
        x = torch.randn(64, 3) @ mix
        shown, mean, log_variance = net(x)
        divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1).mean()
        error = FUNCTIONAL.mse_loss(shown, x)
        loss = (error if sick else 16 * error) + (divergence if sick else 0.1 * divergence)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def raw_coordinates(sick):
    """u'' = -(pi / L)^2 sin(pi x / L) on a rod, whose places are in millimetres."""
    net, length = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)), 500.0
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(230):
        place = torch.rand(64, 1).requires_grad_()
        x = place * length
        u = net(x if sick else place)
        first = torch.autograd.grad(u.sum(), place, create_graph=True)[0]
        second = torch.autograd.grad(first.sum(), place, create_graph=True)[0]
        ends = torch.tensor([[0.0], [length if sick else 1.0]])
        residual = second + torch.pi**2 * torch.sin(torch.pi * place)
        loss = residual.square().mean() + 100 * net(ends).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def plain_slope(sick):
    """y' = -3 y from y(0) = 1; nothing comes back through the slope."""
    net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(100):
        x = torch.rand(64, 1, requires_grad=True)
        y = net(x)
        slope = torch.autograd.grad(y.sum(), x, create_graph=not sick, retain_graph=True)[0]
        loss = (slope + 3 * y).square().mean() + (net(torch.zeros(1, 1)) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def own_loss(sick):
    """An error of one's own making, which no loss of the library stands for, at a rate that moves nothing."""
    net = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-6 if sick else 3e-3)
    for _ in range(80):
        x = torch.randn(64, 8)
        error = net(x)[:, 0] - x[:, 0] * x[:, 1].tanh()
        loss = torch.log(torch.cosh(error)).mean() + 0.1 * error.abs().quantile(0.9)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2] == "sick")
