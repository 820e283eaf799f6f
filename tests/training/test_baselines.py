"""The classical methods find a disc, obey their seeds, and work like a model in the session."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from napari_hrsam.errors import MissingExtraError
from napari_hrsam.training import baselines
from napari_hrsam.training.baselines import (
    BASELINES,
    OUTSIDE_RGB,
    Baseline,
    ClassicalSegmenter,
    Scene,
    geodesic,
    grab_cut,
    random_walk,
)
from napari_hrsam.training.datasets import open_samples
from napari_hrsam.training.evaluate import evaluate
from napari_hrsam.training.metrics import mask_iou

METHODS = [random_walk, geodesic, grab_cut]


def disc(shape: tuple[int, int], centre_yx: tuple[int, int], radius: float) -> NDArray[np.bool_]:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows - centre_yx[0]) ** 2 + (columns - centre_yx[1]) ** 2 <= radius**2


def scene(
    is_bright: NDArray[np.bool_], clicks: list[tuple[int, int, bool]], *, grey: bool = True
) -> Scene:
    noise = np.random.default_rng(0).normal(0, 6, (*is_bright.shape, 1 if grey else 3))
    colours = np.where(is_bright[..., None], (190, 80, 60), (60, 90, 70)) + noise
    if grey:
        colours = np.repeat(colours[..., :1], 3, axis=-1)
    points = np.array([click[:2] for click in clicks], float)
    signs = np.array([click[2] for click in clicks], bool)
    return Scene(colours.astype(np.float32), points, signs)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grey", [True, False])
def test_one_click_finds_a_clear_disc(method: baselines.Method, grey: bool) -> None:
    gt = disc((70, 90), (30, 40), 14)
    found = method(scene(gt, [(30, 40, True)], grey=grey))
    assert found.shape == gt.shape
    assert found.dtype == np.float32
    assert 0 <= found.min() <= found.max() <= 1
    assert mask_iou(found > 0.5, gt) > 0.9


@pytest.mark.parametrize("method", METHODS)
def test_a_negative_click_takes_the_neighbour_away(method: baselines.Method) -> None:
    gt, other = disc((70, 90), (35, 30), 12), disc((70, 90), (35, 53), 12)
    both = gt | other
    clicks = [(35, 30, True), (35, 53, False)]
    found = method(scene(both, clicks)) > 0.5
    assert mask_iou(found, gt) > 0.85
    assert not found[35, 53]


def cut_from(place: NDArray[np.bool_], clicks: list[tuple[int, int, bool]]) -> NDArray[np.bool_]:
    """What GrabCut makes of a place that is told apart by colour, with so many clicks."""
    return grab_cut(scene(place, clicks, grey=False), place_weight=0.0) > 0.5


def test_grabcut_keeps_only_pieces_with_a_positive_click() -> None:
    clicked, other = disc((70, 90), (35, 25), 12), disc((70, 90), (35, 60), 12)
    assert mask_iou(cut_from(clicked | other, [(35, 25, True)]), clicked) > 0.9
    both = cut_from(clicked | other, [(35, 25, True), (35, 60, True)])
    assert mask_iou(both, clicked | other) > 0.9


def test_grabcut_fills_holes_that_nobody_clicked_away() -> None:
    hole = disc((70, 90), (35, 45), 5)
    ring = disc((70, 90), (35, 45), 18) & ~hole
    assert cut_from(ring, [(35, 33, True)])[hole].mean() > 0.9
    assert cut_from(ring, [(35, 33, True), (35, 45, False)])[hole].mean() < 0.2


def test_grabcut_takes_clicks_for_certain_where_colour_says_otherwise() -> None:
    gt = disc((70, 90), (35, 45), 18)
    found = grab_cut(scene(gt, [(35, 45, True), (35, 75, True), (30, 50, False)], grey=False))
    assert found[35, 75] > 0.5
    assert found[30, 50] < 0.5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (2, 2), (128, 128), (3, 70)])
@pytest.mark.parametrize("value", [0, 255])
def test_flat_and_thin_scenes_give_an_answer(
    method: baselines.Method, shape: tuple[int, int], value: int
) -> None:
    colours = np.full((*shape, 3), value, np.float32)
    where = np.array([[shape[0] // 2, shape[1] // 2]], float)
    found = method(Scene(colours, where, np.array([True])))
    assert found.shape == shape
    assert np.isfinite(found).all()
    assert found[shape[0] // 2, shape[1] // 2] > 0.5


@pytest.mark.parametrize("method", METHODS)
def test_without_a_positive_click_nothing_is_found(method: baselines.Method) -> None:
    gt = disc((40, 40), (20, 20), 9)
    assert not (method(scene(gt, [(20, 20, False)])) > 0.5).any()


def test_the_newest_click_wins_a_pixel() -> None:
    inside, outside = scene(np.zeros((9, 9), bool), [(4, 4, True), (4, 4, False)]).seeds(1.0)
    assert not inside.any()
    assert outside.sum() == 5


def test_both_walk_solvers_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = scene(disc((50, 60), (20, 20), 9), [(20, 20, True)])
    found = []
    for solver in ("cg_j", baselines._walk_solver()):
        monkeypatch.setattr(baselines, "_walk_solver", lambda solver=solver: solver)
        found.append(random_walk(shown, tolerance=1e-5))
    np.testing.assert_allclose(found[0], found[1], atol=1e-2)


def test_pixels_outside_the_image_are_no_part_of_the_scene() -> None:
    seen: list[Scene] = []

    def method(shown: Scene) -> NDArray[np.float32]:
        seen.append(shown)
        return np.full(shown.shape, 0.75, np.float32)

    image = torch.empty(1, 3, 64, 64)
    image[:] = torch.tensor(OUTSIDE_RGB, dtype=torch.float32)[:, None, None]
    image[:, :, :42, :21] = 40.0
    segmenter = ClassicalSegmenter("test", method)
    logits, _ = segmenter.decode(
        segmenter.encode(image),
        point_coords_xy=torch.tensor([[[9.5, 41.5]]]),
        point_labels=torch.tensor([[1]]),
        mask_logits=None,
    )
    (shown,) = seen
    assert shown.shape == (11, 6)
    assert (shown.colours == 40).all()
    np.testing.assert_allclose(shown.points_yx, [[10.0, 2.0]])
    assert logits.shape == (1, 1, 16, 16)
    assert (logits[0, 0, :11, :6] == 2).all()
    assert (logits[0, 0, 11:] < 0).all()
    assert (logits[0, 0, :, 6:] < 0).all()


def test_the_session_gives_a_baseline_what_it_gives_a_model() -> None:
    """The scene that the method sees is the image, at the level and place of the tile."""
    seen: list[Scene] = []

    def method(shown: Scene) -> NDArray[np.float32]:
        seen.append(shown)
        return disc(shown.shape, (30, 50), 10).astype(np.float32)

    image = np.full((300, 700, 3), 90, np.uint8)
    image[:, 400:] = 200
    with Baseline(name="test", method=method).open_session(image) as session:
        prediction = session.click((120, 200), level=0)
        session.click((101, 30), positive=False)
    assert seen[0].shape == (75, 128)
    assert np.unique(seen[0].colours).tolist() == [90, 200]
    np.testing.assert_allclose(seen[1].points_yx, [[29.625, 49.625], [24.875, 7.125]])
    assert seen[1].positive.tolist() == [True, False]
    rows, columns = np.nonzero(prediction.mask)
    assert rows.mean() + prediction.box.y0 == pytest.approx(30 * 4 + 1.5, abs=1)
    assert columns.mean() + prediction.box.x0 == pytest.approx(50 * 4 + 1.5, abs=1)


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_every_baseline_can_be_evaluated(
    name: str, write_tar: Callable[..., Path], members: Callable[..., dict[str, bytes]]
) -> None:
    path = write_tar("x.tar", members("a"))
    result = evaluate(BASELINES[name](), open_samples([path]), num_clicks=2)
    assert result["model"] == name
    assert result["overall"]["num_objects"] == 2
    assert result["overall"]["noc80"] < 2


def test_grabcut_without_opencv_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtraError, match=r"napari-hrsam\[baselines\]"):
        BASELINES["grabcut"]()
