"""The buttons that continue objects over the planes of a stack."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from panel_window import Window


def test_a_stack_has_buttons_and_a_flat_image_has_none(
    open_window: Callable[..., Window], pixels: NDArray[np.uint8]
) -> None:
    window = open_window(data=np.stack([pixels] * 4))
    box = window.panel.planes_box
    assert box.isHidden()
    window.panel.start()
    window.controller.wait()
    assert not box.isHidden()
    assert box.isEnabled()
    window.controller.overlay.view.show_plane((1,))  # type: ignore[union-attr]
    window.controller.click((30, 30))
    box.next_button.click()
    window.controller.wait()
    assert window.controller.overlay.plane == (2,)  # type: ignore[union-attr]
    box.spin_box.setValue(2)
    box.far_button.click()
    window.controller.wait()
    assert "as far as plane 3: the stack ends here" in window.controller.state.message
    window.controller.overlay.view.show_plane((1,))  # type: ignore[union-attr]
    window.viewer.cursor.position = (1, 30, 30)
    box.far_back_button.click()
    window.controller.wait()
    assert "as far as plane 0: the stack ends here" in window.controller.state.message
    window.controller.stop()
    window.controller.wait()
    assert box.isHidden()


def test_buttons_for_planes_stay_away_from_a_flat_image(
    open_window: Callable[..., Window],
) -> None:
    window = open_window()
    window.panel.start()
    window.controller.wait()
    assert window.panel.planes_box.isHidden()
