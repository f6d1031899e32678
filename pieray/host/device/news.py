"""What an InferletActor knows of a device group by what it tells: what it holds, and how much it has to do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pieray.messages import GroupNews


class NewsOfGroup:
    """Written by the thread that reads the ResourceManager's messages, read by any: it is a hint, never a promise."""

    def __init__(self) -> None:
        self._prints: set[int] = set()  # of pages that are there
        self.num_programs = 0

    def take(self, news: GroupNews) -> None:
        """The group has told of what has changed, or, at first, of all."""
        added, removed = (np.frombuffer(column, "<u4").tolist() for column in (news.added, news.removed))
        if news.is_whole:
            self._prints = set(added)
        else:
            self._prints.difference_update(removed)
            self._prints.update(added)
        self.num_programs = news.num_programs

    def num_found(self, prints: Sequence[int]) -> int:
        """How many pages of the beginning of a text are there."""
        known = self._prints
        return next((place for place, one in enumerate(prints) if one not in known), len(prints))
