"""A step in replayed pieces computes what a step of `ClickTask` computes.

CUDA graphs cannot be recorded here. `Record` stands in for them: it writes down every operation on
tensors and does the same operations again on the same memory, so that a number that should have
been read from a fixed place, but was fixed when the record was made, shows as a wrong result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from napari_hrsam.modeling.efficientnet import EfficientNetLite0
from napari_hrsam.modeling.models import HRSAM_TINY
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.training.click_task import ClickTask
from napari_hrsam.training.dense_task import StemTeacher
from napari_hrsam.training.graphed import CudaCapture, GraphedTask, own_stream
from napari_hrsam.training.settings import ClickConfig

SIDE = 64


@dataclass
class Batch:
    images: Tensor
    labels: Tensor
    masks: Tensor
    crop_index: Tensor
    weight: Tensor
    max_id: int = 3


def batch(seed: int, device: str = "cpu") -> Batch:
    """Two crops, the objects of each a disc and a bar at places that depend on the seed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    labels = np.zeros((2, SIDE, SIDE), np.int64)
    for crop in labels:
        row, column = rng.integers(15, 40, 2)
        crop[(y - row) ** 2 + (x - column) ** 2 < rng.integers(60, 180)] = 1
        crop[50:58, column : column + 20] = 3
    labels = torch.from_numpy(labels)
    index = torch.tensor([0, 0, 1])
    masks = labels[index] == torch.tensor([1, 3, 1])[:, None, None]
    noise = torch.from_numpy(rng.uniform(0, 60, (2, 3, SIDE, SIDE)).astype(np.float32))
    images = 120.0 * (labels[:, None] > 0) + noise
    weight = torch.tensor([1.0, 0.0 if seed % 2 else 0.5, 1.0])
    parts = [x.to(device) for x in (images, labels, masks, index, weight)]
    return Batch(*parts)


