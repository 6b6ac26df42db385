"""A job's results image by image, as far as the job is."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from refinesam.errors import DatasetError
from refinesam.jobs.folder import BatchResults
from refinesam.jobs.rows import Row

__all__ = ["JobImages"]

# Shards whose rows are kept: images mostly come in their order.
KEPT = 4


class JobImages:
    """The images of a job that are answered, by their names, in whatever order they are asked for.

    Attributes:
        digest: of the job's settings, images and prompts.
        names: of the images, in the job's order.
        unread: why shards are left out, by their names: they are not there yet, or damaged.
    """

    def __init__(self, path: Path) -> None:
        """Look which images there are.

        Args:
            path: the --output of `refinesam batch`, which may still be running, or was ended.

        Raises:
            DatasetError: it is no such folder, or nothing of it can be read.
            MissingExtraError: without pyarrow.
        """
        self._results = BatchResults(path)
        self.digest = self._results.digest
        self.unread = dict.fromkeys(self._results.missing, "it is not there yet")
        self._shards: dict[str, Path] = {}
        self._rows: OrderedDict[Path, dict[str, list[Row]]] = OrderedDict()
        for shard in self._results.shards:
            try:
                self._shards |= {row["image"]: shard for row in self._results.rows(shard, ["image"])}
            except DatasetError as error:
                self.unread[shard.name] = str(error)
        if not self._shards:
            name, reason = next(iter(self.unread.items()), (path.name, "it is empty"))
            raise DatasetError(f"{path} holds no image that is done ({name}: {reason}): wait until a shard is written.")
        self.names = list(self._shards)

    def rows(self, name: str) -> list[Row]:
        """Return the rows of an image, one an object, see docs/batch.md.

        Raises:
            DatasetError: the shard is damaged.
        """
        shard = self._shards[name]
        if shard not in self._rows:
            by_image: dict[str, list[Row]] = {}
            for row in self._results.rows(shard):
                by_image.setdefault(row["image"], []).append(row)
            self._rows[shard] = by_image
            while len(self._rows) > KEPT:
                self._rows.popitem(last=False)
        self._rows.move_to_end(shard)
        return self._rows[shard].get(name, [])
