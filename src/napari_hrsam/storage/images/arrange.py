"""Which axis of a plain array is which."""

from __future__ import annotations

from napari_hrsam.errors import ImageError
from napari_hrsam.storage.images.colours import Channels, Shown, shown_channels
from napari_hrsam.storage.images.stored import AxisOrder


def arrange(
    shape: tuple[int, ...],
    rgb: bool | None,
    channel_axis: int | None,
    channels: Channels | None,
) -> tuple[AxisOrder, Shown]:
    """Give every axis its role, and choose the channel shown as red, green and blue.

    The last two axes besides that of the channels or colours are rows and columns, all before
    them are planes. A last axis of length 1 holds one channel.

    Parameters
    ----------
    shape : tuple of int
        Of the whole array.
    rgb, channel_axis, channels
        As in `open_image`.

    Raises
    ------
    ImageError
        If the array has no such axes, or the arguments contradict each other.
    """
    num_axes = len(shape)
    if channel_axis is None:
        if channels is not None:
            raise ImageError(
                f"expected channel_axis together with channels={channels!r}, got none; "
                "say which axis holds the channels, e.g. channel_axis=0"
            )
        has_colours = num_axes >= 3 and shape[-1] in {3, 4}
        if num_axes >= 3 and shape[-1] == 1 and rgb is None:
            # One channel behind rows and columns, as many loaders give grey images.
            return _order(num_axes, num_axes - 1), (0, 0, 0)
        if num_axes < 2 or (rgb and not has_colours):
            wanted = "(..., H, W, 3 or 4)" if rgb else "(H, W), (H, W, 3 or 4) or (..., H, W)"
            raise ImageError(
                f"expected an array of shape {wanted}, got {shape} with rgb={rgb}; "
                "leave rgb out, or bring the axes into this order first"
            )
        if has_colours and rgb is not False:
            return _order(num_axes, num_axes - 1), (0, 1, 2)
        return _order(num_axes, None), (0, 0, 0)
    if rgb:
        raise ImageError(
            f"expected either rgb=True or channel_axis, got both (channel_axis={channel_axis}); "
            "leave one out"
        )
    if num_axes < 3 or not -num_axes <= channel_axis < num_axes:
        bound = max(3, num_axes)
        raise ImageError(
            f"expected an array of 3 axes or more with channel_axis in {-bound}..{bound - 1}, got "
            f"shape {shape} and channel_axis={channel_axis}; name the axis that holds channels"
        )
    channel = channel_axis % num_axes
    return _order(num_axes, channel), shown_channels(shape[channel], channels)


def _order(num_axes: int, channel: int | None) -> AxisOrder:
    *planes, y, x = (axis for axis in range(num_axes) if axis != channel)
    return AxisOrder(y=y, x=x, channel=channel, planes=tuple(planes))
