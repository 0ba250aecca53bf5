# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Compare two result files of `models.py`: the time of each implementation, as a ratio.

    python benchmarks/compare.py old.json new.json

A ratio above 1 means that the second file is faster. Figures of two runs differ by several percent on most machines,
and figures of two machines cannot be compared at all, so differences in the settings are printed first.
"""

import json
import sys
from pathlib import Path


def compare(old: dict, new: dict) -> list[str]:
    """Return the lines of the comparison."""
    lines = [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in dict.fromkeys((*old, *new))
        if key != "results" and old.get(key) != new.get(key)
    ]
    before = {one["model"]: one["implementations"] for one in old["results"]}
    for one in new["results"]:
        lines.append(one["model"])
        for name, row in one["implementations"].items():
            earlier = before.get(one["model"], {}).get(name)
            if earlier is None:
                lines.append(f"    {name:28}{row['median_ms']:9.1f} ms, new")
                continue
            ratio = earlier["median_ms"] / row["median_ms"]
            lines.append(f"    {name:28}{earlier['median_ms']:9.1f} ms ->{row['median_ms']:9.1f} ms{ratio:8.2f}x")
    return lines


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    old, new = (json.loads(Path(path).read_text(encoding="utf-8")) for path in sys.argv[1:])
    print("\n".join(compare(old, new)))


if __name__ == "__main__":
    main()
