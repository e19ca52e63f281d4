"""The networks of the structure benchmark in torch, in the forms Torch-Pruning asks for.

Its documentation wants sizes read off the layers (`-1` in a reshape) or set anew after pruning; a
network here that holds such a number has `tidy` for it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

WORDS, PLACES = 24, 6
norm = nn.BatchNorm2d


def conv(before: int, width: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Module:
    return nn.Conv2d(before, width, size, stride, size // 2, groups=groups, bias=False)


def mlp() -> nn.Module:
    layers = [nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)]
    return nn.Sequential(nn.Flatten(), *layers)


def lenet5() -> nn.Module:
    first = [nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*first, *second, nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10))


class Block(nn.Module):
    """A basic block, or a bottleneck, with a projection where the shapes differ."""

    def __init__(self, before: int, inner: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        after = 4 * inner if bottleneck else inner
        if bottleneck:
            sizes = [(before, inner, 1, 1), (inner, inner, 3, stride), (inner, after, 1, 1)]
        else:
            sizes = [(before, inner, 3, stride), (inner, after, 3, 1)]
        layers: list[Any] = []
        for size in sizes:
            layers += [conv(*size), norm(size[1]), nn.ReLU()]
        self.main = nn.Sequential(*layers[:-1])
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.skip = nn.Sequential(conv(before, after, 1, stride), norm(after))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.main(x) + self.skip(x))


def resnet(depths: tuple[int, ...], bottleneck: bool, width: int = 64, classes: int = 1000) -> Any:
    parts: list[Any] = [conv(3, width, 7, 2), norm(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    before = width
    for stage, depth in enumerate(depths):
        for place in range(depth):
            inner = width * 2**stage
            parts.append(Block(before, inner, 2 if stage and not place else 1, bottleneck))
            before = 4 * inner if bottleneck else inner
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


class Dense(nn.Module):
    """Two dense blocks with a transition between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        width, blocks = 16, []
        for block in range(2):
            layers = []
            for _ in range(3):
                bend = [norm(width), nn.ReLU(), conv(width, 24, 1), norm(24), nn.ReLU()]
                layers.append(nn.Sequential(*bend, conv(24, 12)))
                width += 12
            blocks.append(nn.ModuleList([*layers, nn.Sequential(norm(width), nn.ReLU())]))
            if not block:
                self.shrink = nn.Sequential(conv(width, 26, 1), nn.AvgPool2d(2))
                width = 26
        self.blocks: Any = nn.ModuleList(blocks)
        self.end = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for place, block in enumerate(self.blocks):
            for layer in block[:-1]:
                x = torch.cat([x, layer(x)], 1)
            x = block[-1](x)
            x = x if place else self.shrink(x)
        return self.end(x.mean((2, 3)))


class Added(nn.Module):
    """A network beside the identity, and an activation."""

    def __init__(self, main: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.main, self.last = main, last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + self.main(x))


def ending(width: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)]


def resnext() -> nn.Module:
    def block() -> nn.Module:
        layers = [conv(32, 32, 1), norm(32), nn.ReLU(), conv(32, 32, groups=4), norm(32)]
        return Added(nn.Sequential(*layers, nn.ReLU(), conv(32, 32, 1), norm(32)), nn.ReLU())

    return nn.Sequential(conv(3, 32), norm(32), nn.ReLU(), block(), block(), *ending(32))


def mobilenet() -> nn.Module:
    parts, before = [conv(3, 16), norm(16), nn.ReLU6()], 16
    for width, stride in ((16, 1), (24, 2), (24, 1)):
        inner = 4 * before
        layers = [conv(before, inner, 1), norm(inner), nn.ReLU6()]
        layers += [conv(inner, inner, 3, stride, inner), norm(inner), nn.ReLU6()]
        main = nn.Sequential(*layers, conv(inner, width, 1), norm(width))
        parts.append(Added(main, nn.Identity()) if (before, stride) == (width, 1) else main)
        before = width
    return nn.Sequential(*parts, *ending(before))


