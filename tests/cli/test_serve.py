"""``napari-hrsam serve`` as a process, and what it refuses."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import trustme

from napari_hrsam.cli.main import main
from napari_hrsam.engine.predictor import Predictor
from napari_hrsam.engine.remote_encoder import RemoteEncoder
from napari_hrsam.geometry import Tile
from napari_hrsam.modeling.checkpoints import load_model


@contextmanager
def serving(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the command; gives the process and the URL that it prints."""
    command = [sys.executable, "-m", "napari_hrsam.cli", "serve", "--port", "0", *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert process.stderr is not None
            assert url, process.stderr.read()
            yield process, url
        finally:
            process.kill()


def test_server_encodes_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    token_file = tmp_path / "made" / "token"
    with serving("--token-file", str(token_file), "--device", "cpu") as (process, url):
        token = token_file.read_text().strip()
        assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
        remote = RemoteEncoder(url, token)
        assert remote.about()["model"] == "hrsam-tiny"
        predictor = Predictor(load_model("hrsam-tiny", device="cpu"))
        side = predictor.tile_px
        pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
        args = (Tile(0, 0, 0, side), lambda: pixels, predictor.fingerprint, predictor.map_shapes)
        assert remote.encode(*args) is not None
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert f"NAPARI_HRSAM_SERVER={url}" in said
    assert f"NAPARI_HRSAM_TOKEN={token}" in said


def test_https_with_a_certificate_of_ones_own(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    files = ["--certificate", str(tmp_path / "cert.pem"), "--key", str(tmp_path / "key.pem")]
    with serving("--token-file", str(tmp_path / "token"), *files) as (_, url):
        assert url.startswith("https://127.0.0.1:")
        token = (tmp_path / "token").read_text().strip()
        known = RemoteEncoder(url, token, verify=str(tmp_path / "ca.pem"))
        assert known.about()["model"] == "hrsam-tiny"
        with pytest.raises(OSError, match="certificate"):
            RemoteEncoder(url, token).about()


def test_token_is_kept(tmp_path: Path) -> None:
    from napari_hrsam.cli.serve import _token

    token = _token(tmp_path / "token")
    assert len(token) >= 16
    assert _token(tmp_path / "token") == token


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "expected --certificate and --key to answer other machines"),  # noqa: S104
        (["--certificate", "a.pem"], "expected --certificate and --key together"),
        (["--certificate", "a.pem", "--key", "b.pem"], "there is none at a.pem"),
        (["--token-file", "short"], "expected 16 letters and digits or more as a token in short"),
        (["--image", "none.zarr"], "none.zarr"),
        (["--model", "no-model"], "no-model"),
    ],
)
def test_what_cannot_be_served_is_told(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short").write_text("abc")
    if "--token-file" not in options:
        options = [*options, "--token-file", "token"]
    assert main(["serve", *options]) == 1
    assert message in capsys.readouterr().err
