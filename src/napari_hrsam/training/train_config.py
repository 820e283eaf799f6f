"""The settings of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from napari_hrsam.errors import ConfigError
from napari_hrsam.modeling.devices import Precision
from napari_hrsam.modeling.models import find_config
from napari_hrsam.modeling.selective_scan import ScanBackend
from napari_hrsam.training.batches import CropConfig
from napari_hrsam.training.click_rounds import ClickConfig
from napari_hrsam.training.distill import DistillConfig
from napari_hrsam.training.focus_rounds import FocusTaskConfig

StageName = Literal["clicks", "decoder", "focus", "distill"]
STAGES: tuple[StageName, ...] = ("clicks", "decoder", "focus", "distill")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """A training run; saved as JSON beside what it made.

    Attributes
    ----------
    model : str
        Name in `configs.MODELS`.
    data : tuple of str
        Shards and folders.
    exclude_sources : tuple of str
        Sources left out, e.g. for their licence.
    out : str
        Folder for checkpoints, log and weights.
    init : tuple of str
        Weights to start from, of this model or of a related one (`warm_start`), later files over
        earlier ones, such as a model and its refiner; empty for a random start.
    init_partly : bool
        Let tensors of ``init`` that do not fit this model of the same name start from new values,
        as after a change of the network, instead of refusing the file.
    stage : {"clicks", "decoder", "focus", "distill"}
        What is taught, see `stages`.
    distill : DistillConfig
        The teacher of the stage "distill".
    steps : int
        Optimiser steps of the whole schedule.
    crops : CropConfig
    clicks : ClickConfig
        Sequences of clicks, and the weights of the losses.
    focus : FocusTaskConfig
        Of the stage "focus".
    stem_teacher : str
        Weights of the pretrained stem, as ``scripts/import_efficientnet.py`` writes them; needed
        where ``clicks.stem_weight`` is above 0.
    stem_at : float
        Share of the training after which the pretrained stem learns too; 1 for never.
    stem_factor : float
        Factor on its learning rate.
    learning_rate, weight_decay, clip_norm
        Of AdamW and of the gradient clipping.
    warmup : int
        Steps of linear warm-up.
    hold : float, 0..1
        Share of the training at full rate, before the decay begins.
    schedule : {"cosine", "linear"}
        Decay to zero.
    ema_decay : float
        Of the averaged weights, which are the ones saved for use.
    precision : {"auto", "float32", "bfloat16"}
        bfloat16 runs under autocast; "auto" does where the device computes in it natively, because
        elsewhere it is emulated, several times slower than float32.
    scan : {"auto", "mamba", "torch", "numba", "reference"}
        Backend of the state-space blocks; "numba" trains several times faster on a CPU.
    device : str
    seed : int
    checkpoint_every_s : float
        Seconds between checkpoints.
    validation : tuple of str
        Shards and folders that the averaged weights are scored on; none by default.
    validate_every_s : float
        Seconds between scores; there is one at the end as well. The best weights are kept in a
        file of their own.
    validation_objects : int
        Objects of each domain that are clicked on.
    validation_px : int
        Side of the tiles on which they are shown.
    """

    model: str = "hrsam-tiny"
    data: tuple[str, ...] = ()
    exclude_sources: tuple[str, ...] = ()
    out: str = "runs/hrsam-tiny"
    init: tuple[str, ...] = ()
    init_partly: bool = False
    stage: StageName = "clicks"
    distill: DistillConfig = field(default_factory=DistillConfig)
    steps: int = 4000
    crops: CropConfig = field(default_factory=CropConfig)
    clicks: ClickConfig = field(default_factory=ClickConfig)
    focus: FocusTaskConfig = field(default_factory=FocusTaskConfig)
    stem_teacher: str = ""
    stem_at: float = 1.0
    stem_factor: float = 0.1
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    clip_norm: float = 1.0
    warmup: int = 100
    hold: float = 0.0
    schedule: Literal["cosine", "linear"] = "cosine"
    ema_decay: float = 0.998
    precision: Precision = "float32"
    scan: ScanBackend = "auto"
    device: str = "cpu"
    seed: int = 0
    checkpoint_every_s: float = 300.0
    validation: tuple[str, ...] = ()
    validate_every_s: float = 1800.0
    validation_objects: int = 6
    validation_px: int = 512

    def __post_init__(self) -> None:
        """Check the values."""
        model = find_config(self.model)
        if self.stage not in STAGES:
            raise ConfigError(f"stage must be one of {', '.join(STAGES)}, got {self.stage!r}")
        if self.stage == "focus" and model.focus is None:
            raise ConfigError(
                f"the stage 'focus' needs a model with a focus refiner, got {self.model!r}; "
                f"name it {self.model + '+focus'!r}"
            )
        if (self.stage == "distill") != bool(self.distill.teacher):
            raise ConfigError(
                "the stage 'distill' and a teacher belong together, got the stage "
                f"{self.stage!r} and the teacher {self.distill.teacher!r}"
            )
        if self.stage in ("decoder", "focus") and not self.init:
            raise ConfigError(
                f"the stage {self.stage!r} teaches a part of a trained model, got no weights to "
                "start from; name them with init (--init)"
            )
        if self.clicks.stem_weight and not self.stem_teacher:
            raise ConfigError(
                f"stem_weight {self.clicks.stem_weight} needs the weights of the pretrained stem, "
                "got none; name them with stem_teacher (--stem-teacher)"
            )
        if self.steps < 1 or self.warmup < 0 or self.validation_objects < 1:
            raise ConfigError(
                "steps and validation_objects must be at least 1 and warmup at least 0, got "
                f"{self.steps}, {self.validation_objects} and {self.warmup}"
            )
        for name in ("ema_decay", "hold", "stem_at"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in 0..1, got {getattr(self, name)}")
        if self.schedule not in ("cosine", "linear"):
            raise ConfigError(f"schedule must be 'cosine' or 'linear', got {self.schedule!r}")
