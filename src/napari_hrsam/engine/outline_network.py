"""The network that draws outlines at finer levels, seen from outside: NumPy in, NumPy out."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from napari_hrsam.errors import SessionError
from napari_hrsam.modeling.outline_refiner import OutlineRefiner, load_outline_refiner


class OutlineNetwork:
    """The shipped outline refiner, loaded when it is first needed; a `Refiner`.

    Parameters
    ----------
    device : str
        Where it runs.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._network: OutlineRefiner | None = None

    def __call__(
        self, pixels: NDArray[np.uint8], prior: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Draw an outline.

        Parameters
        ----------
        pixels : (H, W, 3) uint8
            RGB; H and W multiples of 4.
        prior : (H, W) float32
            Logits known from a coarser level.

        Returns
        -------
        (H, W) float32

        Raises
        ------
        WeightsNotFoundError
            If the shipped weights are missing.
        SessionError
            If the network computes NaN or infinity.
        """
        if self._network is None:
            self._network = load_outline_refiner(self._device)
        with torch.inference_mode():
            image = torch.from_numpy(pixels).to(self._device).permute(2, 0, 1)[None].float()
            given = torch.from_numpy(prior).to(self._device)[None, None]
            logits = self._network(image, given)[0, 0].float().cpu()
        if not torch.isfinite(logits).all():
            raise SessionError(
                "expected finite numbers, got NaN or infinity in an outline; "
                "install napari-hrsam again, or commit at the level you look at: "
                "session.outline_level = session.prediction.level"
            )
        refined: NDArray[np.float32] = logits.numpy()
        return refined
