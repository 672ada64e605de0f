"""Less common ways to train, one per argument; each prints a number that must not depend on who watches."""
# ruff: noqa: T201 - scripts print

import sys

import torch
from torch import nn

torch.manual_seed(0)
FUNCTIONAL = nn.functional


def lbfgs():
    """A closure that is called several times in one step."""
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5)
    x = torch.randn(64, 4)
    y = x.sum(1, keepdim=True).sin()

    def closure():
        optimizer.zero_grad()
        loss = FUNCTIONAL.mse_loss(model(x), y)
        loss.backward()
        return loss

    for _ in range(8):
        loss = optimizer.step(closure)
    return model, loss


def retain():
    """Two backward passes through one graph."""
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(12):
        optimizer.zero_grad()
        out = model(torch.randn(8, 4))
        loss = out.pow(2).mean()
        loss.backward(retain_graph=True)
        out.mean().backward()
        optimizer.step()
    return model, loss


def built():
    """A layer that forward() builds anew each time."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 2)

        def forward(self, x):
            return self.last(nn.Linear(16, 16)(self.first(x).relu()).relu())

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(torch.randn(8, 4)).pow(2).mean()
        loss.backward()
        optimizer.step()
    return model, loss


def loader():
    """DataLoader workers."""
    from torch.utils.data import DataLoader, TensorDataset

    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    data = TensorDataset(torch.randn(128, 4), torch.randint(0, 2, (128,)))
    for _ in range(2):
        for x, y in DataLoader(data, batch_size=32, shuffle=True, num_workers=2):
            loss = FUNCTIONAL.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model, loss


def functional():
    """No module at all."""
    w1 = (torch.randn(8, 32) * 0.3).requires_grad_()
    w2 = (torch.randn(32, 3) * 0.2).requires_grad_()
    optimizer = torch.optim.SGD([w1, w2], lr=0.1)
    for _ in range(12):
        x, y = torch.randn(32, 8), torch.randint(0, 3, (32,))
        loss = FUNCTIONAL.cross_entropy(torch.tanh(x @ w1) @ w2, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return nn.ParameterList([w1, w2]), loss


def by_hand():
    """No optimizer either."""
    w = (torch.randn(8, 3) * 0.3).requires_grad_()
    for _ in range(12):
        loss = FUNCTIONAL.cross_entropy(torch.randn(32, 8) @ w, torch.randint(0, 3, (32,)))
        loss.backward()
        with torch.no_grad():
            w -= 0.1 * w.grad
            w.grad = None
    return nn.ParameterList([w]), loss


def by_grad():
    """Gradients by torch.autograd.grad, from a generator of parameters, once with a Hessian in between."""
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(12):
        loss = FUNCTIONAL.cross_entropy(model(torch.randn(16, 4)), torch.randint(0, 2, (16,)))
        for p, gradient in zip(model.parameters(), torch.autograd.grad(loss, model.parameters()), strict=True):
            p.grad = gradient
        optimizer.step()
        if step == 5:
            loss = FUNCTIONAL.cross_entropy(model(torch.randn(16, 4)), torch.randint(0, 2, (16,)))
            slopes = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
            along = sum(slope.sum() for slope in slopes)
            print(sum(curve.sum().item() for curve in torch.autograd.grad(along, list(model.parameters()))))
    return model, loss


def transformed():
    """Gradients by torch.func, weights changed by hand."""
    model = nn.Linear(4, 2)
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def objective(weights, x):
        return torch.func.functional_call(model, weights, (x,)).pow(2).mean()

    for _ in range(3):
        gradients, loss = torch.func.grad_and_value(objective)(weights, torch.randn(8, 4))
        weights = {name: weights[name] - 0.1 * gradients[name] for name in weights}
    return model, loss


def piling():
    """No zero_grad."""
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(12):
        loss = FUNCTIONAL.cross_entropy(model(torch.randn(8, 4)), torch.randint(0, 2, (8,)))
        loss.backward()
        optimizer.step()
    return model, loss


def threaded():
    """Another thread trains."""
    import threading

    done = []
    thread = threading.Thread(target=lambda: done.append(retain()))
    thread.start()
    thread.join()
    return done[0]


def strict():
    """Warnings are errors, and the loss has the value of no known one."""
    import warnings

    warnings.simplefilter("error")
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(12):
        optimizer.zero_grad()
        loss = FUNCTIONAL.mse_loss(model(torch.randn(8, 4)).max(1).values, torch.ones(8))
        loss.backward()
        optimizer.step()
    return model, loss


def summed():
    """A loss summed over the batch, at the rate of a mean."""
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    teacher = torch.randn(16, 4)
    for _ in range(60):
        x = torch.randn(64, 16)
        loss = FUNCTIONAL.cross_entropy(model(x), (x @ teacher).argmax(1), reduction="sum")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, loss


def moves():
    """The working directory changes."""
    import os

    os.chdir("/")
    return retain()


def lstm():
    """A recurrent network and a sparse embedding."""

    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(50, 16, sparse=True)
            self.lstm = nn.LSTM(16, 24, batch_first=True)
            self.head = nn.Linear(24, 5)

        def forward(self, ids):
            return self.head(self.lstm(self.embedding(ids))[0][:, -1])

    model = Tagger()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(12):
        ids = torch.randint(0, 50, (16, 12))
        loss = FUNCTIONAL.cross_entropy(model(ids), ids[:, 0] % 5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, loss


def pinn():
    """Derivatives of the network in the loss."""
    model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(12):
        x = torch.rand(32, 1, requires_grad=True)
        u = model(x)
        du = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
        loss = (du + u).pow(2).mean() + (model(torch.zeros(1, 1)) - 1).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, loss


def vae():
    """Methods of the model that are not forward."""

    class VAE(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Linear(8, 4)
            self.decoder = nn.Linear(2, 8)

        def loss(self, x):
            mean, log_variance = self.encoder(x).chunk(2, dim=1)
            z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
            kl = (log_variance.exp() + mean**2 - 1 - log_variance).mean() / 2
            return FUNCTIONAL.mse_loss(self.decoder(z), x) + kl

    model, factors = VAE(), 2 * torch.randn(2, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(12):
        loss = model.loss(torch.randn(32, 2) @ factors)  # noise alone would leave nothing to code
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, loss


def vmapped():
    """The network as a function of its weights and of one sample, and its slopes in the loss."""
    from torch.func import functional_call, jacrev, vmap

    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(12):
        x = torch.randn(32, 3)
        known = dict(model.named_parameters())
        out = vmap(lambda weights, one: functional_call(model, weights, (one,)), (None, 0))(known, x)
        slopes = vmap(jacrev(model))(x)
        loss = FUNCTIONAL.mse_loss(out, x.sum(1, keepdim=True)) + 0.1 * (slopes - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, loss


def traced():
    """Made a script of in the middle of the training."""
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(12):
        x = torch.randn(32, 3)
        if step in (0, 2):
            torch.jit.trace(model, x)
        loss = FUNCTIONAL.mse_loss(model(x), x.sum(1, keepdim=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, loss


def transformer():
    """A Hugging Face model that computes its own loss from keyword arguments."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(6):
        ids = torch.randint(0, 40, (4, 16))
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, loss


