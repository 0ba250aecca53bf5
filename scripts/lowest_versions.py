# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Print the oldest declared version of every dependency, as constraints for pip.

python scripts/lowest_versions.py > oldest.txt
pip install -c oldest.txt -e ".[train]" pytest
"""

import itertools
import re
from pathlib import Path

import tomllib

LOWER_BOUND = re.compile(r"([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?>=([0-9.]+)")


def lowest_versions(project: dict) -> list[str]:
    """Return `name==version` for each lower bound in the dependencies and extras of a pyproject.toml."""
    extras = itertools.chain.from_iterable(project["optional-dependencies"].values())
    requirements = [*project["dependencies"], *extras]
    found = (LOWER_BOUND.match(requirement) for requirement in requirements)
    return sorted({f"{match[1]}=={match[2]}" for match in found if match})


if __name__ == "__main__":
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    print("\n".join(lowest_versions(tomllib.loads(text)["project"])))
