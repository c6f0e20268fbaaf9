"""Lists of volumes: Decathlon-style JSON with splits, or text with one name a line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from prect.errors import ManifestError
from prect.manifests.card_model import VOLUME_SUFFIXES, Card

SPLITS = ("training", "validation", "test", "testing", "images", "unlabeled")
"""Keys that hold volumes in the lists that are known; ``images`` is all that its list has."""


@dataclass(frozen=True)
class ListEntry:
    """One volume that a list names."""

    path: str
    """Posix path relative to the source's folder or to the list's, or the bare name of a case."""
    split: str
    """Key of the list that it stands under; empty in a text list."""


def read_list(file: Path) -> list[ListEntry]:
    """Read a list; every entry is kept, in its order.

    JSON holds an object whose keys are splits, each with a list of ``{"image": path, ...}`` or of
    plain paths; labels and keys that hold no volumes are left aside. Text holds one path or case
    name a line; empty lines and lines that begin with ``#`` are skipped.

    Raises:
        ManifestError: the file cannot be read, has neither form, names no volume, or a path is
            absolute or leads upwards.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ManifestError(f"list {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"list {file} is not UTF-8 text: {error.reason}") from error
    is_json = file.suffix.lower() == ".json" or text.lstrip().startswith("{")
    entries = list(_from_json(text, file) if is_json else _from_text(text, file))
    if not entries:
        raise ManifestError(f"list {file} names no volume")
    return entries


def locate(entry: ListEntry, root: Path, list_folder: Path, card: Card) -> Path | None:
    """The file of an entry, or its folder of DICOM files; ``None`` when there is none.

    Args:
        entry: from `read_list`.
        root: the source's folder, the first place that a path is looked for in.
        list_folder: folder of the list, the second place.
        card: its patterns tell the file of a bare case name (``<case>/ct.nii.gz``).
    """
    direct = [root / entry.path, list_folder / entry.path]
    named = [root / path for path in _paths_of_case(entry.path, card)]
    for path in (*direct, *named):
        if path.is_file():
            return path
    if card.takes_dicom:
        return next((path for path in direct if path.is_dir()), None)
    return None


def _paths_of_case(name: str, card: Card) -> Iterator[str]:
    """Paths that the card's patterns give a bare name; patterns that leave more open give none."""
    if "/" in name:
        return
    for pattern in (glob for layout in card.layouts for glob in layout.images):
        *folders, file = pattern.split("/")
        for place, part in enumerate(folders):
            if fnmatchcase(name, part):
                yield from _if_plain(
                    "/".join([*folders[:place], name, *folders[place + 1 :], file])
                )
        for suffix in VOLUME_SUFFIXES:
            if file.endswith(suffix) and fnmatchcase(name + suffix, file):
                yield from _if_plain("/".join([*folders, name + suffix]))


def _if_plain(path: str) -> Iterator[str]:
    if not re.search(r"[*?\[]", path):
        yield path


def _from_json(text: str, file: Path) -> Iterator[ListEntry]:
    try:
        document = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"list {file} is not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise ManifestError(
            f'list {file} must hold an object such as {{"training": [{{"image": path}}]}}, '
            f"not a {type(document).__name__}"
        )
    splits = {key: value for key, value in document.items() if _is_split(key, value)}
    if not splits:
        raise ManifestError(
            f"list {file} has none of the keys {', '.join(SPLITS)}, nor another with images; "
            f"it has {', '.join(document) or 'no keys'}"
        )
    for key, value in splits.items():
        if not isinstance(value, list):
            raise ManifestError(f"list {file}, {key}: must be a list of images")
        for number, item in enumerate(value):
            where = f"list {file}, {key}[{number}]"
            yield ListEntry(_checked(_image_of(item, where), where), key)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    repeated = next((key for key in keys if keys.count(key) > 1), None)
    if repeated is not None:
        raise ValueError(f"the key {repeated!r} stands twice in one object")
    return dict(pairs)


def _is_split(key: str, value: Any) -> bool:
    """Whether a key holds volumes: by its name, or by what it holds."""
    if key in SPLITS:
        return True
    return isinstance(value, list) and any(
        ("image" in item) if isinstance(item, dict) else _names_a_volume(item) for item in value
    )


def _names_a_volume(item: Any) -> bool:
    return isinstance(item, str) and item.lower().endswith(VOLUME_SUFFIXES)


def _image_of(item: Any, where: str) -> str:
    image = item.get("image") if isinstance(item, dict) else item
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    if isinstance(image, list):
        raise ManifestError(f"{where}: {len(image)} images of one volume; prect takes one")
    if not isinstance(image, str):
        raise ManifestError(f'{where}: must be a path, or an object with "image": path')
    return image


def _from_text(text: str, file: Path) -> Iterator[ListEntry]:
    for number, line in enumerate(text.splitlines(), start=1):
        name = line.strip()
        if name and not name.startswith("#"):
            yield ListEntry(_checked(name, f"list {file}, line {number}"), "")


def _checked(path: str, where: str) -> str:
    """The path with ``/`` and without ``.``.

    Raises:
        ManifestError: it is empty, absolute, leads upwards, or no file can have such a name.
    """
    posix = PurePosixPath(path.strip().replace("\\", "/"))
    if not posix.name or re.search(r"[\x00-\x1f\x7f]", str(posix)):
        raise ManifestError(f"{where}: {path!r} is no path of a file")
    if posix.is_absolute() or re.match(r"[A-Za-z]:(/|$)", str(posix)) or ".." in posix.parts:
        raise ManifestError(
            f"{where}: {path!r} leads out of the source's folder; "
            "paths in a list must be relative to it, without '..'"
        )
    return str(posix)
