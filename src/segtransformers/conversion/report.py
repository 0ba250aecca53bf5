# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Record of the use of every tensor of a checkpoint."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..escaping import printable


@dataclass
class ConversionReport:
    """The use of every tensor of the original and the origin of every tensor of the model.

    Attributes:
        used: names in the model by original name. One tensor may become several, and several may become one.
        changed: the original names in `used` whose tensors are not only renamed, but also reshaped, split or added.
        unused: by original name, the reason why the model does not need the tensor.
        made: by name in the model, the reason why the original has no tensor for it.
        left_behind: names of the checkpoint's entries that are not weights, such as its optimizer.
        not_finite: original names of the tensors that hold NaN or infinity.
        notes: sentences about the weights that the user should know.
    """

    used: dict[str, list[str]] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    unused: dict[str, str] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)
    left_behind: list[str] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note_preparation(self, before: Iterable[str], after: Iterable[str]) -> None:
        """Correct the report for tensors that the preparation of a family joined or added.

        Call this when the report on the names `after` the preparation is complete.
        """
        before, after = set(before), set(after)
        joined, new = sorted(before - after), sorted(after - before)
        becomes = [name for original in new for name in self.used.pop(original, [])]
        self.changed -= set(new)
        if joined:
            self.used |= {original: becomes for original in joined}
            self.changed |= set(joined)
        else:
            self.made |= dict.fromkeys(becomes, "the checkpoint lacks it; it gets its initial value")

    def summary(self) -> list[str]:
        """Return lines with the counts and the reasons."""
        lines = [f"tensors: {len(self.used)} used, {len(self.unused)} unused, {len(self.made)} made"]
        for kind, reasons in (("unused", self.unused), ("made", self.made)):
            examples: dict[str, str] = {}
            for name, reason in reasons.items():
                examples.setdefault(reason, name)
            for reason, count in Counter(reasons.values()).items():
                more = f" and {count - 1} more" if count > 1 else ""
                lines.append(f"  {kind}: {printable(examples[reason])}{more} ({reason})")
        if self.left_behind:
            more = f" and {len(self.left_behind) - 20} more" if len(self.left_behind) > 20 else ""
            names = ", ".join(printable(name, 40) for name in self.left_behind[:20])
            lines.append(f"  left behind: {names}{more} (state of the training run)")
        return [*lines, *(f"note: {note}" for note in self.notes)]

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return {
            "used": self.used,
            "changed": sorted(self.changed),
            "unused": self.unused,
            "made": self.made,
            "left_behind": self.left_behind,
            "not_finite": self.not_finite,
            "notes": self.notes,
        }
