"""Cards of data sets: the catalogue that ships with prect, and cards of a user's own."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from prect.errors import ConfigError
from prect.manifests.card_model import (
    Card,
    Exclusion,
    FixedRescale,
    Layout,
    Rescale,
    RescaleTable,
    Sort,
)
from prect.workspace import check_name

try:
    from yaml import CSafeLoader as _SafeLoader
except ImportError:  # PyYAML was built without libyaml, which is ten times as fast
    from yaml import SafeLoader as _SafeLoader  # type: ignore[assignment]

__all__ = [
    "Card",
    "Exclusion",
    "FixedRescale",
    "Layout",
    "Rescale",
    "RescaleTable",
    "Sort",
    "card_text",
    "catalogue",
    "find_card",
    "generic_card",
    "load_card",
    "near_names",
    "template",
    "write_card",
]

_ORDER = (
    "BTCV",
    "FLARE22",
    "FLARE23",
    "LiTS",
    "MSD-Pancreas",
    "KiTS23",
    "HealthyCT",
    "WORD",
    "AMOS22",
    "DeepLesion",
    "PANORAMA",
    "AbdomenAtlas",
    "TCIA-Covid19",
    "LUNA16",
    "STOIC21",
    "LIDC-IDRI",
    "MELA",
    "StonyBrook",
    "CT-RATE",
    "NLST",
    "HNSCC",
    "OPC-Radiomics",
    "HeadNeckCT",
    "QIN-HEADNECK",
    "TCGA-HNSC",
    "TotalSegmentator",
    "CT-Colonography",
)
"""The catalogue's order: that of the paper's table; cards not named here follow by name."""
_OTHER_LINE_ENDS = frozenset("\x85\u2028\u2029")
"""That YAML 1.1 knows besides those of ASCII: next line, line and paragraph separator."""
_TAGS = {FixedRescale.__name__, RescaleTable.__name__}


@cache
def catalogue() -> tuple[Card, ...]:
    """The cards that ship with prect, in the order of the paper's table."""
    folder = resources.files("prect.manifests") / "catalog"
    cards = [
        _parse(file.read_text(encoding="utf-8"), file.name)
        for file in folder.iterdir()
        if file.name.endswith(".yaml")
    ]
    places = {name: place for place, name in enumerate(_ORDER)}
    return tuple(sorted(cards, key=lambda card: (places.get(card.name, len(places)), card.name)))


def find_card(name: str) -> Card | None:
    """The card of the catalogue with that name or alias; only letters and digits count."""
    key = _key(name)
    return next((card for card in catalogue() if key in map(_key, _names(card))), None)


def near_names(name: str) -> list[str]:
    """Names of up to three cards of the catalogue that are spelled alike, nearest first."""
    cards = {_key(spelling): card.name for card in catalogue() for spelling in _names(card)}
    near = difflib.get_close_matches(_key(name), cards, n=6)
    return list(dict.fromkeys(cards[key] for key in near))[:3]


def generic_card(name: str) -> Card:
    """A card that takes every image for a candidate.

    Raises:
        WorkspaceError: the name cannot be one of a data set.
    """
    layout = Layout(images=("*",), dicom=True, labels=())
    return Card(name=check_name(name, "dataset"), title=name, original=layout)


