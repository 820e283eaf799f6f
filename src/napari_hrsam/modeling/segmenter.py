"""Segmenter: encoder, prompt encoder, mask decoder and preprocessing as one model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from napari_hrsam.errors import ConfigError, ShapeError
from napari_hrsam.modeling.attention import AttentionBackend
from napari_hrsam.modeling.configs import ScanBackend
from napari_hrsam.modeling.dense_head import DenseHead
from napari_hrsam.modeling.drawn_prompts import draw_prompts
from napari_hrsam.modeling.focus_refiner import FocusRefiner
from napari_hrsam.modeling.hrsam import HRSAMEncoder
from napari_hrsam.modeling.image_encoders import build_encoder
from napari_hrsam.modeling.mask_correction import SKIP_CHANNELS
from napari_hrsam.modeling.mask_decoder import Decoded, MaskDecoder
from napari_hrsam.modeling.models import MODELS, ModelConfig
from napari_hrsam.modeling.prompt_encoder import PromptEncoder


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFeatures:
    """What the encoder knows of a batch of images.

    Attributes
    ----------
    embedding : (B, C, H / 16, W / 16) float
    stride8, stride4 : (B, 32, H / 8, W / 8) and (B, 16, H / 4, W / 4) float, or None
        Projected stem maps for the mask decoder, for models with a convolutional stem.
    """

    embedding: Tensor
    stride8: Tensor | None = None
    stride4: Tensor | None = None

    def to(self, *, device: torch.device | str, dtype: torch.dtype) -> ImageFeatures:
        """Move all maps."""
        moved = {name: None if x is None else x.to(device, dtype) for name, x in self.items()}
        return replace(self, **moved)  # type: ignore[arg-type]

    def items(self) -> list[tuple[str, Tensor | None]]:
        """Names and maps, for stores that keep them."""
        return [
            ("embedding", self.embedding),
            ("stride8", self.stride8),
            ("stride4", self.stride4),
        ]


class Segmenter(nn.Module):
    """Image encoder, prompt encoder, mask decoder and preprocessing.

    Parameters
    ----------
    config : ModelConfig

    Attributes
    ----------
    precision : {"float32", "bfloat16"}
        Arithmetic of `encode`; decoding is float32.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.precision = "float32"
        self.image_encoder = build_encoder(config.image_encoder)
        self.prompt_encoder = PromptEncoder(config.decoder)
        self.mask_decoder = MaskDecoder(config.decoder)
        self.dense_head = DenseHead(config.decoder.embed_dim) if config.dense_head else None
        self.focus_refiner = None if config.focus is None else FocusRefiner(config.focus)
        shape = (1, 3, 1, 1)
        mean, std = torch.tensor(config.pixel_mean), torch.tensor(config.pixel_std)
        self.register_buffer("pixel_mean", mean.view(shape), persistent=False)
        self.register_buffer("pixel_std", std.view(shape), persistent=False)
        self._fingerprint: str | None = None

    @property
    def name(self) -> str:
        """The user's name of an own model, else that of the configuration."""
        return self.config.own_name or self.config.name

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @property
    def fingerprint(self) -> str:
        """SHA-256 (16 hex digits) of configuration, weights and precision.

        Two models with the same fingerprint give the same embeddings. Computed at first use and
        kept; `load_model` gives models whose weights do not change afterwards.
        """
        if self._fingerprint is None:
            config = asdict(self.config)
            del config["description"], config["own_name"]
            digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
            for name, value in self.state_dict().items():
                digest.update(name.encode())
                digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
            self._fingerprint = digest.hexdigest()[:16]
        return f"{self._fingerprint}-{self.precision}"

    def set_backends(self, attention: AttentionBackend, scan: ScanBackend) -> None:
        """Choose the kernels of the image encoder; encoders without a scan have no use for it."""
        self.image_encoder.attention_backend = attention
        if isinstance(self.image_encoder, HRSAMEncoder):
            self.image_encoder.scan_backend = scan

    def normalize(self, image: Tensor) -> Tensor:
        """Map RGB images (B, 3, H, W), 0..255, to what the image encoder takes."""
        if self.config.channel_order == "bgr":
            image = image.flip(1)
        mean, std = self.get_buffer("pixel_mean"), self.get_buffer("pixel_std")
        return (image.to(mean) - mean) / std

    def encode(self, image: Tensor) -> ImageFeatures:
        """Embed images.

        Parameters
        ----------
        image : (B, 3, H, W) float
            RGB, 0..255; H and W multiples of 16. Parts without image should hold the mean
            colour (`ModelConfig.pixel_mean`), which becomes zero.

        Returns
        -------
        ImageFeatures

        Raises
        ------
        ShapeError
            If the shape does not fit.
        """
        if image.ndim != 4 or image.shape[1] != 3:
            raise ShapeError(
                f"image must be (B, 3, H, W), got {tuple(image.shape)}; "
                "add a batch axis with image[None]"
            )
        normalized = self.normalize(image)
        use_bf16 = self.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=use_bf16):
            embedding, stride8, stride4 = self.image_encoder(normalized)
            if self.mask_decoder.fine is None:
                # SAM's decoder looks at no stem maps: they need not be kept.
                stride8 = stride4 = None
            elif stride8 is not None:
                stride8, stride4 = self.mask_decoder.project_stem(stride8, stride4)
        features = ImageFeatures(embedding=embedding, stride8=stride8, stride4=stride4)
        return features.to(device=self.device, dtype=torch.float32) if use_bf16 else features

    def map_shapes(self, size_px: int) -> dict[str, tuple[int, ...]]:
        """Tell names and shapes of the maps that `encode` makes of an image.

        Parameters
        ----------
        size_px : int
            Side of the image, a multiple of the stride of the embedding.

        Returns
        -------
        dict of str to tuple of int
            (1, C, h, w) of every map of `ImageFeatures` that this model has.
        """
        encoder = self.config.image_encoder
        side = size_px // encoder.patch_size
        shapes: dict[str, tuple[int, ...]] = {"embedding": (1, encoder.out_channels, side, side)}
        if self.config.decoder.skip_channels is not None:
            for name, channels, finer in zip(
                ("stride8", "stride4"), SKIP_CHANNELS, (2, 4), strict=True
            ):
                shapes[name] = (1, channels, finer * side, finer * side)
        return shapes

    def dense_maps(self, features: ImageFeatures) -> Tensor:
        """Predict foreground, centre distance and boundary distance of all objects at once.

        Parameters
        ----------
        features : ImageFeatures
            Of B images.

        Returns
        -------
        (B, 3, H / 4, W / 4) float, 0..1
            See `dense_head.DENSE_MAPS`.

        Raises
        ------
        ConfigError
            If the model has no dense head.
        """
        return self.dense_maps_and_features(features)[0]

    def dense_maps_and_features(self, features: ImageFeatures) -> tuple[Tensor, Tensor]:
        """Predict the maps of `dense_maps`, and give what the head read them off.

        Returns
        -------
        maps : (B, 3, H / 4, W / 4) float, 0..1
        features : (B, 32, H / 4, W / 4) float
            What tells objects of one kind from others better than the embedding does.
        """
        head = self.require_dense_head()
        found = head.features(features.embedding, features.stride8, features.stride4)
        return torch.sigmoid(head.maps_of(found)), found

    def require_dense_head(self) -> DenseHead:
        """Return the dense head; `ConfigError` names the models that have one, if there is none."""
        if self.dense_head is None:
            names = ", ".join(name for name, config in MODELS.items() if config.dense_head)
            raise ConfigError(
                f"expected a model with a dense head, got {self.name!r}; choose one of {names}"
            )
        return self.dense_head

    def decode(
        self,
        features: ImageFeatures,
        *,
        point_coords_xy: Tensor | None = None,
        point_labels: Tensor | None = None,
        boxes_xyxy: Tensor | None = None,
        mask_logits: Tensor | None = None,
        multimask: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Predict the masks of N objects.

        Parameters
        ----------
        features : ImageFeatures
            Of one image, shared by the N objects, or of N images.
        point_coords_xy : (N, P, 2) float, optional
            Pixels of the encoded image, pixel centres at integers.
        point_labels : (N, P) int, optional
            1 foreground, 0 background, -1 padding.
        boxes_xyxy : (N, 4) float, optional
        mask_logits : (N, 1, H / 4, W / 4) float, optional
            Low-resolution logits of the previous prediction.
        multimask : bool
            Three candidate masks instead of the single one.

        Returns
        -------
        low_res_logits : (N, 1 or 3, H / 4, W / 4) float
        iou : (N, 1 or 3) float
            Predicted IoU.

        Raises
        ------
        ShapeError
            If the shapes do not belong together.
        """
        decoded = self.decode_all(
            features,
            point_coords_xy=point_coords_xy,
            point_labels=point_labels,
            boxes_xyxy=boxes_xyxy,
            mask_logits=mask_logits,
            candidates=multimask,
        )
        chosen = slice(1, None) if multimask else slice(0, 1)
        return decoded.masks[:, chosen], decoded.iou[:, chosen]

    def refine(
        self,
        features: ImageFeatures,
        *,
        point_coords_xy: Tensor | None = None,
        point_labels: Tensor | None = None,
        boxes_xyxy: Tensor | None = None,
        mask_logits: Tensor | None = None,
        box_expansion: tuple[float, float] | None = None,
    ) -> ImageFeatures:
        """Rewrite the features for each of N objects, around what is predicted without that.

        Learns through the refiner only: the prediction it starts from is made without gradients.

        Parameters
        ----------
        features : ImageFeatures
            As the encoder gave them; of one image, shared by the N objects, or of N images.
        point_coords_xy, point_labels, boxes_xyxy, mask_logits
            As in `decode`.
        box_expansion : (float, float), optional
            Factors on height and width of the box around the prediction, for training;
            `FocusConfig.box_expansion` by default.

        Returns
        -------
        ImageFeatures
            Of N images: give them to `decode` in place of the original ones.

        Raises
        ------
        ConfigError
            If the model has no focus refiner.
        ShapeError
            If the shapes do not belong together.
        """
        if self.focus_refiner is None:
            raise ConfigError(
                f"expected a model with a focus refiner, got {self.name!r}; choose one whose name "
                "ends in +focus, or decode without refining"
            )
        with torch.no_grad():
            decoded = self.decode_all(
                features,
                point_coords_xy=point_coords_xy,
                point_labels=point_labels,
                boxes_xyxy=boxes_xyxy,
                mask_logits=mask_logits,
                candidates=False,
            )
        num, (height, width) = decoded.masks.shape[0], features.embedding.shape[2:]
        patch = self.config.image_encoder.patch_size
        each = {
            name: None if x is None else x.expand(num, -1, -1, -1) for name, x in features.items()
        }
        refined = self.focus_refiner(
            each["embedding"],
            decoded.mask_tokens[:, :1],
            decoded.masks[:, :1],
            (height * patch, width * patch),
            box_expansion,
        )
        return ImageFeatures(embedding=refined, stride8=each["stride8"], stride4=each["stride4"])

    def decode_all(
        self,
        features: ImageFeatures,
        *,
        point_coords_xy: Tensor | None = None,
        point_labels: Tensor | None = None,
        boxes_xyxy: Tensor | None = None,
        mask_logits: Tensor | None = None,
        candidates: bool = True,
    ) -> Decoded:
        """Predict the single mask and the candidates, with all that training looks at.

        Errors and parameters are those of `decode`, but for ``candidates``: without them there is
        the single mask alone, which takes less time.
        """
        height, width = features.embedding.shape[2:]
        patch = self.config.image_encoder.patch_size
        sparse, dense = self.prompt_encoder(
            grid_hw=(height, width),
            image_hw=(height * patch, width * patch),
            point_coords_xy=point_coords_xy,
            point_labels=point_labels,
            boxes_xyxy=boxes_xyxy,
            mask_logits=mask_logits,
        )
        if features.embedding.shape[0] not in (1, sparse.shape[0]):
            raise ShapeError(
                f"features hold {features.embedding.shape[0]} images but the prompts are for "
                f"{sparse.shape[0]} objects; give one image, or one per object"
            )
        drawn = None
        if self.config.decoder.skip_channels is not None:
            drawn = draw_prompts(
                map_hw=(4 * height, 4 * width),
                num=sparse.shape[0],
                point_coords_xy=point_coords_xy,
                point_labels=point_labels,
                boxes_xyxy=boxes_xyxy,
                mask_logits=mask_logits,
                like=features.embedding,
            )
        decoded: Decoded = self.mask_decoder(
            features.embedding,
            self.prompt_encoder.dense_position((height, width)),
            sparse,
            dense,
            stride8=features.stride8,
            stride4=features.stride4,
            drawn_prompts=drawn,
            point_coords_xy=point_coords_xy,
            point_labels=point_labels,
            candidates=candidates,
        )
        return decoded
