"""Make the pictures of the documentation: the real window, driven as the tutorial says.

    xvfb-run -a -s "-screen 0 1600x1000x24" python scripts/doc_pictures.py

They are looked at before they are committed.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import napari
from qtpy.QtCore import QEventLoop, QTimer
from qtpy.QtWidgets import QScrollArea, QTableView
from skimage import data

import napari_hrsam as hrsam
from napari_hrsam.plugin.session.controller import SegmentController

OUT = Path(__file__).parents[1] / "docs" / "images"
SIZE = 1400, 900
COINS = (50, 156), (50, 216), (125, 154), (125, 271), (193, 155), (193, 105), (193, 213)


def settle(milliseconds: int = 600) -> None:
    """Let the window do what it has to do."""
    loop = QEventLoop()
    QTimer.singleShot(milliseconds, loop.quit)
    loop.exec()


def click(controller: SegmentController, place: tuple[float, float], positive: bool = True) -> None:
    """Click, and wait for the mask."""
    controller.click(place, positive)
    controller.wait()
    settle()


def show_objects(viewer: napari.Viewer) -> None:
    """Scroll the panel to the list of objects."""
    for dock in viewer.window.dock_widgets.values():
        for table in dock.findChildren(QTableView):
            area = table.parent()
            while area is not None and not isinstance(area, QScrollArea):
                area = area.parent()
            if area is not None:
                area.ensureWidgetVisible(table)


def main() -> None:
    """Make all pictures."""
    viewer = napari.Viewer(title="napari", show=False)
    viewer.window.show()
    viewer.window.resize(*SIZE)
    viewer.add_image(data.coins(), name="coins")
    controller = hrsam.segment_in(viewer, "coins")
    controller.wait()
    settle(2500)

    def picture(name: str) -> None:
        settle(1200)
        viewer.screenshot(str(OUT / name), canvas_only=False, flash=False)

    picture("tutorial-start.png")
    click(controller, COINS[0])
    picture("tutorial-click.png")
    controller.commit()
    for place in COINS[1:]:
        click(controller, place)
        controller.commit()
        controller.wait()
    controller.classes.change(lambda told: told.setting_class([4, 6], "worn"))
    controller.wait()
    click(controller, (125, 206))
    show_objects(viewer)
    picture("tutorial-objects.png")
    viewer.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        # Nothing of an earlier session is taken up, nothing is left behind.
        os.environ.update(NAPARI_HRSAM_LABELS=folder, NAPARI_CONFIG="")
        main()