class Squeeze(nn.Module):
    """Channels weighted by a sigmoid of all channels' means."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(16, 16), norm(16)
        self.less, self.more = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.conv(x))
        gate = self.more(torch.relu(self.less(functional.adaptive_avg_pool2d(h, 1))))
        return torch.relu(x + h * torch.sigmoid(gate))


def squeeze_excite() -> nn.Module:
    return nn.Sequential(conv(3, 16), norm(16), nn.ReLU(), Squeeze(), Squeeze(), *ending(16))


class UNet(nn.Module):
    """One step down, one up, and what was there before beside it."""

    def __init__(self) -> None:
        super().__init__()
        block = lambda i, o: nn.Sequential(conv(i, o), norm(o), nn.ReLU())
        self.down, self.low, self.join = block(3, 16), block(16, 32), block(32, 16)
        self.up, self.end = nn.ConvTranspose2d(32, 16, 2, 2), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        h = self.up(self.low(functional.max_pool2d(skip, 2)))
        return self.end(self.join(torch.cat([skip, h], 1)))


class TiedAutoencoder(nn.Module):
    """The decoder is the encoder's transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.bias = nn.Linear(64, 32), nn.Parameter(torch.ones(64))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(torch.relu(self.encoder(x)), self.encoder.weight.t(), self.bias)


class TiedLM(nn.Module):
    """A language model whose logits are by the embedding; no norm, no attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.end = nn.Embedding(WORDS, 16), nn.Linear(16, WORDS, bias=False)
        self.end.weight = self.embed.weight
        self.main = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        return self.end(x + self.main(x))


class Attention(nn.Module):
    """torch's multi-head attention in a residual stream, without norms."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.end = nn.Linear(12, 32), nn.Linear(32, 10)
        self.attend = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        return self.end(x + self.attend(x, x, x, need_weights=False)[0])


class FusedAttention(nn.Module):
    """Queries, keys and values by one layer, as in timm."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.end = nn.Linear(12, 32), nn.Linear(32, 10)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.heads, self.depth, self.scale = 4, 8, 8**-0.5

    def tidy(self) -> None:
        """What Torch-Pruning's example for timm sets after pruning."""
        self.depth = self.qkv.out_features // (3 * self.heads)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        n, t, _ = x.shape
        qkv = self.qkv(x).reshape(n, t, 3, self.heads, self.depth).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        h = (weights @ v).transpose(1, 2).reshape(n, t, -1)
        return self.end(x + self.out(h))


class GroupedQueries(nn.Module):
    """8 heads of queries to 2 of keys and values, as in transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.end = nn.Linear(12, 32), nn.Linear(32, 10)
        layer = partial(nn.Linear, bias=False)
        self.q, self.k, self.v, self.out = (
            layer(32, 64),
            layer(32, 16),
            layer(32, 16),
            layer(64, 32),
        )
        self.depth = 8

    def repeated(self, x: Tensor, times: int) -> Tensor:
        n, heads, t, depth = x.shape
        x = x[:, :, None, :, :].expand(n, heads, times, t, depth)
        return x.reshape(n, heads * times, t, depth)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        n, t, _ = x.shape
        q, k, v = (
            layer(x).view(n, t, -1, self.depth).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        times = q.shape[1] // k.shape[1]
        k, v = self.repeated(k, times), self.repeated(v, times)
        weights = (q @ k.transpose(2, 3) * self.depth**-0.5).softmax(-1)
        h = (weights @ v).transpose(1, 2).contiguous().reshape(n, t, -1)
        return self.end(x + self.out(h))


class PreNorm(nn.Module):
    """A block of a transformer, LayerNorm before attention and before the dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.end = nn.Linear(12, 32), nn.Linear(32, 10)
        self.norms = nn.ModuleList([nn.LayerNorm(32) for _ in range(3)])
        self.attend = nn.MultiheadAttention(32, 4, batch_first=True)
        self.main = nn.Sequential(nn.Linear(32, 64), nn.GELU("tanh"), nn.Linear(64, 32))

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        h = self.norms[0](x)
        x = x + self.attend(h, h, h, need_weights=False)[0]
        return self.end(self.norms[2](x + self.main(self.norms[1](x))))


class LSTM(nn.Module):
    """The last state of an LSTM, then a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.end = nn.LSTM(12, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.lstm(x)[0][:, -1])


class GLU(nn.Module):
    """A gated layer: gate and value are two layers, or the halves of one."""

    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        self.start, self.end, self.down = nn.Linear(12, 32), nn.Linear(32, 10), nn.Linear(64, 32)
        self.fused = fused
        if fused:
            self.both = nn.Linear(32, 128)
        else:
            self.gate, self.value = nn.Linear(32, 64), nn.Linear(32, 64)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        gate, value = self.both(x).chunk(2, -1) if self.fused else (self.gate(x), self.value(x))
        return self.end(x + self.down(functional.silu(gate) * value))
