# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""What became of every tensor of a checkpoint."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class ConversionReport:
    """Every tensor of the original, and every tensor of the model, once.

    Attributes:
        used: original name -> names in the model. One tensor may become several, and several one.
        changed: those originals of `used` that are not just renamed: reshaped, cut, added to others.
        unused: original name -> why the model does not need it.
        made: name in the model -> why the original has no tensor for it.
        beside: what else than weights the checkpoint holds, such as its optimizer; it is left behind.
    """

    used: dict[str, list[str]] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    unused: dict[str, str] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)
    beside: list[str] = field(default_factory=list)

    def note_preparation(self, before: Iterable[str], after: Iterable[str]) -> None:
        """Tensors that a family's own preparation took together (into those it made), or made.

        To be called when the report on `after` is complete.
        """
        before, after = set(before), set(after)
        taken, new = sorted(before - after), sorted(after - before)
        becomes = [name for original in new for name in self.used.pop(original, [])]
        self.changed -= set(new)
        if taken:
            self.used |= {original: becomes for original in taken}
            self.changed |= set(taken)
        else:
            self.made |= dict.fromkeys(becomes, "the original makes it at this value when it loads such a file")

    def summary(self) -> list[str]:
        """Lines for people: counts, and the reasons."""
        lines = [f"tensors: {len(self.used)} used, {len(self.unused)} unused, {len(self.made)} made"]
        for kind, reasons in (("unused", self.unused), ("made", self.made)):
            names: dict[str, str] = {}
            for name, reason in reasons.items():
                names.setdefault(reason, name)
            for reason, count in Counter(reasons.values()).items():
                more = f" and {count - 1} more" if count > 1 else ""
                lines.append(f"  {kind}: {names[reason]}{more} ({reason})")
        if self.beside:
            lines.append(f"  left behind: {', '.join(self.beside)} (state of the training run)")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """For JSON; names that stay the same are in it, too."""
        return {
            "used": self.used,
            "changed": sorted(self.changed),
            "unused": self.unused,
            "made": self.made,
            "beside": self.beside,
        }
