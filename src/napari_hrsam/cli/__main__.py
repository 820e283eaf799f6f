"""``python -m napari_hrsam.cli``: the command line where its script is not on the path."""

import sys

from napari_hrsam.cli import main

if __name__ == "__main__":
    sys.exit(main())
