"""Small models whose layers are guided from elsewhere, and the same written by hand."""

import torch
from torch import nn

import convswap


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x):
        y = self.conv2(self.act(self.conv1(x)))
        y += x
        return y


class Net(nn.Module):
    """Two blocks at two resolutions, a head that runs in training mode only, and a way around forward."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.first = Block(4)
        self.down = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.second = Block(6)
        self.head = nn.Conv2d(6, 2, 1)
        self.aux = nn.Conv2d(4, 2, 1)

    def forward_features(self, x):
        return self.second(self.down(self.first(self.stem(x))))

    def forward(self, x, scale=1.0, *, flip=False):
        stem = self.stem(x)
        first = self.first(stem)
        second = self.second(self.down(first))
        y = self.head(second * scale)
        if flip:
            y = y.flip(-1)
        if self.training:
            return y, self.aux(first)
        return y


def net(seed=0):
    torch.manual_seed(seed)
    return Net().double().eval()


def awake(model, seed=1):
    """``model`` with hypernets that have learned something: from the zero start, what guides does not matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in convswap.new_parameters(model).values():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_((0.2 * noise).to(parameter))
    return model


def images(batch=2, channels=3, size=12, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, size, size, generator=generator, dtype=torch.float64)
