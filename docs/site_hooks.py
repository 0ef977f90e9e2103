"""MkDocs hooks: pages that lie outside docs/ (changelog, contributing, measured results) join the site, with their links."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# File of the repository -> page of the site.
OUTSIDE = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "LICENSE": "license.md"}
OUTSIDE["benchmarks/evidence/README.md"] = "evidence.md"
OUTSIDE |= {f"benchmarks/results/{p.name}": f"results/{p.name}" for p in (ROOT / "benchmarks/results").glob("*.md")}
PICTURES = {f"benchmarks/results/{p.name}": f"results/{p.name}" for p in (ROOT / "benchmarks/results").glob("*.png")}
_PLACE = {page: source for source, page in OUTSIDE.items()}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and their pictures."""
    for source, page in OUTSIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(
            File.generated(config, page, content=f"# Licence\n\n```\n{text}```\n" if page == "license.md" else text)
        )
    for source, page in PICTURES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links written for the repository lead to the site's pages; to a file that the site lacks they become its name."""
    here = page.file.src_uri
    source = _PLACE.get(here, f"docs/{here}")

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match.group(0)
        there = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        known = OUTSIDE.get(there) or PICTURES.get(there) or there.removeprefix("docs/")
        if there.startswith("docs/") or there in OUTSIDE or there in PICTURES:
            return f"[{text}]({posixpath.relpath(known, posixpath.dirname(here))}{anchor})"
        return f"{text} (`{there}`)"

    return re.sub(r"\[([^\]\n]*)\]\(([^)#\s]*)(#[^)\s]*|)\)", link, markdown)
