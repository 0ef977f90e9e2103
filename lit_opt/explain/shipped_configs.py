"""The YAML files that are shipped, by name ("llm", "llm/muon"). No torch."""

from __future__ import annotations

from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs"


def shipped_configs() -> dict[str, Path]:
    """Name -> file, sorted; the name is the path below `lit_opt/configs` without the suffix.

    Example:
        >>> shipped_configs()["llm"].name
        'llm.yaml'
    """
    files = {file.relative_to(CONFIGS).with_suffix("").as_posix(): file for file in CONFIGS.rglob("*.yaml")}
    return dict(sorted(files.items()))