class Record(TorchDispatchMode):
    """Operations on tensors, to do again on the same memory."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__()
        self.operations: list[Callable[[], None]] = []
        self.is_fresh = True
        with self:
            work()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        assert "_local_scalar_dense" not in str(func), "a graph cannot ask for a value"
        out = func(*args, **kwargs)
        given = {x.untyped_storage().data_ptr() for x in tree_flatten((args, kwargs))[0] if _is(x)}
        results = [x for x in tree_flatten(out)[0] if _is(x)]
        new = [x.untyped_storage().data_ptr() not in given for x in results]
        if func._schema.is_mutable or any(new):
            self.operations.append(lambda: _again(func, args, kwargs, results, new))
        return out

    def replay(self) -> None:
        # What was done while recording is the first replay.
        if not self.is_fresh:
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                for operation in self.operations:
                    operation()
        self.is_fresh = False


def _is(x: Any) -> bool:
    return isinstance(x, Tensor)


def _again(func: Any, args: Any, kwargs: Any, results: list[Tensor], new: list[bool]) -> None:
    again = [x for x in tree_flatten(func(*args, **kwargs))[0] if _is(x)]
    for before, now, is_new in zip(results, again, new, strict=True):
        if is_new and before.numel():
            before.detach().copy_(now)


def capture(work: Callable[[], None]) -> Callable[[], None]:
    return Record(work).replay


def network(seed: int = 0) -> tuple[Segmenter, ClickTask]:
    torch.manual_seed(seed)
    encoder = replace(HRSAM_TINY.image_encoder, depth=1, stage_ends=(0,))
    model = Segmenter(replace(HRSAM_TINY, image_encoder=encoder))
    model.set_backends("auto", "torch")
    stem = {f"image_encoder.stem.net.{k}": v for k, v in EfficientNetLite0(32).state_dict().items()}
    config = ClickConfig(
        max_clicks=3, click_decay=0.5, box_share=0.4, prototype_weight=0.4, stem_weight=0.7
    )
    return model.train(), ClickTask(config, StemTeacher(stem, 128))


def learning(*modules: nn.Module) -> list[nn.Parameter]:
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def gradients(model: Segmenter, task: ClickTask) -> Tensor:
    return torch.cat([p.grad.reshape(-1) for p in learning(model, task)])


def expected(model: Segmenter, task: ClickTask, seed: int, done: float) -> Any:
    set_to_zero(model, task)
    out = task(model, batch(seed), np.random.default_rng(seed), done)
    out.loss.backward()
    return out, gradients(model, task)


def set_to_zero(*modules: nn.Module) -> None:
    for parameter in (p for module in modules for p in module.parameters()):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad.zero_()


def check(graphed: GraphedTask, seed: int, done: float, want: Any) -> None:
    out = graphed.step(batch(seed), np.random.default_rng(seed), done)
    loss, grads = want
    torch.testing.assert_close(out.loss, loss.loss.detach(), rtol=1e-5, atol=1e-6)
    assert len(out.ious) == len(loss.ious)
    torch.testing.assert_close(torch.stack(out.ious), torch.stack(loss.ious))
    assert out.parts.keys() == loss.parts.keys()
    for name, value in out.parts.items():
        torch.testing.assert_close(value, loss.parts[name], rtol=1e-5, atol=1e-6)
    found = gradients(graphed.model, graphed.task)
    assert float((found - grads).norm() / grads.norm()) < 1e-4


@pytest.mark.parametrize("captured", [False, True])
def test_pieces_compute_what_click_task_computes(captured: bool) -> None:
    model, task = network()
    graphed = GraphedTask(
        model, task, capture=capture if captured else None, after=1, autocast=False
    )
    num_rounds = set()
    for seed in range(12):
        # The dense and the clicks' parts; in the second half of the time also without the stem's.
        done = 0.1 if seed < 9 else 0.8
        want = expected(model, task, seed, done)
        num_rounds.add(len(want[0].ious))
        set_to_zero(model, task)
        check(graphed, seed, done, want)
        with torch.no_grad():
            # Weights change between the steps, in place.
            for parameter in learning(model, task):
                parameter.add_(0.01 * torch.randn_like(parameter))
    assert num_rounds == {1, 2, 3}
    assert graphed.num_records > 6 if captured else graphed.num_records == 0


def test_encoder_is_recorded_anew_when_the_stem_begins_to_learn() -> None:
    model, task = network()
    graphed = GraphedTask(model, task, capture=capture, after=1, autocast=False)
    stem = list(model.image_encoder.stem.net.parameters())
    for seed in range(8):
        for parameter in stem:
            parameter.requires_grad_(seed >= 4)
        want = expected(model, task, seed, 0.1)
        set_to_zero(model, task)
        check(graphed, seed, 0.1, want)
    assert any(float(p.grad.abs().max()) > 0 for p in stem)


def test_failed_recording_falls_back_to_running(caplog: pytest.LogCaptureFixture) -> None:
    model, task = network()

    def fails(work: Callable[[], None]) -> Callable[[], None]:
        work()  # Gradients of half a step must not stay.
        raise RuntimeError("operation not permitted when stream is capturing")

    graphed = GraphedTask(model, task, capture=fails, after=1, autocast=False)
    for seed in (0, 0, 1):
        set_to_zero(model, task)
        graphed.step(batch(seed), np.random.default_rng(seed), 0.1)
    assert graphed.capture is None
    assert "not permitted" in caplog.text
    want = expected(model, task, 5, 0.1)
    set_to_zero(model, task)
    check(graphed, 5, 0.1, want)


def test_failed_step_is_done_again_from_its_start() -> None:
    model, task = network()
    recorded = []

    def fails(work: Callable[[], None]) -> Callable[[], None]:
        recorded.append(work)
        if len(recorded) < 4:
            return capture(work)
        work()  # By now there are gradients.
        raise RuntimeError("no")

    graphed = GraphedTask(model, task, capture=fails, after=1, autocast=False)
    want = expected(model, task, 3, 0.1)
    for _ in range(2):
        set_to_zero(model, task)
        check(graphed, 3, 0.1, want)
    assert len(recorded) == 4


def test_out_of_memory_is_not_taken_for_a_failed_recording() -> None:
    model, task = network()

    def fails(_: Callable[[], None]) -> Callable[[], None]:
        raise torch.OutOfMemoryError

    graphed = GraphedTask(model, task, capture=fails, after=1, autocast=False)
    set_to_zero(model, task)
    graphed.step(batch(0), np.random.default_rng(0), 0.1)
    with pytest.raises(torch.OutOfMemoryError):
        graphed.step(batch(0), np.random.default_rng(0), 0.1)


@pytest.mark.gpu
def test_cuda_graphs_compute_what_click_task_computes() -> None:
    device = torch.device("cuda")
    model, task = network()
    model, task = model.to(device), task.to(device)
    model.set_backends("auto", "auto")
    with own_stream(device):
        graphed = GraphedTask(model, task, capture=CudaCapture(), after=1, autocast=False)
        for seed in range(14):
            set_to_zero(model, task)
            out = task(model, batch(seed, "cuda"), np.random.default_rng(seed), 0.1)
            out.loss.backward()
            grads = gradients(model, task)
            set_to_zero(model, task)
            found = graphed.step(batch(seed, "cuda"), np.random.default_rng(seed), 0.1)
            torch.testing.assert_close(found.loss, out.loss.detach(), rtol=1e-3, atol=1e-4)
            off = (gradients(model, task) - grads).norm() / grads.norm()
            assert float(off) < 1e-2
        assert graphed.capture is not None
        assert graphed.num_records > 6
