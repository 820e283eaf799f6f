"""Files of metadata, read with limits: what others wrote may be meant to fill the memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from napari_hrsam.storage.files.safe_files import FileBatch

MAX_METADATA_BYTES = 16 * 2**20
"""What a file of metadata may take: the colours of 100,000 labels fit in."""

MAX_METADATA_VALUES = 2_000_000
"""Values in a file of metadata: each takes up to 200 bytes of memory once it is parsed."""

_NODE_FILES = (".zgroup", ".zarray", ".zattrs", "zarr.json")


def is_modest(data: bytes) -> bool:
    """Whether a JSON text takes bounded memory once it is parsed."""
    return (
        len(data) <= MAX_METADATA_BYTES
        and sum(map(data.count, (b"[", b"{", b","))) <= MAX_METADATA_VALUES
    )


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    OSError
        If there is none that can be read.
    ValueError
        If it is none, is too large, or is nested too deeply.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    with path.open("rb") as file:
        data = file.read(MAX_METADATA_BYTES + 1)
    if not is_modest(data):
        raise ValueError(f"more metadata at {path} than there can be")
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError(f"metadata nested too deeply at {path}") from error


def stated_chunks(data: bytes) -> list[Any]:
    """Return the chunk shape that the metadata of an array states, empty if it states none.

    As it is stored: zarr from 3.4 on takes sizes of 0 for others, which no other program does.
    """
    if b'"chunk' not in data:
        return []
    try:
        found = json.loads(data)
    # zarr parses it again, and says what is wrong with it.
    except (ValueError, RecursionError):
        return []
    match found:
        case {"chunks": [*sizes]} | {"chunk_grid": {"configuration": {"chunk_shape": [*sizes]}}}:
            return sizes
    return []


def ome_attributes(folder: Path) -> dict[str, Any]:
    """Return the OME attributes of a group in a folder, none if they cannot be read."""
    for file, key in (("zarr.json", "attributes"), (".zattrs", None)):
        try:
            found = read_json(folder / file)
        except (OSError, ValueError):
            continue
        found = found.get(key, {}) if key and isinstance(found, dict) else found
        ome = found.get("ome", found) if isinstance(found, dict) else {}
        return ome if isinstance(ome, dict) else {}
    return {}


def keep_indexes(folder: Path, nodes: Iterable[str]) -> None:
    """Bring the metadata of new groups and arrays into the indexes of the groups above them.

    Programs that find an index (consolidated metadata) believe that nothing else is there.

    Parameters
    ----------
    folder : Path
        A zarr group; it and the groups that it lies in may have an index.
    nodes : iterable of str
        Paths of groups and arrays inside the folder.

    Raises
    ------
    OSError
        If an index cannot be written.
    """
    inside = list(nodes)
    files = FileBatch()
    try:
        for place in (folder, *folder.parents):
            if not any((place / name).is_file() for name in _NODE_FILES):
                break
            prefix = f"{folder.relative_to(place).as_posix()}/" if place != folder else ""
            for name, index in _with_nodes(place, prefix, folder, inside):
                files.write(str(place / name), json.dumps(index, indent=2).encode(), top=str(place))
        files.finish()
        files.drop_backups()
    except BaseException:
        files.abandon()
        raise
    finally:
        files.close()


def _with_nodes(
    place: Path, prefix: str, folder: Path, nodes: list[str]
) -> Iterator[tuple[str, Any]]:
    """Give each file of a group that holds an index, with the nodes brought into it."""
    for name in (".zmetadata", "zarr.json"):
        try:
            found = read_json(place / name)
            told = found if name == ".zmetadata" else found["consolidated_metadata"]
            entries = told["metadata"]
            for node in nodes:
                for file in _NODE_FILES if name == ".zmetadata" else ("zarr.json",):
                    if not (folder / node / file).is_file():
                        continue
                    entry = read_json(folder / node / file)
                    if name == "zarr.json":
                        entries[prefix + node] = entry
                    elif file != "zarr.json":
                        entries[f"{prefix}{node}/{file}"] = entry
        # There is no index, or one that no program can use.
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            continue
        yield name, found
