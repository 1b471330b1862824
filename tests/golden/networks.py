"""One small network of every kind, for images (N, 1, 8, 8), and the parents that the cases fuse."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from digits_parents import digits_files
from torch import Tensor, nn

from .product import digits, load_network, to_floats


def filled(model: nn.Module, seed: int) -> nn.Module:
    """Give a network random weights and statistics, the same on every kind of machine: NumPy draws them.

    Its last layer is solved for the digits, so that it knows something.
    """
    draws = np.random.default_rng(seed)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            shape = tuple(tensor.shape)
            if tensor.dim() > 1:
                values = draws.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:]))
            elif key.endswith(("var", "weight")):  # of a norm
                values = draws.uniform(0.5, 1.5, shape)
            else:
                values = 0.1 * draws.standard_normal(shape)
            tensor.copy_(torch.from_numpy(np.asarray(values)))
    _solve_last(model.eval())
    return model


def _solve_last(model: nn.Module, images: int = 500, ridge: float = 1e-3) -> None:
    """Fit the last layer to one-hot labels by ridge regression; one output says whether it is 5 or more."""
    data, seen = digits(), []
    head = [module for module in model.modules() if type(module) is nn.Linear][-1]
    with head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0])), torch.no_grad():
        model(to_floats(data.train.images[:images], data.preprocessing))
        features = F.pad(seen[0].double(), (0, 1), value=1.0)
        labels = data.train.labels[:images]
        wanted = F.one_hot(labels) if head.out_features > 1 else (labels[:, None] >= 5)
        gram = features.T @ features
        gram += ridge * gram.diagonal().mean() * torch.eye(len(gram))
        solved = torch.linalg.solve(gram, features.T @ (10.0 * wanted.double() - 5.0))
        head.weight.copy_(solved[:-1].T)
        head.bias.copy_(solved[-1])


def block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def pooled(*layers: nn.Module, features: int, outputs: int = 10) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, outputs))


def vgg(width: int = 12, outputs: int = 10) -> nn.Module:
    return pooled(
        block(1, width), block(width, width), nn.MaxPool2d(2), block(width, 2 * width),
        features=2 * width, outputs=outputs,
    )  # fmt: skip


def mobile() -> nn.Module:
    return pooled(block(1, 12), block(12, 12, groups=12), block(12, 20, 1), block(20, 20, stride=2, groups=20),
                  block(20, 24, 1), features=24)  # fmt: skip


def grouped() -> nn.Module:
    return pooled(block(1, 16), block(16, 24, stride=2, groups=4), block(24, 16, 1), features=16)


def without_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10),
    )  # fmt: skip


def one_dimensional() -> nn.Module:
    """Rows of pixels behind one another as a signal of 64 samples."""
    return nn.Sequential(
        nn.Flatten(2), nn.Conv1d(1, 12, 5, 2, 2), nn.BatchNorm1d(12), nn.ReLU(), nn.Conv1d(12, 20, 5, 2, 2),
        nn.BatchNorm1d(20), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(20, 10),
    )  # fmt: skip


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = block(1, 12), block(12, 20)
        self.second, self.norm, self.head = nn.Conv2d(20, 12, 3, 1, 1), nn.BatchNorm2d(12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(x + self.norm(self.second(self.first(x)))).mean((2, 3)))


class Dense(nn.Module):
    """Concatenations, as DenseNet has them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = block(1, 10), block(10, 8), block(18, 8)
        self.head = nn.Linear(26, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.first(x)], 1)
        x = torch.cat([x, self.second(x)], 1)
        return self.head(x.mean((2, 3)))


class Shared(nn.Module):
    """One convolution that is run twice, each time with a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice = block(1, 12), nn.Conv2d(12, 12, 3, 1, 1, bias=False)
        self.norm1, self.norm2, self.head = nn.BatchNorm2d(12), nn.BatchNorm2d(12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.twice(self.stem(x))))
        return self.head(F.relu(self.norm2(self.twice(x))).mean((2, 3)))


class Shuffle(nn.Module):
    """Grouped convolutions with the channels shuffled between them, as ShuffleNet has them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.last = block(1, 12), block(12, 12, groups=3), block(12, 12, groups=3)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x))
        count, channels, height, width = x.shape
        x = x.reshape(count, 3, channels // 3, height, width).transpose(1, 2).reshape(count, channels, height, width)
        return self.head(self.last(x).mean((2, 3)))


class Transformer(nn.Module):
    """One block of LayerNorm, attention and two linear layers over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm1, self.norm2 = nn.Linear(8, 16), nn.LayerNorm(16), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.wide, self.narrow, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.squeeze(1))
        normed = self.norm1(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        x = x + self.narrow(F.gelu(self.wide(self.norm2(x))))
        return self.head(x.mean(1))


def shipped(*names: str) -> Callable[[], list[nn.Module]]:
    return lambda: [load_network(path) for path in digits_files(*names)]


def drawn(*factories: Callable[[], nn.Module]) -> Callable[[], list[nn.Module]]:
    return lambda: [filled(factory(), seed) for seed, factory in enumerate(factories, 1)]


def halves() -> list[nn.Module]:
    """Two networks of which one knows the digits 0 to 4 and one 5 to 9."""
    parents = shipped("a", "b")()
    for parent, kept in zip(parents, (slice(0, 5), slice(5, 10)), strict=True):
        head = nn.Linear(parent.linear.in_features, 5)
        with torch.no_grad():
            head.weight.copy_(parent.linear.weight[kept])
            head.bias.copy_(parent.linear.bias[kept])
        parent.linear = head
    return parents


PARENTS: dict[str, Callable[[], list[nn.Module]]] = {
    "digits": shipped("a", "b"),
    "same start": shipped("same-a", "same-b"),
    "skewed": shipped("skewed-1-a", "skewed-1-b"),
    "three": shipped("a", "b", "skewed-2-a"),
    "halves": halves,
    "vgg": drawn(vgg, vgg),
    "mobile": drawn(mobile, mobile),
    "grouped": drawn(grouped, grouped),
    "dense": drawn(Dense, Dense),
    "shared": drawn(Shared, Shared),
    "shuffle": drawn(Shuffle, Shuffle),
    "residual": drawn(Residual, Residual),
    "unequal": drawn(lambda: vgg(12), lambda: vgg(8)),
    "three drawn": drawn(Residual, Residual, Residual),
    "one-dimensional": drawn(one_dimensional, one_dimensional),
    "without norm": drawn(without_norm, without_norm),
    "transformer": drawn(Transformer, Transformer),
    "one output": drawn(lambda: vgg(outputs=1), lambda: vgg(outputs=1)),
}
