"""Small networks that a judge of kind module is built from."""

from typing import Any

import torch


class Tiny(torch.nn.Module):
    """Two convolutions, a pooling, and a classifier."""

    def __init__(self, width: int = 8, classes: int = 60) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, width, 3, stride=2)
        self.second = torch.nn.Conv2d(width, 2 * width, 3, stride=2)
        self.norm = torch.nn.BatchNorm2d(2 * width)
        self.pool = torch.nn.AdaptiveAvgPool2d(1)
        self.head = torch.nn.Linear(2 * width, classes)

    def forward(self, images: Any) -> Any:
        pooled = self.pool(self.norm(torch.relu(self.second(torch.relu(self.first(images))))))
        return self.head(pooled.flatten(1))


def pair() -> dict[str, int]:
    """What is no network."""
    return {"a": 1}
