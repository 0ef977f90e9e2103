"""`lit-opt new SETTING DIR`: write a starter project, and never over a file."""

from __future__ import annotations

from pathlib import Path

from lit_opt.commands.starter.files import PROJECTS, project_files
from lit_opt.errors import RecipeError, nearest


def settings() -> dict[str, str]:
    """Setting -> one line, for the list.

    Example:
        >>> settings()["cnn"]
        'a narrow ResNet-18, or any CNN of timm or torchvision, on images with labels'
    """
    return {name: project.line for name, project in PROJECTS.items()}


def write_project(name: str, folder: str | Path) -> list[Path]:
    """Write a project, all of it or nothing.

    Args:
        name: A setting of `settings()`.
        folder: Where; it is made, and may exist as long as none of the project's files is in it.

    Returns:
        The files.

    Raises:
        RecipeError: An unknown setting, no folder, or files that are in the way.
    """
    if name not in PROJECTS:
        raise RecipeError([f"setting: {name!r} is unknown.{nearest(name, PROJECTS)} Known: {', '.join(PROJECTS)}."])
    folder = Path(folder)
    files = {folder / file: text for file, text in project_files(name).items()}
    in_the_way = [str(path) for path in files if path.exists() or path.is_symlink()]
    if in_the_way:
        raise RecipeError([_in_the_way(name, folder, in_the_way)])
    written: list[Path] = []
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            with path.open("x", encoding="utf-8") as stream:  # fails where somebody has just made it
                written.append(path)
                stream.write(text)
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        if isinstance(error, FileExistsError) and error.filename in map(str, files):
            raise RecipeError([_in_the_way(name, folder, [str(error.filename)])]) from error
        reason = error.strerror or str(error)
        raise RecipeError(
            [
                f"folder: {folder}: cannot be written ({reason}: {error.filename}). Nothing was written; give another folder."
            ]
        ) from error
    return written


def _in_the_way(name: str, folder: Path, files: list[str]) -> str:
    return (
        f"folder: {', '.join(files)} {'is' if len(files) == 1 else 'are'} there already, and no file is overwritten. "
        f"Nothing was written. Give an empty or new folder, such as `lit-opt new {name} {folder}-new`."
    )
