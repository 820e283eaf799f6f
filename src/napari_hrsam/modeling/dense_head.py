"""Three maps of all objects at once, from the embedding: for automatic segmentation.

Nothing is normalised over the extent of a tile, so that the maps of a place do not depend on what
else the tile shows. Shape letters: B images, C channels, h x w embedding grid.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from napari_hrsam.modeling.configs import DENSE_FEATURES
from napari_hrsam.modeling.layers import LayerNorm2d
from napari_hrsam.modeling.mask_correction import SKIP_CHANNELS

DENSE_MAPS = ("foreground", "centre_distance", "boundary_distance")
"""What the channels are; the distances are shares of the object's largest, 0..1."""

_CHANNELS = (64, DENSE_FEATURES)


class DenseHead(nn.Module):
    """Upscale the embedding to stride 4 and read the three maps off it.

    Parameters
    ----------
    dim : int
        Channels of the embedding.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        c8, c4 = _CHANNELS
        self.up8 = nn.ConvTranspose2d(dim, c8, 2, stride=2)
        self.skip8 = nn.Conv2d(SKIP_CHANNELS[0], c8, 1)
        self.norm8 = LayerNorm2d(c8)
        self.conv8 = nn.Conv2d(c8, c8, 3, padding=1)
        self.up4 = nn.ConvTranspose2d(c8, c4, 2, stride=2)
        self.skip4 = nn.Conv2d(SKIP_CHANNELS[1], c4, 1)
        self.norm4 = LayerNorm2d(c4)
        self.conv4 = nn.Conv2d(c4, c4, 3, padding=1)
        self.out = nn.Conv2d(c4, len(DENSE_MAPS), 1)

    def forward(
        self, embedding: Tensor, stride8: Tensor | None = None, stride4: Tensor | None = None
    ) -> Tensor:
        """Compute the maps.

        Parameters and result are those of `features` and `maps_of`.
        """
        return self.maps_of(self.features(embedding, stride8, stride4))

    def features(
        self, embedding: Tensor, stride8: Tensor | None = None, stride4: Tensor | None = None
    ) -> Tensor:
        """Compute what the maps are read off.

        Parameters
        ----------
        embedding : (B, C, h, w) float
        stride8, stride4 : (B, 32, 2 h, 2 w) and (B, 16, 4 h, 4 w) float, optional
            Projected stem maps, for a finer outline; the head is trained with and without them.

        Returns
        -------
        (B, 32, 4 h, 4 w) float
        """
        x = self.up8(embedding)
        if stride8 is not None:
            x = x + self.skip8(stride8)
        x = F.gelu(self.norm8(x))
        x = self.up4(x + F.gelu(self.conv8(x)))
        if stride4 is not None:
            x = x + self.skip4(stride4)
        x = F.gelu(self.norm4(x))
        return x + F.gelu(self.conv4(x))

    def maps_of(self, features: Tensor) -> Tensor:
        """Read the maps off the features: (B, 3, 4 h, 4 w) logits of `DENSE_MAPS`."""
        out: Tensor = self.out(features)
        return out
