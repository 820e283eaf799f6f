"""The settings of a training run, and of each of its parts. Needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from napari_hrsam.errors import ConfigError
from napari_hrsam.modeling.configs import OUTLINE_STRIDE, PRECISIONS, Precision, ScanBackend
from napari_hrsam.modeling.models import find_config

StageName = Literal["clicks", "decoder", "focus", "distill", "outline"]
STAGES: tuple[StageName, ...] = ("clicks", "decoder", "focus", "distill", "outline")

MANY_STEPS = 1_000_000
"""More than there is time for."""

OUTLINE_MODEL = "outline"
"""Name of the outline refiner, which is no segmenter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CropSize:
    """One size of crops, and how often it is drawn.

    Attributes
    ----------
    crop_px : int
        Side of a crop, a multiple of 16.
    batch_size : int
        Crops in a batch.
    objects_per_crop : int
        At most this many objects of a crop are trained on.
    share, late_share : float
        How often batches are of this size at the start of the training and at its end, beside the
        other sizes' shares.
    """

    crop_px: int
    batch_size: int
    objects_per_crop: int
    share: float = 1.0
    late_share: float = 1.0

    def __post_init__(self) -> None:
        """Check the values."""
        if self.crop_px % 16 or self.crop_px <= 0:
            raise ConfigError(f"crop_px must be a positive multiple of 16, got {self.crop_px}")
        if self.batch_size < 1 or self.objects_per_crop < 1:
            raise ConfigError(
                "batch_size and objects_per_crop must be at least 1, got "
                f"{self.batch_size} and {self.objects_per_crop}"
            )
        if min(self.share, self.late_share) < 0:
            raise ConfigError(f"shares must be 0 or more, got {self.share} and {self.late_share}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CropConfig:
    """How crops are drawn.

    Attributes
    ----------
    sizes : tuple of CropSize
    span : (float, float)
        Smallest and largest share of the side that the chosen object's longer side takes, drawn
        log-uniformly.
    wide_span : (float, float)
        The same for objects that fill the crop.
    wide_share : float
        Share of the batches of ``wide_span``.
    smallest_px : float
        No object is shown smaller than this, whatever ``span`` says.
    polarity : float
        Share of crops that are inverted.
    grey : float
        Share of colour crops that are made grey.
    second_labels : float
        Share of crops with the second labels, of samples that have them.
    domain_factors : tuple of (str, float)
        Factors on the shares of domains; 1 for those not named.
    cache_mb : float
        Decoded images that are kept.
    """

    sizes: tuple[CropSize, ...] = (
        CropSize(crop_px=256, batch_size=4, objects_per_crop=2, share=0.7, late_share=0.4),
        CropSize(crop_px=512, batch_size=1, objects_per_crop=3, share=0.3, late_share=0.6),
    )
    span: tuple[float, float] = (0.06, 0.5)
    wide_span: tuple[float, float] = (0.35, 0.95)
    wide_share: float = 0.5
    smallest_px: float = 20.0
    polarity: float = 0.15
    grey: float = 0.2
    second_labels: float = 0.3
    domain_factors: tuple[tuple[str, float], ...] = ()
    cache_mb: float = 1000.0

    def __post_init__(self) -> None:
        """Check the values."""
        for span in (self.span, self.wide_span):
            if not 0 < span[0] <= span[1] <= 1:
                raise ConfigError(f"span must be 0 < smallest <= largest <= 1, got {span}")
        if not self.sizes:
            raise ConfigError("expected at least one size of crops, got none")
        if not 0 <= self.wide_share <= 1:
            raise ConfigError(f"wide_share must lie in 0..1, got {self.wide_share}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClickConfig:
    """How sequences of clicks are drawn and what their loss is made of.

    Attributes
    ----------
    max_clicks : int
        Longest simulated sequence.
    click_decay : float, 0..1
        A sequence goes on with this probability after each click (geometric).
    first_share : float, 0..1
        Share of batches whose loss is that of the first prompt; in the others it is that of the
        last of two or more. (The rounds before it run without gradient.)
    box_share : float, 0..1
        Share of sequences that begin with a box in place of a click.
    coarse_weight : float
        Factor on the loss of the coarse mask, which the embedding has to draw by itself.
    candidate_weight : float
        Factor on the loss of the best candidate of a first click.
    iou_weight : float
        Factor on the squared error of the predicted IoU.
    dense_weight : float
        Factor on the loss of the dense head, see `dense_task.dense_loss`.
    prototype_weight : float
        Factor on `dense_task.prototype_loss`.
    stem_weight : float
        Factor at the start on the loss of `dense_task.StemTeacher`; 0 leaves it out.
    stem_until : float
        Share of the training at which that factor has fallen to 0.
    """

    max_clicks: int = 8
    click_decay: float = 0.75
    first_share: float = 0.3
    box_share: float = 0.12
    coarse_weight: float = 0.7
    candidate_weight: float = 0.3
    iou_weight: float = 0.3
    dense_weight: float = 1.0
    prototype_weight: float = 0.0
    stem_weight: float = 0.0
    stem_until: float = 0.5

    def __post_init__(self) -> None:
        """Check the values."""
        if self.max_clicks < 1:
            raise ConfigError(f"max_clicks must be at least 1, got {self.max_clicks}")
        for name in ("click_decay", "first_share", "box_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in 0..1, got {getattr(self, name)}")
        if not 0 < self.stem_until <= 1:
            raise ConfigError(f"stem_until must lie in 0..1 and not be 0, got {self.stem_until}")


@dataclass(frozen=True, kw_only=True, slots=True)
class FocusTaskConfig:
    """How the focus refiner is taught.

    Attributes
    ----------
    refine_decay : float, 0..1
        The refinement is put off by one more click with this probability.
    point_weight : float
        Factor on the point loss; 0 leaves it out.
    dice_weight : float
        Factor on the Dice loss, which the paper does not have; 0 leaves it out.
    """

    refine_decay: float = 0.35
    point_weight: float = 1.0
    dice_weight: float = 0.0

    def __post_init__(self) -> None:
        """Check the values."""
        if not 0 <= self.refine_decay <= 1:
            raise ConfigError(f"refine_decay must lie in 0..1, got {self.refine_decay}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    """How a teacher is used.

    Attributes
    ----------
    teacher : str
        Name or checkpoint for `load_model`; empty for none.
    num_batches : int
        Batches of crops whose embeddings are computed and kept.
    teacher_px : int
        Side at which the teacher sees a crop; 0 for the crop's own. Its embedding is brought to the
        student's grid by averaging.
    """

    teacher: str = ""
    num_batches: int = 200
    teacher_px: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        if self.num_batches < 1:
            raise ConfigError(f"num_batches must be at least 1, got {self.num_batches}")
        if self.teacher_px % 16 or self.teacher_px < 0:
            raise ConfigError(f"teacher_px must be 0 or a multiple of 16, got {self.teacher_px}")


@dataclass(frozen=True, kw_only=True, slots=True)
class OutlineTaskConfig:
    """How the outline refiner is taught.

    Attributes
    ----------
    crop_px : int
        Side of a crop, a multiple of 4.
    batch_size : int
        Crops in a batch.
    min_area_px : int
        Smallest area, at the scale of the crop, of the objects whose outline is trained on.
    drawn_share : float
        Share of crops that are drawn (`draw_regions`), with exact masks.
    polarity, grey : float
        Share of crops that are inverted, and made grey.
    dice_weight : float
        Factor on the Dice loss beside the binary cross-entropy.
    """

    crop_px: int = 128
    batch_size: int = 12
    min_area_px: int = 700
    drawn_share: float = 0.25
    polarity: float = 0.15
    grey: float = 0.2
    dice_weight: float = 0.5

    def __post_init__(self) -> None:
        """Check the values."""
        if self.crop_px < 16 or self.crop_px % OUTLINE_STRIDE:
            raise ConfigError(
                f"crop_px must be a multiple of {OUTLINE_STRIDE} and at least 16, got "
                f"{self.crop_px}"
            )
        if self.batch_size < 1 or self.min_area_px < 1:
            raise ConfigError(
                "batch_size and min_area_px must be at least 1, got "
                f"{self.batch_size} and {self.min_area_px}"
            )
        for name in ("drawn_share", "polarity", "grey"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in 0..1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """A training run; saved as JSON beside what it made.

    Attributes
    ----------
    model : str
        Name in `models.MODELS`; "outline" in the stage "outline", which no other teaches.
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
    stage : {"clicks", "decoder", "focus", "distill", "outline"}
        What is taught: the whole model from clicks; its prompt encoder and decoder; its refiner;
        its image encoder, from a teacher; or the outline refiner.
    distill : DistillConfig
        The teacher of the stage "distill".
    steps : int
        Optimiser steps of the whole schedule.
    minutes : float
        The schedule ends after this time, if steps are left then, and its decay follows the clock;
        counted anew in a run that is resumed. 0 for no limit.
    crops : CropConfig
    clicks : ClickConfig
        Sequences of clicks, and the weights of the losses.
    focus : FocusTaskConfig
        Of the stage "focus".
    outline : OutlineTaskConfig
        Of the stage "outline".
    stem_teacher : str
        Weights of the pretrained stem, as ``scripts/import_efficientnet.py`` writes them; needed
        where ``clicks.stem_weight`` is above 0.
    stem_at : float
        Share of the training after which the pretrained stem learns too; 1 for never.
    stem_factor : float
        Factor on its learning rate.
    learning_rate : float
        Peak of AdamW's learning rate.
    weight_decay : float
        Of AdamW.
    clip_norm : float
        Gradients are scaled down to this norm.
    warmup : int
        Steps of linear warm-up.
    hold : float, 0..1
        Share of the training at full rate, before the decay begins.
    schedule : {"cosine", "linear"}
        How the learning rate falls to zero.
    ema_decay : float
        Of the averaged weights, which are the ones saved for use.
    precision : {"auto", "float32", "bfloat16"}
        bfloat16 runs under autocast; "auto" does where the device computes in it natively, because
        elsewhere it is emulated, several times slower than float32.
    scan : {"auto", "mamba", "torch", "numba", "reference"}
        Backend of the state-space blocks; "numba" trains several times faster on a CPU.
    device : str
        A torch device; on the command line also "auto", a GPU if there is one (the default there).
    seed : int
        Makes a run reproducible.
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
    minutes: float = 0.0
    crops: CropConfig = field(default_factory=CropConfig)
    clicks: ClickConfig = field(default_factory=ClickConfig)
    focus: FocusTaskConfig = field(default_factory=FocusTaskConfig)
    outline: OutlineTaskConfig = field(default_factory=OutlineTaskConfig)
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
        if self.stage not in STAGES:
            raise ConfigError(f"stage must be one of {', '.join(STAGES)}, got {self.stage!r}")
        if (self.stage == "outline") != (self.model == OUTLINE_MODEL):
            raise ConfigError(
                f"the stage 'outline' and the model {OUTLINE_MODEL!r} belong together, got the "
                f"stage {self.stage!r} and the model {self.model!r}"
            )
        has_refiner = self.stage == "outline" or find_config(self.model).focus is not None
        if self.stage == "focus" and not has_refiner:
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
        if min(self.steps, self.validation_objects) < 1 or min(self.warmup, self.minutes) < 0:
            raise ConfigError(
                "steps and validation_objects must be at least 1, warmup and minutes at least 0, "
                f"got {self.steps}, {self.validation_objects}, {self.warmup} and {self.minutes}"
            )
        for name in ("ema_decay", "hold", "stem_at"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in 0..1, got {getattr(self, name)}")
        for name, known in (("schedule", ("cosine", "linear")), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class FineTuneConfig:
    """How a model is fine-tuned on objects of the user's.

    Attributes
    ----------
    minutes : float
        Time for the training; scoring before and after comes on top. 0: as many steps as ``steps``.
    steps : int
        At most so many steps; 0 for as many as there is time for.
    whole : bool
        Whether the image encoder learns too, several times slower. What depends on it, such as
        automatic segmentation, is not taught along.
    learning_rate : float
        Peak.
    ema_decay : float
        Of the averaged weights, which are the ones kept.
    num_scored : int
        At most so many held-out objects are clicked on, before and after.
    num_clicks : int
        On each of them.
    seed : int
        Of the choice of what is held out, and of the training.
    """

    minutes: float = 5.0
    steps: int = 0
    whole: bool = False
    learning_rate: float = 3e-4
    ema_decay: float = 0.99
    num_scored: int = 40
    num_clicks: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        if not 0 <= self.minutes < math.inf or self.steps < 0 or not (self.minutes or self.steps):
            raise ConfigError(
                "expected minutes or steps above 0 for the training, got "
                f"{self.minutes} minutes and {self.steps} steps"
            )
        if min(self.num_scored, self.num_clicks) < 1 or self.seed < 0:
            raise ConfigError(
                "num_scored and num_clicks must be 1 or more and seed 0 or more, got "
                f"{self.num_scored}, {self.num_clicks} and {self.seed}"
            )
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"learning_rate must be above 0, got {self.learning_rate}")


def fine_tune_run(
    config: FineTuneConfig, *, model: str, start: str, data: str, out: str, device: str
) -> TrainConfig:
    """Return the settings of the run: the same task as for the models that are shipped.

    Parameters
    ----------
    config : FineTuneConfig
    model : str
        Name of the network.
    start : str
        Its weights.
    data, out : str
        Folders: of samples, and of the run.
    device : str
    """
    sizes = (
        CropSize(crop_px=256, batch_size=4, objects_per_crop=4),
        CropSize(crop_px=512, batch_size=1, objects_per_crop=6),
    )
    return TrainConfig(
        model=model,
        data=(data,),
        out=out,
        init=(start,),
        stage="clicks" if config.whole else "decoder",
        steps=config.steps or MANY_STEPS,
        minutes=config.minutes,
        # An object of the user's is shown as large as the session shows it, or larger.
        crops=CropConfig(sizes=sizes, span=(0.1, 0.45), wide_share=0.25, polarity=0.0, grey=0.1),
        # Whatever is unlabelled may be an object too: only masks of objects are taught.
        clicks=ClickConfig(dense_weight=0.0),
        learning_rate=config.learning_rate,
        warmup=20,
        hold=0.3,
        ema_decay=config.ema_decay,
        precision="auto",
        device=device,
        seed=config.seed,
        checkpoint_every_s=1e9,
    )
