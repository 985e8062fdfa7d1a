"""Pictures as a few tokens: a stem of strided convolutions, one token for each cell of its last grid."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MAX_TOKENS = 15
"""Most tokens per camera: halvings are added until the grid is this small."""


class ImageStem(nn.Module):
    """uint8 pictures [B, C, H, W, 3] of C cameras -> tokens [B, C * cells, dim]."""

    def __init__(self, dim: int, cameras: int, image_size: tuple[int, int], width: int = 32) -> None:
        super().__init__()
        height, across = (side // 4 for side in image_size)
        layers: list[nn.Module] = [nn.Conv2d(3, width, kernel_size=6, stride=4, padding=(1, 1)), nn.ReLU()]
        channels = width
        while True:
            height, across = -(-height // 2), -(-across // 2)
            last = height * across <= MAX_TOKENS
            before, channels = channels, dim if last else min(2 * channels, dim)
            layers.append(nn.Conv2d(before, channels, kernel_size=3, stride=2, padding=1))
            if last:
                break
            layers.append(nn.ReLU())
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
        tokens: Tensor = self.norm(x.flatten(2).transpose(1, 2)).view(batch, cameras, -1, weight.shape[-1])
        return (tokens + weight).flatten(1, 2)
