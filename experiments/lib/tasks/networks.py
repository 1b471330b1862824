"""Small networks of each kind of output, of up to 30,000 parameters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Block(nn.Module):
    """Two convolutions beside a shortcut, with BatchNorm."""

    def __init__(self, channels: int, dimensions: int = 2) -> None:
        super().__init__()
        convolution, norm = CONVOLUTIONS[dimensions], NORMS[dimensions]
        self.conv1, self.norm1 = convolution(channels, channels, 3, padding=1, bias=False), norm(channels)
        self.conv2, self.norm2 = convolution(channels, channels, 3, padding=1, bias=False), norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map features to features of their shape."""
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class Pooled(nn.Module):
    """A residual network whose features are averaged over all positions: (N, 1, ...) to (N, outputs)."""

    def __init__(self, outputs: int, dimensions: int = 2, width: int = 16) -> None:
        super().__init__()
        convolution, norm = CONVOLUTIONS[dimensions], NORMS[dimensions]
        self.stem = nn.Sequential(convolution(1, width, 3, 2, 1, bias=False), norm(width), nn.ReLU())
        self.block1 = Block(width, dimensions)
        self.down = nn.Sequential(convolution(width, 2 * width, 3, 2, 1, bias=False), norm(2 * width), nn.ReLU())
        self.block2 = Block(2 * width, dimensions)
        self.head = nn.Linear(2 * width, outputs)

    def features(self, x: Tensor) -> Tensor:
        """Map inputs to rows (N, 2 width)."""
        return self.block2(self.down(self.block1(self.stem(x)))).flatten(2).mean(2)

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs to rows of outputs."""
        return self.head(self.features(x))


class Flat(nn.Module):
    """Convolutions with BatchNorm whose features keep their positions: (N, 1, H, W) to (N, outputs)."""

    def __init__(self, outputs: int, side: int, width: int = 12) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width)
        self.conv3, self.norm3 = nn.Conv2d(2 * width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width)
        self.hidden = nn.Linear(2 * width * (side // 4) ** 2, 48)
        self.head = nn.Linear(48, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to rows of numbers."""
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        x = F.relu(self.norm3(self.conv3(x)))
        return self.head(F.relu(self.hidden(x.flatten(1))))


class UNet(nn.Module):
    """Two steps down and two up by transposed convolutions, with concatenated skips: (N, 1, H, W) to maps."""

    def __init__(self, classes: int, width: int = 8) -> None:
        super().__init__()
        self.enter, self.deep = self._layer(1, width), self._layer(width, 2 * width, 2)
        self.deepest = self._layer(2 * width, 3 * width, 2)
        self.up1, self.join1 = nn.ConvTranspose2d(3 * width, 2 * width, 2, 2), self._layer(4 * width, 2 * width)
        self.up2, self.join2 = nn.ConvTranspose2d(2 * width, width, 2, 2), self._layer(2 * width, width)
        self.last = nn.Conv2d(width, classes, 1)

    @staticmethod
    def _layer(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Map images to maps of class scores."""
        wide = self.enter(x)
        deep = self.deep(wide)
        x = self.join1(torch.cat([deep, self.up1(self.deepest(deep))], 1))
        return self.last(self.join2(torch.cat([wide, self.up2(x)], 1)))


class Autoencoder(nn.Module):
    """Images (N, 3, 16, 16) to themselves through 8 maps of 4 x 4; transposed convolutions lead back."""

    def __init__(self, width: int = 12, code: int = 8) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.Conv2d(2 * width, code, 1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(code, 2 * width, 3, 1, 1), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.ConvTranspose2d(width, width, 4, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 3, 3, 1, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Map images to images."""
        return self.decoder(self.encoder(x))


class Upscaler(nn.Module):
    """Images twice as large by PixelShuffle, added to the enlarged input; PReLU, and no BatchNorm."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.enter, self.act1 = nn.Conv2d(3, width, 3, 1, 1), nn.PReLU(width)
        self.middle, self.act2 = nn.Conv2d(width, width, 3, 1, 1), nn.PReLU(width)
        self.deep, self.act3 = nn.Conv2d(width, width, 3, 1, 1), nn.PReLU(width)
        self.last = nn.Conv2d(width, 12, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) to (N, 3, 2 H, 2 W)."""
        y = self.act1(self.enter(x))
        y = y + self.act3(self.deep(self.act2(self.middle(y))))
        return F.pixel_shuffle(self.last(y), 2) + F.interpolate(x, scale_factor=2)


class Embedding(nn.Module):
    """Images to directions (N, size) of length one."""

    def __init__(self, size: int = 16) -> None:
        super().__init__()
        self.body = Pooled(size)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to embeddings."""
        return F.normalize(self.body(x), dim=1)


class TwoInputs(nn.Module):
    """An image and a row of numbers, which meet by concatenation."""

    def __init__(self, outputs: int, numbers: int, width: int = 12) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(1, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU(),
        )  # fmt: skip
        self.row = nn.Sequential(nn.Linear(numbers, 24), nn.ReLU())
        self.both, self.head = nn.Linear(2 * width + 24, 48), nn.Linear(48, outputs)

    def forward(self, image: Tensor, row: Tensor) -> Tensor:
        """Map both to rows of class scores."""
        joined = torch.cat([self.image(image).flatten(2).mean(2), self.row(row)], 1)
        return self.head(F.relu(self.both(joined)))


class Attention(nn.Module):
    """Self-attention of several heads and a perceptron, each after a LayerNorm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (N, T, width) to tokens."""
        n, tokens, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width)
        x = x + self.out(mixed)
        return x + self.narrow(F.gelu(self.wide(self.norm2(x))))


class Transformer(nn.Module):
    """A small vision transformer on images of 12 x 12: patches of 3 x 3, two layers, the mean of all tokens."""

    def __init__(self, classes: int, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 3, 3)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.layers = nn.Sequential(Attention(width, heads), Attention(width, heads))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to rows of class scores."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.layers(tokens)).mean(1))
