from __future__ import annotations

import inspect

import pytest

from napari_hrsam import errors
from napari_hrsam._optional import require
from napari_hrsam.errors import HRSAMError, MissingExtraError

LEAVES = {
    "ShapeError": ValueError,
    "ImageError": ValueError,
    "ImageReadError": OSError,
    "PromptError": ValueError,
    "ConfigError": ValueError,
    "CheckpointError": ValueError,
    "WeightsNotFoundError": FileNotFoundError,
    "DownloadError": OSError,
    "MissingExtraError": ImportError,
    "DataError": ValueError,
    "SessionError": RuntimeError,
    "LabelsError": ValueError,
    "EmbeddingsError": OSError,
}


@pytest.mark.parametrize(("name", "builtin"), LEAVES.items())
def test_each_error_is_also_the_builtin_that_fits(name: str, builtin: type[Exception]) -> None:
    leaf = getattr(errors, name)
    assert issubclass(leaf, HRSAMError)
    assert issubclass(leaf, builtin)


def test_every_error_is_drawn_in_the_tree_with_its_builtin() -> None:
    assert errors.__doc__ is not None
    drawn = {
        line.split()[1]: line.split()[2] for line in errors.__doc__.splitlines() if "──" in line
    }
    found = {
        name
        for name, value in inspect.getmembers(errors, inspect.isclass)
        if issubclass(value, HRSAMError) and value is not HRSAMError
    }
    assert drawn == {name: builtin.__name__ for name, builtin in LEAVES.items()}
    assert found == set(drawn)


def test_require_returns_the_module() -> None:
    assert require("json.decoder", extra="cuda").JSONDecoder


def test_a_missing_extra_says_how_to_install_it() -> None:
    with pytest.raises(MissingExtraError, match=r'pip install "napari-hrsam\[cuda\]"') as caught:
        require("no_such_kernel.ops", extra="cuda")
    assert "no_such_kernel.ops" in str(caught.value)
    assert caught.value.name == "no_such_kernel.ops"
