"""Many request classes over the same rows: their scores are kept up together, for policies that are sums over kinds.

    a class is asked ──► its scores on the rows that changed since, one by one in plain numbers: they are few
    TOGETHER changes ──► the scores of all classes on the rows that changed, at one go as arrays: an entry costs next
                         to nothing there, a call as much for thousands as for one

The best row of each class is remembered, and sought among all only when its score has fallen: no other was better, so
of what changes a row is better than that, or it is not.
"""

from __future__ import annotations

import numpy as np

from lavalite.model.resources import KINDS
from lavalite.placement.classes import NONE, RequestClass
from lavalite.placement.columns import Columns, Ints
from lavalite.placement.policies import Policy
from lavalite.placement.ranking import Ranking, Scores, width_of

TOGETHER = 64
UNKNOWN = -2
"""Stands for the best row where it has to be sought. None is better than `top_score` even then."""
ANY_SCORE = 2**31


class Board:
    """The scores of each class by place, with its best row and the score of that."""

    def __init__(self, policy: Policy) -> None:
        self.generation = -1
        self.mark = 0
        """Of so many changes all scores know, but those of who has not looked at all rows in this generation."""
        self.scores: Scores = np.zeros((0, 0), dtype=width_of(policy))
        self.top: Ints = np.zeros(0, dtype=np.int64)
        self.top_score: Ints = np.zeros(0, dtype=np.int64)
        self._policy = policy
        self._vacant: list[int] = []
        self._need = np.zeros((len(KINDS), 0), dtype=np.float64)
        """A hundred times what is asked for: a line for each kind."""
        self._asked = np.zeros((len(KINDS), 0), dtype=np.float64)
        self._selected: dict[tuple[str, ...], list[int]] = {}
        """What the rows must be selected by, and the places of those for whom they must."""

    def join(self, wanted: RequestClass) -> int:
        """A place for the class."""
        if not self._vacant:
            self._add_places()
        place = self._vacant.pop()
        self._need[:, place], self._asked[:, place] = 100.0 * wanted.need[:, 0], wanted.need[:, 0] > 0
        if wanted.from_pools:
            self._selected.setdefault(tuple(wanted.from_pools), []).append(place)
        return place

    def leave(self, wanted: RequestClass, place: int) -> None:
        """Its place is another one's."""
        selected = tuple(wanted.from_pools)
        if selected:
            self._selected[selected].remove(place)
            if not self._selected[selected]:
                del self._selected[selected]
        self._need[:, place] = self._asked[:, place] = 0.0
        self._vacant.append(place)

    def begin(self, columns: Columns) -> None:
        """Somebody is about to look at all rows."""
        if self.generation != columns.generation:
            self.generation, self.mark = columns.generation, columns.mark

    def widen(self, columns: Columns) -> None:
        """There may be more rows."""
        if self.scores.shape[1] < len(columns):
            more = max(64, len(columns) // 8)
            missing = len(columns) + more - self.scores.shape[1]
            self.scores = np.pad(self.scores, ((0, 0), (0, missing)), constant_values=NONE)

    def keep_up(self, columns: Columns) -> None:
        """Work out all scores on the rows that changed since they all were. Only while columns are exact."""
        rows = np.unique(columns.changed_since(self.mark))
        room = (columns.room_at(rows) * 100.0)[:, :, np.newaxis]
        divisor = columns.divisor_at(rows)[:, :, np.newaxis]
        # A line for each row, that of all places: the longer a line is the less an entry costs.
        fits = np.ones((len(rows), self._need.shape[1]), dtype=np.bool_)
        total = np.zeros(fits.shape)
        for at in np.flatnonzero(self._asked.any(axis=1)):
            left = room[at] - self._need[at]
            fits &= left >= 0
            part = self._policy.part(left, divisor[at])
            part *= self._asked[at]
            total += part
        for pools, places in self._selected.items():
            fits[:, places] &= np.logical_and.reduce([columns.pool(pool)[rows] for pool in pools])[:, np.newaxis]
        found = np.where(fits, total, NONE).astype(self.scores.dtype)
        self.scores[:, rows] = found.T
        self._compare_tops(rows, found)
        self.mark = columns.mark

    def _compare_tops(self, rows: Ints, found: Scores) -> None:
        """Which rows are the best now; the first of equals, and the rows are in their order."""
        places, top, score = np.arange(len(self.top)), self.top, self.top_score
        at = found.argmax(axis=0)
        best, row = found[at, places], rows[at]
        better = (best > score) | ((best == score) & (row < top))
        fallen = (top >= 0) & (self.scores[places, top] < score)
        self.top = np.where(better, row, np.where(fallen, UNKNOWN, top))
        self.top_score = np.where(better, best, score).astype(np.int64)

    def _add_places(self) -> None:
        before = len(self.top)
        more = max(4, before)
        self.scores = np.pad(self.scores, ((0, more), (0, 0)), constant_values=NONE)
        self._need, self._asked = (np.pad(lines, ((0, 0), (0, more))) for lines in (self._need, self._asked))
        self.top = np.pad(self.top, (0, more), constant_values=UNKNOWN)
        self.top_score = np.pad(self.top_score, (0, more), constant_values=NONE)
        self._vacant += range(before + more - 1, before - 1, -1)


class Member(Ranking):
    """The ranking of a class that has a place on a board."""

    def __init__(self, wanted: RequestClass, policy: Policy, board: Board) -> None:
        super().__init__(wanted, policy)
        self._board: Board | None = board
        self._place = board.join(wanted)

    @staticmethod
    def may_be(wanted: RequestClass, policy: Policy) -> bool:
        alone = wanted.host or wanted.exclusive or wanted.special
        return policy.summed and bool(wanted.at) and wanted.gpu is None and not alone

    def leave(self) -> None:
        """Give its place away; if it is asked again it has one for itself."""
        if self._board is not None:
            self._board.leave(self.wanted, self._place)
        self._board, self._version = None, (-1, -1)

    def best(self, columns: Columns, after: int = NONE) -> int:
        scores, board, place = self._kept_up(columns), self._board, self._place
        assert board is not None
        top = int(board.top[place])
        if top == UNKNOWN:
            top = self._best(scores, after)
            board.top[place], board.top_score[place] = top, scores[top] if top >= 0 else NONE
        return top

    def _kept_up(self, columns: Columns) -> Scores:
        if self._board is None:
            self._board = Board(self.policy)
            self._place = self._board.join(self.wanted)
        board, place = self._board, self._place
        if len(self._scores) != len(columns.names) or self._scores.base is not board.scores:
            board.widen(columns)
            self._scores = board.scores[place, : len(columns)]
        if self._version[0] != columns.generation:
            board.begin(columns)
            board.top[place], board.top_score[place] = UNKNOWN, ANY_SCORE
            self._version = (-1, -1)
            self._look_at(columns, None)
            self._version, self._mark = (columns.generation, 0), columns.mark
            return self._scores
        mark, now = max(self._mark, board.mark), columns.mark
        if mark < now:
            if now - mark <= TOGETHER:
                self._look_at_few(columns, board, mark)
            elif columns.exact:
                board.keep_up(columns)
            else:
                board.top[place], board.top_score[place] = UNKNOWN, ANY_SCORE
                self._look_at(columns, columns.changed_since(mark))
            self._mark = now
        return self._scores

    def _look_at_few(self, columns: Columns, board: Board, mark: int) -> None:
        """Work the scores of the rows anew that changed since then, one by one."""
        wanted, column = self.wanted, self._scores
        top, top_score = int(board.top[self._place]), int(board.top_score[self._place])
        masks = [columns.pool(pool) for pool in wanted.from_pools]
        lines, score_of = columns.lines, self.policy.score
        for row in set(columns.changed_since(mark).tolist()):
            score = score_of(wanted, lines.get(row) or columns.line(row))
            for mask in masks:
                if not mask[row]:
                    score = NONE
            column[row] = score
            if score > top_score:
                top, top_score = row, score
            elif row == top:
                if score < top_score:
                    top = UNKNOWN
            elif score == top_score and row < top:
                top = row
        board.top[self._place], board.top_score[self._place] = top, top_score
