"""Which channels of an image are read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from refinesam.errors import ConfigError, ImageError

__all__ = ["Channel", "chosen_channels"]

# One, shown as gray, or three, shown as red, green and blue; from 0.
Channel = int | Sequence[int]


def chosen_channels(channel: Channel, count: int) -> list[int]:
    """Return the indices of the channels, one or three.

    Raises:
        ConfigError: neither one nor three whole numbers.
        ImageError: there is no such channel among so many.
    """
    indices = list(channel) if isinstance(channel, Iterable) else [channel]
    if len(indices) not in (1, 3) or not all(type(index) is int for index in indices):
        raise ConfigError(f"channel is {channel!r}; give one number, or three for red, green and blue.")
    if bad := [index for index in indices if not 0 <= index < count]:
        raise ImageError(f"channel {bad[0]} was asked for, but the channels are 0 to {count - 1}.")
    return indices
