"""Pictures as a few tokens: a stem of strided convolutions, one token for each cell of its last grid."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MAX_TOKENS = 60
"""Most tokens per camera: halvings are added until the grid is this small."""


class ImageStem(nn.Module):
    """uint8 pictures [B, C, H, W, 3] of C cameras -> tokens [B, C * cells, dim]."""

    def __init__(self, dim: int, cameras: int, image_size: tuple[int, int], width: int = 24) -> None:
        super().__init__()
        height, across = image_size
        layers: list[nn.Module] = []
        before, channels = 3, width
        while True:
            height, across = -(-height // 2), -(-across // 2)
            last = height * across <= MAX_TOKENS
            channels = dim if last else min(channels, dim)
            layers.append(nn.Conv2d(before, channels, kernel_size=5 if before == 3 else 3, stride=2, padding=2 if before == 3 else 1))
            if last:
                break
            layers.append(nn.ReLU())
            before, channels = channels, 2 * channels
        self.convolutions = nn.Sequential(*layers)
        self.convolutions.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.norm = nn.LayerNorm(dim)
        self.position = nn.Parameter(0.02 * torch.randn(cameras, height * across, dim))

    def forward(self, pixels: Tensor) -> Tensor:
        """Tokens, camera by camera, rows of the picture from the top."""
        batch, cameras = pixels.shape[:2]
        weight = self.position
        x = pixels.flatten(0, 1).permute(0, 3, 1, 2).to(weight.dtype).sub(127.5).div(64.0)
        x = self.convolutions(x.contiguous(memory_format=torch.channels_last))
        tokens = self.norm(x.flatten(2).transpose(1, 2)).view(batch, cameras, -1, weight.shape[-1])
        return (tokens + weight).flatten(1, 2)