def folds():
    """A new model and optimizer for every fold."""
    for _ in range(12):
        model = nn.Linear(4, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            loss = FUNCTIONAL.cross_entropy(model(torch.randn(8, 4)), torch.randint(0, 2, (8,)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model, loss


def nan():
    """A log of zero at a step nobody looks at."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1), nn.Sigmoid())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(12):
        p = model(torch.randn(16, 4))
        loss = -(p * 0 if step == 7 else p).log().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, loss


def unused():
    """One optimizer, a head that was forgotten in it, and a path that was cut."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 8)
            self.second = nn.Linear(8, 8)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            return self.head(torch.relu(self.second(torch.relu(self.first(x)).detach())))

    model = Net()
    optimizer = torch.optim.SGD(list(model.first.parameters()) + list(model.second.parameters()), lr=0.1)
    for _ in range(12):
        loss = FUNCTIONAL.cross_entropy(model(torch.randn(16, 4)), torch.randint(0, 2, (16,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, loss


def raises():
    """Training ends in an exception."""
    retain()
    raise KeyError("the data ran out")


def raises_inside():
    """The network itself raises at the first step, which the script survives, and again at the end."""

    class Fragile(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 2)

        def forward(self, x):
            out = self.inner(x)
            if len(x) != 8:
                raise ValueError("a batch of a wrong size")
            return out

    model = Fragile()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(13):
        try:
            loss = FUNCTIONAL.cross_entropy(model(torch.randn(7 if step == 0 else 8, 4)), torch.zeros(8).long())
        except ValueError:
            continue
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model(torch.randn(9, 4))


def square(x):
    """Run in another process."""
    return x * x


def spawn():
    """Worker processes that import this very file again."""
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print("squares", pool.map(square, range(3)))
    return retain()


def interrupted():
    """Ctrl-C."""
    retain()
    raise KeyboardInterrupt


def untrained():
    """Inference only."""
    model = nn.Linear(4, 2)
    return model, model(torch.ones(1, 4)).sum()


if __name__ == "__main__":
    trained, last = globals()[sys.argv[1]]()
    total = sum(p.detach().double().abs().sum().item() for p in trained.parameters())
    print(last.item(), total, torch.rand(1).item())
