"""The label join with a dictionary: message by message, one id after the other."""

from __future__ import annotations

from dataclasses import dataclass, field

from monitoring.labels import COUNTS, JoinSettings

#: what `NaiveJoin` gives: id, label, label time, when the label was sent (None: by the horizon)
Out = tuple[int, int, int, int | None]


@dataclass
class _Id:
    time: int
    arrival: int
    #: "waiting", "joined" or "label"
    kind: str
    label: tuple[int, int, int] | None = None


@dataclass
class NaiveJoin:
    settings: JoinSettings
    ids: dict[int, _Id] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    #: ages of labels that came, and of vectors given up before the horizon
    ages: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    now: int = -(2**62)
    arrivals: int = 0

    def vectors(self, rows: list[tuple[int, int]]) -> list[Out]:
        """(id, event time) of one message."""
        out: list[Out] = []
        for who, time in rows:
            self.counts["vectors"] += 1
            known = self.ids.get(who)
            if known is not None and known.kind != "label":
                self.counts["vectors_repeated"] += 1
                continue
            if known is None:
                known = self.ids[who] = _Id(time, self.arrivals, "waiting")
                self.arrivals += 1
            known.time, known.kind = time, "waiting"
            if known.label is not None and known.label[1] > time + self.settings.horizon_ms:
                known.label = None
                self.counts["labels_after_horizon"] += 1
            if known.label is not None and self.settings.conflicts == "first":
                out.append(self._join(who))
        return out + self._bounded()

    def labels(self, rows: list[tuple[int, int, int, int]]) -> list[Out]:
        """(id, label time, label, sent) of one message."""
        out: list[Out] = []
        for who, time, label, sent in rows:
            self.counts["labels"] += 1
            known = self.ids.get(who)
            if known is None:
                self.ids[who] = _Id(time, self.arrivals, "label", (label, time, sent))
                self.arrivals += 1
                continue
            if known.kind != "label" and time > known.time + self.settings.horizon_ms:
                self.counts["labels_after_horizon"] += 1
                continue
            if known.label is not None:
                same = known.label[0] == label
                self.counts["labels_repeated" if same else "labels_contradicting"] += 1
                newer = self.settings.conflicts == "last" and time >= known.label[1]
                if known.kind == "joined" or not newer:
                    continue
            known.label = (label, time, sent)
            if known.kind == "label":
                known.time = time
            elif self.settings.conflicts == "first":
                out.append(self._join(who))
        return out + self._bounded()

    def advance(self, now: int) -> list[Out]:
        step = max(1, self.settings.horizon_ms // 720)
        before, self.now = self.now, max(self.now, now)
        if before // step == self.now // step:
            return []
        return self._end([who for who, known in self.ids.items() if known.time <= self.now - self.settings.horizon_ms])

    def _join(self, who: int) -> Out:
        known = self.ids[who]
        assert known.label is not None
        known.kind = "joined"
        self.counts["joined_by_label"] += 1
        self.ages.append(known.label[1] - known.time)
        return (who, *known.label)

    def _bounded(self) -> list[Out]:
        out: list[Out] = []
        for of_labels in (False, True):
            mine = [who for who, known in self.ids.items() if (known.kind == "label") == of_labels]
            excess = len(mine) - self.settings.rows_max
            if excess > 0:
                mine.sort(key=lambda who: (self.ids[who].time, self.ids[who].arrival))
                out += self._end(mine[: excess + self.settings.rows_max // 16], at_horizon=False)
        return out

    def _end(self, whose: list[int], at_horizon: bool = True) -> list[Out]:
        out: list[Out] = []
        for who in sorted(whose, key=lambda who: (self.ids[who].time, self.ids[who].arrival)):
            known = self.ids[who]
            if known.kind == "joined":
                self.counts["forgotten"] += not at_horizon
            elif known.kind == "label":
                self.counts["labels_unknown" if at_horizon else "labels_dropped"] += 1
            elif known.label is not None:
                out.append(self._join(who))
            elif not at_horizon:
                self.counts["released"] += 1
                self.left.append(self.now - known.time)
            elif self.settings.negatives == "horizon":
                self.counts["joined_by_horizon"] += 1
                out.append((who, 0, known.time + self.settings.horizon_ms, None))
            else:
                self.counts["unlabelled"] += 1
            del self.ids[who]
        return out
