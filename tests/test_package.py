"""What is installed: light imports, version, entry points, and the content of the wheel."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution, entry_points
from pathlib import Path

import pytest

import napari_hrsam

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def modules_loaded_by(statement: str, depth: int = 1) -> set[str]:
    """Modules that a statement loads in a fresh interpreter, down to some depth of packages."""
    code = (
        f"import sys\n{statement}\n"
        f"print(*{{'.'.join(name.split('.')[:{depth}]) for name in sys.modules}})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    )
    return set(done.stdout.split())


def test_import_loads_neither_torch_nor_napari_nor_qt() -> None:
    loaded = modules_loaded_by("import napari_hrsam")
    assert not loaded & {"torch", "napari", "qtpy", "PySide6", "PyQt6", "numba", "scipy", "skimage"}


@pytest.mark.torch
@pytest.mark.weights
def test_neither_models_nor_clicks_load_the_compiler_of_torch() -> None:
    # With it comes Triton, whose LLVM crashes napari beside the LLVM of Mesa's OpenGL.
    loaded = modules_loaded_by(
        "import numpy, napari_hrsam as h\n"
        "from napari_hrsam.modeling import layouts, models\n"
        "for config in (models.MODELS | models.COMPARISONS).values():\n"
        "    layouts.expected_state(config)\n"
        "for model in ('hrsam-tiny', 'hrsam++-tiny', 'hrsam-tiny+focus'):\n"
        "    session = h.Session(model, numpy.zeros((300, 300, 3), numpy.uint8))\n"
        "    [session.click((150, 150 + n)) for n in range(3)]\n",
        depth=2,
    )
    assert {"napari_hrsam.modeling", "torch"} <= loaded
    assert not loaded & {"torch._dynamo", "torch._inductor", "triton"}


def test_every_panel_module_loads_without_torch() -> None:
    code = (
        "import importlib, pkgutil, napari_hrsam.plugin as p; "
        "names = [m.name for m in pkgutil.walk_packages(p.__path__, 'napari_hrsam.plugin.')]; "
        "[importlib.import_module(name) for name in names]"
    )
    loaded = modules_loaded_by(code)
    assert "napari" in loaded
    assert "torch" not in loaded


def test_command_line_loads_neither_torch_nor_napari_before_a_command_runs() -> None:
    loaded = modules_loaded_by("from napari_hrsam.cli.main import build_parser; build_parser()")
    assert not loaded & {"torch", "napari", "qtpy", "skimage"}


@pytest.mark.parametrize("name", napari_hrsam.__all__)
def test_public_name_exists(name: str) -> None:
    assert getattr(napari_hrsam, name) is not None
    assert name in dir(napari_hrsam)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="napari_hrsam.*no_such_name"):
        getattr(napari_hrsam, "no_such_name")  # noqa: B009  mypy knows the name is not there


def test_version_is_one_and_the_same() -> None:
    version = napari_hrsam.__version__
    assert distribution("napari-hrsam").version == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f'version: "{version}"' in (ROOT / "conda/recipe.yaml").read_text(encoding="utf-8")


def test_changelog_tells_of_this_version() -> None:
    assert f"## {napari_hrsam.__version__} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_entry_points_load() -> None:
    (command,) = entry_points(group="console_scripts", name="napari-hrsam")
    assert callable(command.load())
    (manifest,) = entry_points(group="napari.manifest", name="napari-hrsam")
    assert manifest.value == "napari_hrsam:napari.yaml"


def test_root_manifest_is_the_packaged_one() -> None:
    packaged = ROOT / "src" / "napari_hrsam" / "napari.yaml"
    assert (ROOT / "napari.yaml").read_bytes() == packaged.read_bytes()


def test_constraints_pin_every_requirement() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [
        Requirement(text)
        for text in PROJECT["project"]["dependencies"]
        + [text for name, group in extras.items() if name != "cuda" for text in group]
    ]
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        if name != "napari-hrsam":
            assert name in pinned, f"{name} is not pinned in constraints.txt"
            assert requirement.specifier.contains(pinned[name]), f"{name}: pin {pinned[name]}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel, built from this checkout without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_wheel_holds_manifest_models_and_recording(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert {
        "napari_hrsam/napari.yaml",
        "napari_hrsam/py.typed",
        "napari_hrsam/demo_clicks.json",
        "napari_hrsam/weights/outline.safetensors",
    } <= names
    shipped = {f"napari_hrsam/weights/{path.name}" for path in (ROOT / "weights").iterdir()}
    assert any(name.endswith(".safetensors") for name in shipped)
    assert shipped <= names


def test_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert tops == {"napari_hrsam", f"napari_hrsam-{napari_hrsam.__version__}.dist-info"}


def test_wheel_is_listed_as_a_napari_plugin(wheel: zipfile.ZipFile) -> None:
    info = f"napari_hrsam-{napari_hrsam.__version__}.dist-info"
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert "Classifier: Framework :: napari" in metadata
    assert "License-Expression: BSD-3-Clause" in metadata
    assert "napari_hrsam:napari.yaml" in wheel.read(f"{info}/entry_points.txt").decode()


def test_no_qt_binding_and_no_napari_in_the_base_requirements() -> None:
    base = " ".join(PROJECT["project"]["dependencies"]).lower()
    assert not any(name in base for name in ("napari", "pyside", "pyqt", "xformers", "mamba"))


def test_readme_shows_pictures_that_are_in_the_tree_by_absolute_address() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    addresses = [part.partition(")")[0] for part in text.split("![")[1:]]
    links = [address.partition("](")[2] for address in addresses]
    assert links, "the README shows the panel"
    for link in links:
        assert link.startswith("https://")
        assert (ROOT / "docs" / "images" / link.rpartition("/")[2]).is_file()
