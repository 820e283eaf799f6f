"""The benchmark of the dense head in miniature: a generated image, random weights."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from napari_hrsam.modeling.models import MODELS
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.training.datasets import open_samples

ROOT = Path(__file__).parents[2]
# Discs of 20 px: at 1/7 of a tile of 128 px the image is seen a little smaller than it is.
CENTRES = [(15, 20), (50, 18), (30, 60), (75, 70), (80, 130)]
SHAPE = (96, 150)


def discs() -> np.ndarray:
    rows, columns = np.ogrid[: SHAPE[0], : SHAPE[1]]
    labels = np.zeros(SHAPE, np.uint16)
    for number, (y, x) in enumerate(CENTRES, 1):
        labels[(rows - y) ** 2 + (columns - x) ** 2 <= 10**2] = number
    return labels


def shard(path: Path, source: str) -> Path:
    labels = discs()
    pixels = np.where(labels > 0, 200, 40).astype(np.uint8)
    with tarfile.open(path, "w") as tar:
        for name, value in (("img", pixels), ("lbl", labels), ("json", None)):
            buffer = io.BytesIO()
            if value is None:
                buffer.write(json.dumps({"domain": source, "source": source}).encode())
            else:
                Image.fromarray(value).save(buffer, "PNG")
            ending = "json" if value is None else f"{name}.png"
            info = tarfile.TarInfo(f"{source}.{ending}")
            info.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(info, buffer)
    return path


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    # Their names are too common to stay.
    before = {name: sys.modules.pop(name, None) for name in ("dense_head", "measure")}
    import dense_head

    yield dense_head
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


@pytest.fixture
def samples(tmp_path):
    names = ("discs", "mars-craters")
    return open_samples([shard(tmp_path / f"{name}.tar", name) for name in names])


def test_a_view_shows_the_median_object_at_its_size_and_the_rest_is_mean_colour(
    bench, samples
) -> None:
    (view,) = bench.views(samples[0], 128)
    height, width = view.labels.shape
    assert (height, width) == (round(96 * 128 / 7 / 21), 128)
    assert np.bincount(view.labels.ravel())[1:].tolist() == pytest.approx([240] * 5, rel=0.1)
    assert (view.tile[height:] == bench.MEAN_RGB).all()
    grey = view.pixels[..., 0]
    assert grey[view.labels > 0].mean() > 4 * grey[view.labels == 0].mean()


def test_a_large_image_is_cut_into_tiles_from_the_middle_on(bench, samples) -> None:
    seen = list(bench.views(samples[0], 32))
    assert [view.labels.shape for view in seen] == [(21, 32)]
    bench.MAX_ENLARGEMENT, bench.SPAN = 1.0, 1.0
    seen = list(bench.views(samples[0], 32))
    assert len(seen) == 3 * 4
    assert all(view.labels.shape == (32, 32) for view in seen)
    labels = discs()
    assert (seen[0].labels == labels[32:64, 43:75]).all() or (
        seen[0].labels == labels[32:64, 75:107]
    ).all()


def test_perfect_maps_and_a_telling_embedding_pass_the_gate(bench, samples) -> None:
    view = next(bench.views(samples[0], 512))
    truth = np.zeros((512, 512), np.int32)
    truth[: view.labels.shape[0]] = view.labels
    half = truth[::2, ::2] > 0
    inner = np.stack([half, ~half, half]).astype(np.float32)
    inside = truth.reshape(32, 16, 32, 16).transpose(0, 2, 1, 3).reshape(32, 32, -1) > 0
    embedding = np.stack([np.ones((32, 32)), inside.mean(axis=2) > 0.5]).astype(np.float32)
    item = bench.Encoded(view=view, embedding=embedding, maps={"both": inner})
    found = bench.enlarged(bench.from_maps(item, "both"), view.labels.shape)
    assert bench.f1_at(found, view.labels).f1 == 1
    row = bench.domain_row([item], ("both",), found_too=False)
    assert (row["both"], row["objects"], row["otsu"]) == (1, 5, 1)
    assert row["auc_centred"] > 0.95
    assert row["auc"] > 0.95
    # A draw with the classical method is no pass.
    assert row["f1_passes"] is False


def test_scores_of_random_weights_are_told_with_partial_annotation_apart(
    bench, samples, capsys
) -> None:
    torch.manual_seed(0)
    model = Segmenter(MODELS["hrsam-tiny"]).eval()
    rows = bench.scores(model, samples, max_images=1, max_tiles=1)
    assert [row["domain"] for row in rows] == ["discs", "mean", "mars-craters"]
    assert all(0 <= row[name] <= 1 for row in rows for name in ("otsu", "both", "embedding"))
    assert rows[0]["otsu"] > 0.8
    assert rows[1]["f1_passes"] is False
    assert "small craters" in rows[2]["note"]
    assert "not everything is annotated" in capsys.readouterr().out


def test_the_search_finds_the_best_of_each_setting(bench) -> None:
    grid = {"a": (1.0, 2.0, 3.0), "b": (0.0, 5.0)}
    found = bench.best_settings(grid, lambda s: -abs(s["a"] - 1) - s["b"])
    assert found == {"a": 1.0, "b": 0.0, "f1": 0.0}


def test_tuning_tells_settings_of_both_methods(bench, samples, monkeypatch, capsys) -> None:
    for name in ("MAP_GRID", "OTSU_GRID"):
        monkeypatch.setattr(bench, name, {"sigma_px": (1.0,)})
    torch.manual_seed(0)
    rows = bench.tune(Segmenter(MODELS["hrsam-tiny"]).eval(), samples, 1)
    assert [row["method"] for row in rows] == ["maps", "otsu"]
    assert "otsu" in capsys.readouterr().out
