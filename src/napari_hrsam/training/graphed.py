"""The loss of a batch and its gradients as CUDA graphs: a step then costs the host next to nothing.

A step of `ClickTask` launches some 5000 kernels, and launching them takes longer than running
them. Here the same step is cut into pieces that work on tensors at fixed places: the first uses of
a piece run it as it is, the next one records it, and from then on the record is replayed. Random
numbers are drawn between the pieces, into fixed places too.

Pieces with other numbers of clicks are other records: a padded click would be one more token,
which the decoder's attention sees. Records share one pool of memory. What must outlive a piece lies
outside of it, except for the encoder's activations, which are kept alive between its two pieces.

Shape letters: B crops, N objects, S side of a crop, P clicks.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from napari_hrsam.modeling.segmenter import ImageFeatures, Segmenter
from napari_hrsam.training.click_rounds import (
    LOSS_STRIDE,
    MASK_STRIDE,
    ClickDraws,
    PriorDraws,
    boxes_around,
    draw_distortion,
    draw_length,
    fed_back,
    objects_loss,
    per_object,
    place_clicks,
    pooled,
    resized_to,
    weighted_mean,
)
from napari_hrsam.training.click_task import ClickTask, Crops, TaskLoss
from napari_hrsam.training.dense_targets import dense_targets
from napari_hrsam.training.dense_task import dense_loss, prototype_loss
from napari_hrsam.training.losses import batch_iou
from napari_hrsam.training.settings import ClickConfig

_log = logging.getLogger(__name__)

Work = Callable[[], None]
Capture = Callable[[Work], Work]
"""Records what a function does to fixed tensors, and gives a function that does it again. What the
recorded call itself did does not count; only replays do."""


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Run CUDA work on a stream of its own, which recording needs; nothing elsewhere."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


class CudaCapture:
    """Record CUDA graphs on the stream that is current now, in one pool of memory."""

    def __init__(self) -> None:
        self.stream = torch.cuda.current_stream()
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Work) -> Work:
        """Record; nothing runs before the first replay."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            work()
        replay: Work = graph.replay
        return replay


class _CaptureError(Exception):
    """A piece could not be recorded."""


class GraphedTask:
    """`ClickTask` with its backward pass, in replayed pieces.

    Parameters
    ----------
    model : Segmenter
        In the mode in which it learns. Its parameters must stay where they are, and their gradients
        too: set these to zero in place, never to None.
    task : ClickTask
    capture : Capture, optional
        `CudaCapture`, made inside `own_stream`; without it every piece runs as it is.
    after : int
        Uses of a piece before it is recorded, at least 1: they choose kernels and compile some.
    autocast : bool
        Compute in bfloat16 where autocast does.
    """

    def __init__(
        self,
        model: Segmenter,
        task: ClickTask,
        *,
        capture: Capture | None = None,
        after: int = 2,
        autocast: bool = True,
    ) -> None:
        self.model, self.task, self.autocast = model, task, autocast
        self.capture, self.after = capture, max(1, after)
        self._shapes: dict[Hashable, _FixedShape] = {}

    @property
    def num_records(self) -> int:
        """Pieces recorded so far."""
        return sum(len(shape.replays) for shape in self._shapes.values())

    def clear(self) -> None:
        """Forget all records and give their memory back."""
        self._shapes.clear()

    def step(self, batch: Crops, rng: np.random.Generator, done: float) -> TaskLoss:
        """Add the gradients of a batch to those of the parameters.

        Parameters
        ----------
        batch, rng, done
            As `ClickTask.forward` takes them; the same numbers are drawn.

        Returns
        -------
        TaskLoss
            Without graph.
        """
        key = (batch.images.shape, batch.masks.shape, batch.max_id)
        shape = self._shapes.get(key)
        if shape is None:
            shape = self._shapes[key] = _FixedShape(self, batch)
        before = rng.bit_generator.state
        try:
            return shape.step(batch, rng, done)
        except _CaptureError as error:
            _log.warning("CUDA graphs are off, every step launches its kernels: %s", error)
            self.capture = None
            self.clear()
            modules = (self.model, self.task)
            grads = [p.grad for m in modules for p in m.parameters() if p.grad is not None]
            torch._foreach_zero_(grads)
            rng.bit_generator.state = before
            return self.step(batch, rng, done)


