"""Convert a weight file of any known layout to safetensors with a card, and verify it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from napari_hrsam.errors import CheckpointError, ConfigError
from napari_hrsam.modeling.layouts import (
    Layout,
    expected_state,
    part_of,
    recognise,
    renamed,
)
from napari_hrsam.modeling.models import ChannelOrder, ModelConfig, find_config
from napari_hrsam.modeling.registry import RegistryEntry, load_registry
from napari_hrsam.modeling.saving import config_metadata, stored_state
from napari_hrsam.modeling.weight_files import (
    WeightFile,
    check_finite,
    check_state,
    open_weight_file,
    save_tensors,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversion:
    """What `convert` read and wrote.

    Attributes
    ----------
    source, output, card : str
        Paths.
    layout : str
        As `layouts.recognise` tells.
    model, channel_order : str
    tile_px : int
    parts : dict of str to int
        Values in each part.
    num_tensors, num_values : int
        Written.
    dropped : tuple of str
        Tensors of the source that nothing uses.
    dtype : str
        Of the written values.
    source_sha256, output_sha256 : str
    known_as : str
        Registry entry whose SHA-256 the source has; empty for other files.
    licence, trained_on : str
        Of a published file, or as the source says; empty if not known.
    """

    source: str
    output: str
    card: str
    layout: str
    model: str
    channel_order: str
    tile_px: int
    parts: dict[str, int]
    num_tensors: int
    num_values: int
    dropped: tuple[str, ...]
    dtype: str
    source_sha256: str
    output_sha256: str
    known_as: str
    licence: str
    trained_on: str


def convert(
    source: Path,
    output: Path | None = None,
    *,
    model: str = "",
    channel_order: ChannelOrder | None = None,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
) -> Conversion:
    """Write a weight file as safetensors that `load_model` takes, with a card beside it.

    Parameters
    ----------
    source : Path
        As the authors of HRSAM, FocSAM, SAM, MobileSAM or BA-SAM give it, or of this project.
    output : Path, optional
        By default ``MODEL.safetensors`` in the working folder.
    model : str
        Model it must be of; by default whichever is recognised.
    channel_order : {"rgb", "bgr"}, optional
        In place of what is known of the layout.
    dtype : torch.dtype
        float32 or float16; position codes and BatchNorm statistics stay as they are.
    overwrite : bool
        Replace output and card if they exist.

    Returns
    -------
    Conversion

    Raises
    ------
    WeightsNotFoundError
        If there is no source.
    CheckpointError
        If the source is unsafe, unknown, incomplete or of another model, if values do not fit the
        dtype, or if what was written does not read back the same.
    ConfigError
        If the output exists.
    """
    file = open_weight_file(source)
    layout = recognise(file.shapes, file.metadata, str(source))
    config = _choose_config(layout, model, source)
    if channel_order:
        config = replace(config, channel_order=channel_order)
    state = renamed(layout, file.tensors)
    # A refiner or an encoder alone is converted as such; of a model, every tensor must be there.
    expected = part_of(expected_state(config), layout.parts)
    check_state(state, expected, str(source), config.name)
    output = output or Path(f"{config.name}.safetensors")
    card = output.with_suffix(".md")
    _check_free(output, card, overwrite=overwrite)
    stored = stored_state(state, dtype)
    check_finite(stored, f"{source} as {_name(dtype)}")
    output.parent.mkdir(parents=True, exist_ok=True)
    sha256 = _sha256(source)
    registry = load_registry()
    # Many fine-tuned files have the names of a published one; only the hash tells which it is.
    known = next((entry for entry in registry.values() if entry.sha256 == sha256), None)
    metadata = _metadata(config, layout, file, sha256, known)
    save_tensors(stored, output, metadata)
    _verify(output, stored, metadata)
    done = Conversion(
        source=str(source),
        output=str(output),
        card=str(card),
        layout=layout.name,
        model=config.name,
        channel_order=config.channel_order,
        tile_px=config.tile_px,
        parts={
            part: sum(v.numel() for v in part_of(stored, [part]).values())
            for part in sorted(layout.parts)
        },
        num_tensors=len(stored),
        num_values=sum(v.numel() for v in stored.values()),
        dropped=layout.dropped,
        dtype=_name(dtype),
        source_sha256=sha256,
        output_sha256=_sha256(output),
        known_as=known.name if known else "",
        licence=known.licence if known else "",
        trained_on=metadata["trained_on"],
    )
    card.write_text(_card(done), encoding="utf-8")
    return done


def _choose_config(layout: Layout, model: str, source: Path) -> ModelConfig:
    if layout.config is None:
        raise CheckpointError(
            f"{source} holds initial weights for training HRSAM ({layout.name}), not a model; "
            "there is nothing to convert. It can start a training: napari-hrsam train --init"
        )
    if not model or model == layout.config.name:
        return layout.config
    asked = find_config(model)
    same = expected_state(asked).keys() == expected_state(layout.config).keys()
    if not same or asked.focus != layout.config.focus:
        raise CheckpointError(
            f"{source} was recognised as {layout.config.name!r} ({layout.name}), not {model!r}; "
            "leave --model out, or choose the file of that model"
        )
    return asked


def _check_free(output: Path, card: Path, *, overwrite: bool) -> None:
    if output.suffix != ".safetensors":
        raise ConfigError(f"expected an output that ends in .safetensors, got {output}")
    for path in (output, card):
        if path.exists() and not overwrite:
            raise ConfigError(
                f"{path} exists already; choose another name, or overwrite it with --force"
            )


def _metadata(
    config: ModelConfig, layout: Layout, file: WeightFile, sha256: str, known: RegistryEntry | None
) -> dict[str, str]:
    kept = {k: v for k, v in file.metadata.items() if k in ("part", "base", "trained_on", "layout")}
    return {
        "layout": layout.name,
        "trained_on": known.trained_on if known else "",
        "source": file.path.name,
        "source_sha256": sha256,
        **kept,
        **config_metadata(config),
    }


def _verify(output: Path, stored: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Read the file again as `load_model` does and compare every tensor."""
    again = open_weight_file(output)
    layout = recognise(again.shapes, again.metadata, str(output))
    state = renamed(layout, again.tensors)
    differs = [k for k, v in stored.items() if k not in state or not torch.equal(state[k], v)]
    if differs or len(state) != len(stored) or dict(again.metadata) != metadata:
        raise CheckpointError(
            f"{output} does not read back as it was written ({len(differs)} tensors differ: "
            f"{differs[:3]}); the disk may be faulty, convert again"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _card(done: Conversion) -> str:
    parts = "\n".join(f"| {part} | {count:,} |" for part, count in done.parts.items())
    known = f"the published file of `{done.known_as}`" if done.known_as else "no published hash"
    dropped = ", ".join(f"`{name}`" for name in done.dropped) or "none"
    return f"""# {done.model}

Weights of `{done.model}`, converted by `napari-hrsam convert` from another file.

| | |
|---|---|
| source | `{Path(done.source).name}` |
| SHA-256 of the source | `{done.source_sha256}` ({known}) |
| layout | {done.layout} |
| channel order of the training | {done.channel_order} |
| tile | {done.tile_px} px |
| stored as | {done.dtype}, `{Path(done.output).name}` |
| SHA-256 | `{done.output_sha256}` |
| trained on | {done.trained_on or "not known"} |
| licence | {done.licence or "not known; that of the source holds"} |

The licence is that of the source: converting changes nothing about it. Ask its authors before you
pass the weights on.

| part | values |
|---|--:|
{parts}
| all ({done.num_tensors} tensors) | {done.num_values:,} |

Left out, as no segmenter uses them: {dropped}. Every tensor was read back and compared.
"""
