"""Write docs/api.md: every public name with its signature and what its docstring begins with.

python scripts/api_page.py           # writes docs/api.md
python scripts/api_page.py --check   # fails if it is not what would be written
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import napari_hrsam

PAGE = Path(__file__).parents[1] / "docs" / "api.md"

HEAD = """# Python

Everything here is `napari_hrsam.NAME` (`import napari_hrsam as hrsam`); `help(hrsam.Session.click)`
tells parameters, units and errors. Order is (y, x), in level-0 pixels, pixel centres at integers;
boxes are half-open (y0, x0, y1, x1). All errors are `HRSAMError`. This page is made by
`scripts/api_page.py` from the docstrings.

"""

GROUPS = {
    "Segment": ("segment", "segment_in", "Session", "Prediction", "DrawnObjects", "PlanesReport",
                "Prompts", "ImagePredictor", "EncodedImage", "DecodedMasks"),
    "Everything": ("propose", "Proposals", "Proposal", "auto", "AutoReport",
                   "learn_classes", "PixelClassifier", "WantedClass"),
    "Models": ("load_model", "list_models", "ModelInfo", "Segmenter"),
    "Images": ("open_image", "image_layers", "PyramidImage", "ArrayImage", "Box"),
    "Labels": ("create_labels", "open_labels", "LabelImage", "LabelWriter",
               "ArrayLabels", "DrawnAs", "Edit", "DrawnObject", "History", "ObjectClass",
               "ObjectRow", "verify_labels", "LabelsReport", "compact_labels", "Compacted"),
    "Replay": ("replay", "Replayed", "ReplayedObject"),
    "Fine-tune": ("fine_tune", "FineTuned", "ClickScore", "FineTuneConfig"),
    "Export": (
        "export_geojson",
        "export_geopackage",
        "export_coco",
        "export_csv",
        "export_tiff",
        "Exported",
    ),
    "Import": ("import_geojson", "import_coco", "Imported"),
    "Embeddings": ("EmbeddingStore", "EmbedReport", "RemoteEncoder"),
    "Errors": ("HRSAMError",),
}  # fmt: skip


def page() -> str:
    """Compose the page."""
    listed = [name for names in GROUPS.values() for name in names]
    public = [name for name in napari_hrsam.__all__ if not name.startswith("_")]
    if sorted(listed) != sorted(public):
        different = set(listed) ^ set(public)
        raise SystemExit(f"GROUPS and napari_hrsam.__all__ differ in {sorted(different)}")
    parts = [HEAD]
    for title, names in GROUPS.items():
        parts.append(f"## {title}\n\n")
        parts += [_entry(name, getattr(napari_hrsam, name)) for name in names]
    return "".join(parts).rstrip() + "\n"


def _entry(name: str, thing: Any) -> str:
    lines = [f"**`{name}{_parameters(thing)}`**  \n{_summary(thing)}\n"]
    if inspect.isclass(thing) and not issubclass(thing, Exception):
        members = [
            f"- `.{key}{'' if _is_value(value) else _parameters(value)}` {_summary(value)}\n"
            for key, value in _members(thing).items()
            if not key.startswith("_") and _summary(value)
        ]
        lines += ["\n", *members] if members else []
    return "".join(lines) + "\n"


def _members(thing: type) -> dict[str, Any]:
    """Return what a class and its bases of ours define, those of the bases last."""
    ours = [base for base in reversed(thing.__mro__) if base.__module__.startswith("napari_hrsam")]
    found = {key: value for base in ours for key, value in vars(base).items()}
    return {key: found[key] for key in [*vars(thing), *found] if key in found}


def _is_value(thing: Any) -> bool:
    return isinstance(thing, property) or not (callable(thing) or hasattr(thing, "__func__"))


def _parameters(thing: Any) -> str:
    """Names of the parameters, without types and defaults."""
    function = getattr(thing, "__func__", thing)
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return ""
    kept = [p for p in parameters if p.name not in ("self", "cls")]
    names = [p.name if p.default is p.empty else f"{p.name}=..." for p in kept]
    return f"({', '.join(names)})"


def _summary(thing: Any) -> str:
    """Return the first sentence of a docstring; empty where there is none of its own."""
    inner = getattr(thing, "func", getattr(thing, "fget", getattr(thing, "__func__", thing)))
    if not (inspect.isfunction(inner) or inspect.isclass(inner)):
        return ""
    first = (inspect.getdoc(inner) or "").partition("\n\n")[0]
    return re.sub(r"\s+", " ", first)


def main() -> None:
    """Write the page, or compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    text = page()
    if not parser.parse_args().check:
        PAGE.write_text(text, encoding="utf-8")
    elif text != PAGE.read_text(encoding="utf-8"):
        sys.exit("docs/api.md is not up to date: run python scripts/api_page.py")


if __name__ == "__main__":
    main()