def gradient_errors(graphed: GraphedTask, batch: Crops, seeds: Iterable[int]) -> list[float]:
    """Compare the pieces with `ClickTask` itself; waits for the device.

    Parameters
    ----------
    graphed : GraphedTask
        Without autocast.
    batch : Crops
    seeds : iterable of int
        Of the clicks.

    Returns
    -------
    list of float
        Per seed, the norm of the difference of all gradients, relative to their norm.
    """
    modules = (graphed.model, graphed.task)
    learning = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.grad = torch.zeros_like(parameter)
    grads = [p.grad for p in learning if p.grad is not None]
    errors = []
    for seed in seeds:
        both = []
        for is_graphed in (False, True):
            torch._foreach_zero_(grads)
            rng = np.random.default_rng(seed)
            if is_graphed:
                graphed.step(batch, rng, 0.1)
            else:
                graphed.task(graphed.model, batch, rng, 0.1).loss.backward()
            both.append(torch.cat([grad.reshape(-1) for grad in grads]))
        errors.append(float((both[1] - both[0]).norm() / both[0].norm()))
    return errors


class _FixedShape:
    """The pieces for batches of one shape, and the tensors between them."""

    def __init__(self, owner: GraphedTask, batch: Crops) -> None:
        self.owner, self.model, self.task = owner, owner.model, owner.task
        self.config: ClickConfig = owner.task.config
        self.replays: dict[Hashable, Work] = {}
        self.uses: Counter[Hashable] = Counter()
        self.inputs = [batch.images, batch.labels, batch.masks, batch.crop_index, batch.weight]
        self.inputs = [x.clone() for x in self.inputs]
        self.images, self.labels, self.masks, self.crop_index, self.weight = self.inputs
        self.max_id = batch.max_id
        num, height, width = self.masks.shape
        most, device = self.config.max_clicks, self.masks.device
        half, quarter = (
            (num, height // stride, width // stride) for stride in (LOSS_STRIDE, MASK_STRIDE)
        )
        zeros = _Zeros(device)
        self.gt, self.truth = zeros(*half).bool(), (zeros(*half).long(), zeros(*quarter).long())
        self.coords, self.signs = zeros(num, most, 2), zeros(num, most).long()
        self.boxes, self.box_noise = zeros(num, 4), zeros(num, 4)
        self.prior = zeros(num, 1, *quarter[1:])
        self.click_draws = ClickDraws(zeros(num), zeros(*half), zeros(num, 2))
        self.spread, self.noise = zeros(num * most), zeros(*self.prior.shape)
        self.scale, self.level, self.stem_weight = zeros(), zeros(), zeros()
        self.ious = zeros(most)
        self.parts = {name: zeros() for name in ("clicks", "dense", "prototype", "stem")}
        # Filled by the encoder; their gradients are what its backward pass starts from.
        self.leaves: dict[str, Tensor] = {}
        self.made: list[Tensor] = []
        self.generator = torch.Generator(device)
        self.learns = self._learning()

    def step(self, batch: Crops, rng: np.random.Generator, done: float) -> TaskLoss:
        sources = [batch.images, batch.labels, batch.masks, batch.crop_index, batch.weight]
        torch._foreach_copy_(self.inputs, sources)
        if self.learns != (learns := self._learning()):
            # Another backward pass of the encoder; the other pieces do not see it.
            self.learns = learns
            for key in ("encode", "encode backward"):
                self.replays.pop(key, None)
                self.uses.pop(key, None)
            self.made = []
        self._call("encode", self._encode)
        num_rounds = self._rounds(rng)
        parts = {"clicks": 1.0}
        if self.model.dense_head is not None and self.config.dense_weight:
            is_fine = rng.random() < 0.5
            self._call(("dense", is_fine), lambda: self._dense(is_fine=is_fine))
            parts["dense"] = self.config.dense_weight
        if self.config.prototype_weight:
            self._call("prototype", self._prototype)
            parts["prototype"] = self.config.prototype_weight
        weight = self.config.stem_weight * max(0.0, 1 - done / self.config.stem_until)
        if self.task.teacher is not None and weight:
            self.stem_weight.fill_(weight)
            self._call("stem", self._stem)
            parts["stem"] = weight
        self._call("encode backward", self._encode_backward)
        if "encode" not in self.replays:
            self.made = []
        found = {name: self.parts[name].clone() for name in parts}
        loss = torch.stack([w * found[name] for name, w in parts.items()]).sum()
        return TaskLoss(loss, found, list(self.ious.clone()[:num_rounds]))

    def _learning(self) -> tuple[bool, ...]:
        return tuple(p.requires_grad for p in self.model.image_encoder.parameters())

    def _call(self, key: Hashable, work: Work) -> None:
        """Run a piece, or replay it."""
        capture = self.owner.capture
        if capture is None:
            work()
            return
        replay = self.replays.get(key)
        if replay is None:
            self.uses[key] += 1
            if self.uses[key] <= self.owner.after:
                work()
                return
            try:
                replay = capture(work)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise _CaptureError(f"{key}: {error}") from error
            self.replays[key] = replay
        replay()

    def _cast(self) -> torch.autocast:
        # A copy of a weight that one record made must not serve in another.
        return torch.autocast(
            self.masks.device.type,
            torch.bfloat16,
            enabled=self.owner.autocast,
            cache_enabled=False,
        )

    def _encode(self) -> None:
        with self._cast():
            features = self.model.encode(self.images)
        maps = {name: x for name, x in features.items() if x is not None}
        self.made = list(maps.values())
        with torch.no_grad():
            for name, x in maps.items():
                if name not in self.leaves:
                    self.leaves[name] = torch.empty_like(x).requires_grad_()
                    self.leaves[name].grad = torch.empty_like(x)
                self.leaves[name].copy_(x)
                self._grad(name).zero_()

    def _grad(self, name: str) -> Tensor:
        grad = self.leaves[name].grad
        assert grad is not None
        return grad

    def _features(self) -> ImageFeatures:
        return ImageFeatures(**self.leaves)

    def _encode_backward(self) -> None:
        # Kept, because a replay needs the activations of the encoder at their places.
        grads = [self._grad(name) for name in self.leaves]
        torch.autograd.backward(self.made, grads, retain_graph=True)

    def _rounds(self, rng: np.random.Generator) -> int:
        """Click, add the gradients of the last round; the number of rounds."""
        # In the order in which `ClickRounds` draws.
        self.generator.manual_seed(int(rng.integers(2**62)))
        num_rounds = draw_length(self.config, rng)
        has_box = rng.random() < self.config.box_share
        if has_box:
            self.box_noise.normal_(generator=self.generator)
        else:
            self._draw_click()
        self._call(("start", has_box), lambda: self._start(has_box=has_box))
        for index in range(num_rounds):
            is_last = index + 1 == num_rounds
            num_clicks = index if has_box else index + 1
            has_prior = index > 0 and rng.random() >= 0.05
            if has_prior:
                self._spread(num_clicks).uniform_(generator=self.generator)
                scale, level = draw_distortion(rng)
                self.scale.fill_(scale)
                self.level.fill_(level)
                self.noise.normal_(generator=self.generator)
            if not is_last:
                self._draw_click()
            key = (index, has_box, has_prior)
            work = self._last if is_last else self._round
            self._call((is_last, key), partial(work, *key))
        return num_rounds

    def _draw_click(self) -> None:
        draws = self.click_draws
        for x in (draws.kind, draws.place, draws.jitter):
            x.uniform_(generator=self.generator)

    def _spread(self, num_clicks: int) -> Tensor:
        num = len(self.masks)
        return self.spread[: num * num_clicks].view(num, num_clicks)

    @torch.no_grad()
    def _start(self, *, has_box: bool) -> None:
        self.gt.copy_(pooled(self.masks, LOSS_STRIDE))
        self.truth[0].copy_(self.gt)
        self.truth[1].copy_(pooled(self.gt, MASK_STRIDE // LOSS_STRIDE))
        if has_box:
            self.boxes.copy_(boxes_around(self.gt, self.box_noise))
        else:
            self._click(torch.zeros_like(self.gt), 0)

    def _click(self, predicted: Tensor, place: int) -> None:
        coords_xy, signs = place_clicks(predicted, self.gt, self.click_draws)
        self.coords[:, place].copy_(coords_xy)
        self.signs[:, place].copy_(signs)

    @torch.no_grad()
    def _round(self, index: int, has_box: bool, has_prior: bool) -> None:
        _, resized = self._decode(index, has_box=has_box, has_prior=has_prior)
        self._click(resized[:, 0] > 0, index if has_box else index + 1)

    def _last(self, index: int, has_box: bool, has_prior: bool) -> None:
        with self._cast():
            loss, _ = self._decode(index, has_box=has_box, has_prior=has_prior)
        loss.backward()
        self.parts["clicks"].copy_(loss.detach())

    def _decode(self, index: int, *, has_box: bool, has_prior: bool) -> tuple[Tensor, Tensor]:
        """Decode what a round knows: its loss, and the logits at the size of the labels."""
        num_clicks = index if has_box else index + 1
        coords, signs = self.coords[:, :num_clicks], self.signs[:, :num_clicks]
        prior = None
        if has_prior:
            draws = PriorDraws(self._spread(num_clicks), self.noise, self.scale, self.level)
            prior = fed_back(self.prior, coords, signs, draws)
        with self._cast():
            decoded = self.model.decode_all(
                per_object(self._features(), self.crop_index),
                point_coords_xy=coords if num_clicks else None,
                point_labels=signs if num_clicks else None,
                boxes_xyxy=self.boxes if has_box else None,
                mask_logits=prior,
            )
            resized = resized_to(decoded.masks[:, :1], self.gt)
            loss = torch.zeros(())
            if torch.is_grad_enabled():
                each = objects_loss(self.config, decoded, resized, self.truth, first=index == 0)
                loss = weighted_mean(each, self.weight)
        with torch.no_grad():
            self.prior.copy_(decoded.masks[:, :1])
            iou = weighted_mean(batch_iou(resized, self.truth[0]), self.weight)
            self.ious[index].copy_(iou)
        return loss, resized

    def _dense(self, *, is_fine: bool) -> None:
        head = self.model.dense_head
        assert isinstance(head, nn.Module)
        features = self._features()
        fine = (features.stride8, features.stride4) if is_fine else ()
        with self._cast():
            targets = dense_targets(self.labels, max_id=self.max_id)
            loss = dense_loss(head(features.embedding, *fine), targets)
        (self.config.dense_weight * loss).backward()
        self.parts["dense"].copy_(loss.detach())

    def _prototype(self) -> None:
        with self._cast():
            loss = prototype_loss(self.leaves["embedding"], self.labels)
        (self.config.prototype_weight * loss).backward()
        self.parts["prototype"].copy_(loss.detach())

    def _stem(self) -> None:
        assert self.task.teacher is not None
        with self._cast():
            normalized = self.model.normalize(self.images)
            loss = self.task.teacher(normalized, self.leaves["embedding"])
        (self.stem_weight * loss).backward()
        self.parts["stem"].copy_(loss.detach())


class _Zeros:
    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, *shape: int) -> Tensor:
        return torch.zeros(shape, device=self.device)