def load_card(path: Path) -> Card:
    """Read a card.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or a key is unknown or has a value
            that it cannot have; names the line and the key, and the nearest key that there is.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"card {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"card {path} is not UTF-8 text: {error.reason}") from error
    return _parse(text, str(path))


def write_card(path: Path, card: Card) -> None:
    """Write a card with every key, those at their defaults included; replaces a file whole."""
    from prect.manifests.parquet import write_whole  # noqa: PLC0415

    write_whole(path, card_text(card).encode())


def card_text(card: Card) -> str:
    """A card as YAML with every key, those at their defaults included."""
    document = card.model_dump(mode="json")
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=96)


def template(name: str) -> str:
    """A card to fill in, as commented YAML that `load_card` accepts as it stands.

    Raises:
        WorkspaceError: the name cannot be one of a data set.
    """
    text = (resources.files("prect.manifests") / "template.yaml").read_text(encoding="utf-8")
    return text.replace("NAME", check_name(name, "dataset"))


def _names(card: Card) -> tuple[str, ...]:
    return (card.name, *card.aliases)


def _key(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())


class _Loader(_SafeLoader):
    """YAML without the trap of a key that stands twice, the first value of which is lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"the key {key.value!r} stands twice"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """YAML with texts of several lines as such, and lists of texts on one line."""


def _text_node(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None
    if _OTHER_LINE_ENDS & set(text):
        style = '"'  # with escapes: else they are read as an end of line like any other
    elif "\n" in text:
        style = "|"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _list_node(dumper: _Dumper, items: list[Any]) -> yaml.SequenceNode:
    flow = all(isinstance(item, str) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flow)


_Dumper.add_representer(str, _text_node)
_Dumper.add_representer(list, _list_node)


def _parse(text: str, where: str) -> Card:
    try:
        document = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(f"card {where}, {line}{error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: a value that looks like a date and is none.
        raise ConfigError(f"card {where} is not YAML: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(
            f"card {where} must hold keys and values, the first of them 'name: ...'; "
            "`prect datasets new NAME` writes one to fill in"
        )
    try:
        return Card.model_validate(document)
    except ValidationError as error:
        problems = [_explain(item["loc"], item, text) for item in error.errors()]
        raise ConfigError(f"card {where}: " + "; ".join(problems)) from None


def _explain(location: tuple[int | str, ...], item: Any, text: str) -> str:
    location = tuple(part for part in location if part not in _TAGS)
    path = ".".join(map(str, location))
    line = _line_of(location, text)
    place = f"line {line}, {path}" if line and path else path
    kind = item["type"]
    if kind == "extra_forbidden":
        return f"{place}: unknown key{_did_you_mean(path)}"
    if kind == "missing":
        return f"{path}: the key is missing"
    message = item["msg"].removeprefix("Value error, ")
    if kind == "string_type":
        message = f"must be text, not {item['input']!r}; write it in quotes"
    elif kind == "tuple_type":
        message = f"must be a list, not {item['input']!r}; write [{json.dumps(item['input'])}]"
    elif kind in ("model_type", "model_attributes_type", "dict_type"):
        message = f"must hold keys and values, not {item['input']!r}"
    elif kind != "value_error":
        message = f"{message[0].lower()}{message[1:]}, not {item['input']!r}"
    return f"{place}: {message}" if place else message


def _line_of(location: tuple[int | str, ...], text: str) -> int | None:
    """Line, from 1, of the key or list entry that a location leads to, or of the nearest one."""
    node = yaml.compose(text, Loader=_SafeLoader)
    line = None
    for part in location:
        if isinstance(node, yaml.MappingNode):
            pairs = {key.value: (key, value) for key, value in node.value}
            if part not in pairs:
                break
            key, node = pairs[part]
            line = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _did_you_mean(path: str) -> str:
    path = re.sub(r"\.\d+\b", "", path)
    known = list(_key_paths(Card))
    # The right key at the wrong place is a likelier slip than a key that looks alike.
    same_key = [p for p in known if p.rpartition(".")[2] == path.rpartition(".")[2]]
    parent = path.rpartition(".")[0]
    beside = [p for p in known if p.rpartition(".")[0] == parent]
    near = difflib.get_close_matches(path, same_key, n=1, cutoff=0.0)
    near = near or difflib.get_close_matches(path, beside, n=1)
    near = near or difflib.get_close_matches(path, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _key_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        for inner in _models_in(field.annotation):
            yield from _key_paths(inner, f"{prefix}{name}.")


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models_in(inner)
