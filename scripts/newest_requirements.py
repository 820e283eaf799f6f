"""Print what napari-hrsam and its tests need besides torch, a requirement to a line.

Read from pyproject.toml; Triton, which comes with torch, is left out too. What is printed has no
upper limits but those of pyproject.toml: pip takes the newest of each.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))[
    "project"
]
LEFT_OUT = {"torch", "triton"}


def requirements(listed: list[str]) -> set[str]:
    """Return a list of requirements with our own extras written out, less what is left out."""
    found: set[str] = set()
    for requirement in listed:
        name, extras = re.match(r"([\w-]+)(?:\[([\w,]+)\])?", requirement).groups()
        if name == PROJECT["name"]:
            for extra in extras.split(","):
                found |= requirements(PROJECT["optional-dependencies"][extra])
        elif name not in LEFT_OUT:
            found.add(requirement)
    return found


if __name__ == "__main__":
    needed = requirements([*PROJECT["dependencies"], f"{PROJECT['name']}[test]"])
    sys.stdout.write("\n".join(sorted(needed)) + "\n")
