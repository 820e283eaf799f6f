"""Parity with the reference implementation, fixture folder by fixture folder.

The folders are those of tests/golden, or of NAPARI_HRSAM_PARITY_DIR when it is set; every case of
every folder runs. `conftest.py` prints the largest differences at the end.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases_ba_sam import ba_case_names, check_ba_attention, check_ba_tiny_vit
from cases_decoder import check_neck_head, check_sam_decoder
from cases_encoder import BACKENDS, check_encoder, check_index_lists
from cases_focus import check_focus_units, check_refiner
from cases_sam_encoder import RUNS, SAM_RUNS, check_sam, check_tiny_vit
from cases_session import check_session, check_session_clicks
from cases_training import (
    DISTANCE_TOLERANCE,
    LOSS_TOLERANCE,
    check_click_simulator,
    check_losses_metrics,
)
from parity_folders import (
    TESTED_KINDS,
    ErrorTable,
    ParityFolder,
    find_folders,
    folder_kind,
    parity_root,
)

HAS_NUMBA = find_spec("numba") is not None


def _check_clicks(folder: ParityFolder, table: ErrorTable) -> None:
    error = check_click_simulator(folder.path)
    table.note(folder, "distance maps", error, DISTANCE_TOLERANCE)


def _check_losses(folder: ParityFolder, table: ErrorTable) -> None:
    error = check_losses_metrics(folder.path)
    table.note(folder, "losses and metrics", error, LOSS_TOLERANCE)


def _param(check: Any, folder: ParityFolder, *parts: str, args: tuple[Any, ...] = ()) -> Any:
    return pytest.param(check, (folder, *args), id="-".join((folder.name, *parts)))


def _skipped(name: str, reason: str) -> Any:
    return pytest.param(None, (), id=name, marks=pytest.mark.skip(reason=reason))


def _backends(*, has_scan: bool) -> list[Any]:
    """Backends that differ for the model and can run here."""
    chosen = [b for b in BACKENDS if has_scan or b.scan in ("auto", "torch")]
    return [b for b in chosen if b.scan != "numba" or HAS_NUMBA]


def _sam_params(folder: ParityFolder) -> list[Any]:
    """Every case with every kernel, with and without gradients."""
    check, names, runs = {
        "sam_tiny": (check_sam, lambda: folder.case_names, SAM_RUNS),
        "mobile_sam_tinyvit": (check_tiny_vit, lambda: folder.case_names, RUNS),
        "ba_sam_attention": (check_ba_attention, lambda: ba_case_names(folder), RUNS),
        "ba_sam_tinyvit_attention": (check_ba_tiny_vit, lambda: ["train", "eval"], RUNS),
    }[folder.kind]

    def run(folder: ParityFolder, case: str, how: Any, table: ErrorTable) -> None:
        check(folder, case, table, how)

    return [_param(run, folder, c, r.name, args=(c, r)) for c in names() for r in runs]


def _encoder_params(folder: ParityFolder) -> list[Any]:
    has_scan = not folder.kind.startswith("flash_swin")
    params = [
        _param(_run_encoder, folder, case, b.name, args=(case, b))
        for case in folder.case_names
        for b in _backends(has_scan=has_scan)
    ]
    if not has_scan:
        params += [
            _param(_run_indices, folder, case, "indices", args=(case,))
            for case in folder.case_names
        ]
    return params


def _session_params(folder: ParityFolder) -> list[Any]:
    runs = [b for b in _backends(has_scan=True) if not b.grad]
    return [
        *(_param(_run_session, folder, b.name, args=(b,)) for b in runs),
        _param(check_session_clicks, folder, "clicks"),
    ]


def _folder_params(folder: ParityFolder) -> list[Any]:
    match folder.kind:
        case (
            "hrsam_vit"
            | "hrsam_plusplus_vit"
            | "flash_swin_kv_only"
            | "flash_swin_kv_only_flexible"
        ):
            params = _encoder_params(folder)
        case "sam_neck_head":
            params = [_param(_run_neck, folder, c, args=(c,)) for c in folder.case_names]
        case "sam_tiny":
            params = [_param(_run_sam, folder, c, "decoder", args=(c,)) for c in folder.case_names]
            params += _sam_params(folder)
        case "mobile_sam_tinyvit" | "ba_sam_attention" | "ba_sam_tinyvit_attention":
            params = _sam_params(folder)
        case "e2e_session_hrsam" | "e2e_session_hrsam_plusplus":
            params = _session_params(folder)
        case "focsam_refiner":
            params = [
                _param(_run_refiner, folder, c, "grad" if grad else "no_grad", args=(c, grad))
                for c in folder.case_names
                for grad in (False, True)
            ]
        case _:
            whole = {
                "focsam_units": check_focus_units,
                "click_simulator": _check_clicks,
                "losses_metrics": _check_losses,
            }
            params = [_param(whole[folder.kind], folder)]
    return params


def _run_encoder(folder: ParityFolder, case: str, backends: Any, table: ErrorTable) -> None:
    check_encoder(folder, case, table, backends)


def _run_indices(folder: ParityFolder, case: str, table: ErrorTable) -> None:
    check_index_lists(folder, case, table)


def _run_neck(folder: ParityFolder, case: str, table: ErrorTable) -> None:
    check_neck_head(folder, case, table)


def _run_sam(folder: ParityFolder, case: str, table: ErrorTable) -> None:
    check_sam_decoder(folder, case, table)


def _run_refiner(folder: ParityFolder, case: str, grad: bool, table: ErrorTable) -> None:
    check_refiner(folder, case, table, grad=grad)


def _run_session(folder: ParityFolder, backends: Any, table: ErrorTable) -> None:
    check_session(folder, table, backends)


def _all_params() -> list[Any]:
    root = parity_root()
    folders, unknown = find_folders(root)
    params = [param for folder in folders for param in _folder_params(folder)]
    params += [pytest.param(_fail_unknown, (path,), id=path.name) for path in unknown]
    there = {folder.kind for folder in folders}
    for kind in TESTED_KINDS:
        if kind not in there:
            params.append(_skipped(kind, f"no such folder in {root}"))
    if not HAS_NUMBA:
        params.append(_skipped("scan-numba", "numba is not installed"))
    return params


def _fail_unknown(path: Path, **_table: ErrorTable) -> None:
    pytest.fail(
        f"expected a folder with config.json and io.npz of one of the kinds "
        f"{', '.join(TESTED_KINDS)}, got {path}; rename it or remove it"
    )


@pytest.mark.parametrize(("check", "arguments"), _all_params())
def test_parity(check: Any, arguments: tuple[Any, ...], parity_errors: ErrorTable) -> None:
    check(*arguments, table=parity_errors)


@pytest.mark.parametrize(
    ("name", "model", "kind"),
    [
        ("hrsam_vit_2", "hrsam_vit", "hrsam_vit"),
        ("anything", "hrsam_plusplus_vit", "hrsam_plusplus_vit"),
        ("flash_swin_kv_only_flexible_b", "", "flash_swin_kv_only_flexible"),
        ("e2e_session_hrsam_plusplus_7", "HRSAM++", "e2e_session_hrsam_plusplus"),
        ("e2e_session_hrsam_b", "HRSAM", "e2e_session_hrsam"),
        ("focsam_refiner_odd_window", "FocusRefiner", "focsam_refiner"),
        ("ba_sam_tinyvit_attention", "BA-SAM TinyViT window attention", "ba_sam_tinyvit_attention"),
        ("sam_tiny_rect", "SAM", "sam_tiny"),
        ("something_else", "another network", None),
    ],
)
def test_parity_folder_kind_is_told_by_model_or_name(
    tmp_path: Path, name: str, model: str, kind: str | None
) -> None:
    path = tmp_path / name
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model": model}))
    np.savez(path / "io.npz")
    assert folder_kind(path) == kind


def test_parity_folder_without_files_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "hrsam_vit").mkdir()
    (tmp_path / ".cache").mkdir()
    assert find_folders(tmp_path) == ([], [tmp_path / "hrsam_vit"])
