"""Networks whose outputs are images: a U-Net for classes of pixels, and a convolutional variational autoencoder.

`unet` (Ronneberger et al. 2015, made small) halves its maps twice and doubles them again; the maps of the same size on the
way down and up are concatenated. `conv_vae` (Kingma and Welling 2014) has an encoder of strided convolutions, two linear
heads for mean and log-variance of a latent, and a decoder of convolutions between doublings. A network draws nothing by
itself: the noise of its latent is part of its input, and mean and log-variance are part of its output.

Axes: B images, C channels, K classes, S the side of an image, E latent size.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from netspace.archs.convnets import SLOPE, check, norm, scaled
from netspace.errors import UsageError

STEP = 4  # the side of an image is a multiple: it is halved twice
LARGEST_LATENT = 4096
LARGEST_LOG_VARIANCE = 12.0  # and the smallest is its negative: no network overflows, however bad


class UNet(nn.Module):
    """Images (B, C, S, S) -> logits (B, K, S, S)."""

    def __init__(self, channels: int, classes: int, width: float, batch_norm: bool) -> None:
        super().__init__()
        fine, middle, coarse = (scaled(each, width) for each in (16, 32, 64))
        self.down1 = _convolutions(channels, fine, batch_norm)
        self.down2 = _convolutions(fine, middle, batch_norm)
        self.bottom = _convolutions(middle, coarse, batch_norm)
        self.up2 = _convolutions(coarse + middle, middle, batch_norm)
        self.up1 = _convolutions(middle + fine, fine, batch_norm)
        self.pool = nn.MaxPool2d(2)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.head = nn.Conv2d(fine, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K, S, S) of images (B, C, S, S)."""
        fine = self.down1(x)
        middle = self.down2(self.pool(fine))
        coarse = self.bottom(self.pool(middle))
        up = self.up2(torch.cat([self.upsample(coarse), middle], 1))
        up = self.up1(torch.cat([self.upsample(up), fine], 1))
        logits: Tensor = self.head(up)
        return logits


def _convolutions(before: int, after: int, batch_norm: bool) -> nn.Sequential:
    """Return two 3x3 convolutions, each with batch norm, if asked for, and LeakyReLU."""
    layers: list[nn.Module] = []
    for channels in (before, after):
        convolution = nn.Conv2d(channels, after, 3, 1, 1, bias=not batch_norm)
        layers += [convolution, norm(after, batch_norm), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers)


def unet(
    *, channels: int = 3, classes: int = 10, image_size: int = 32, width: float = 1.0, batch_norm: bool = True
) -> nn.Module:
    """Build a U-Net for images (B, channels, image_size, image_size) -> logits (B, classes, image_size, image_size).

    `width` scales its channels, which are 16, 32 and 64. Raises `UsageError` for a setting out of range.

    >>> unet(classes=5)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 5, 32, 32])
    """
    check("unet", channels, classes, image_size, width)
    _check_side("unet", image_size)
    if not isinstance(batch_norm, bool):
        raise UsageError(f"unet needs batch_norm to be true or false, not {batch_norm!r}.")
    return UNet(channels, classes, width, batch_norm)


class ConvVAE(nn.Module):
    """Images and noise (B, C * S * S + E) -> logits of pixels, mean and log-variance (B, C * S * S + 2 * E)."""

    def __init__(self, channels: int, image_size: int, latent: int, width: float) -> None:
        super().__init__()
        self.channels, self.image_size, self.latent = channels, image_size, latent
        fine, coarse, side = scaled(32, width), scaled(64, width), image_size // STEP
        self.pixels = channels * image_size**2
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, fine, 3, 2, 1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(fine, coarse, 3, 2, 1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(coarse, coarse, 3, 1, 1),
            nn.LeakyReLU(SLOPE),
            nn.Flatten(),
        )
        self.mean = nn.Linear(coarse * side**2, latent)
        self.log_variance = nn.Linear(coarse * side**2, latent)
        # the first layer makes maps of a single pixel with E channels: a linear layer whose channels stay channels
        self.decoder = nn.Sequential(
            OrderedDict(
                conv1=nn.ConvTranspose2d(latent, coarse, side),
                act1=nn.LeakyReLU(SLOPE),
                up2=nn.Upsample(scale_factor=2, mode="nearest"),
                conv2=nn.Conv2d(coarse, coarse, 3, 1, 1),
                act2=nn.LeakyReLU(SLOPE),
                up3=nn.Upsample(scale_factor=2, mode="nearest"),
                conv3=nn.Conv2d(coarse, fine, 3, 1, 1),
                act3=nn.LeakyReLU(SLOPE),
                conv4=nn.Conv2d(fine, channels, 3, 1, 1),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of pixels, mean and log-variance (B, C * S * S + 2 * E) of images and noise (B, C * S * S + E)."""
        images, noise = x[:, : self.pixels], x[:, self.pixels :]
        features = self.encoder(images.view(-1, self.channels, self.image_size, self.image_size))
        mean = self.mean(features)
        log_variance = torch.clamp(self.log_variance(features), -LARGEST_LOG_VARIANCE, LARGEST_LOG_VARIANCE)
        latents = mean + torch.exp(0.5 * log_variance) * noise
        return torch.cat([self.decode(latents).flatten(1), mean, log_variance], 1)

    def decode(self, latents: Tensor) -> Tensor:
        """Return logits of pixels (B, C, S, S) of latents (B, E)."""
        logits: Tensor = self.decoder(latents.unsqueeze(2).unsqueeze(3))
        return logits


def conv_vae(*, channels: int = 1, image_size: int = 28, latent: int = 16, width: float = 1.0) -> nn.Module:
    """Build a VAE for images and noise, in one row each, -> logits of pixels, mean and log-variance, in one row each.

    With P = channels * image_size^2 and E = latent that is (B, P + E) -> (B, P + 2 E). `width` scales the channels, 32 and 64,
    and not the latent. Raises `UsageError` for a setting out of range.

    >>> conv_vae(latent=8)(torch.zeros(2, 28 * 28 + 8)).shape
    torch.Size([2, 800])
    """
    check("conv_vae", channels, 1, image_size, width)
    _check_side("conv_vae", image_size)
    if isinstance(latent, bool) or not isinstance(latent, int) or not 1 <= latent <= LARGEST_LATENT:
        raise UsageError(f"conv_vae needs latent to be a whole number from 1 to {LARGEST_LATENT}, not {latent!r}.")
    return ConvVAE(channels, image_size, latent, width)


def _check_side(arch: str, image_size: int) -> None:
    """Raise `UsageError` unless images can be halved twice."""
    if image_size % STEP:
        raise UsageError(
            f"{arch} halves images twice, so image_size is a multiple of {STEP}, not {image_size}: resize the images."
        )
