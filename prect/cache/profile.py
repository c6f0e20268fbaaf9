"""A profile: everything that decides what bytes a store holds."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from prect.cache.format import Codec, Storage
from prect.cache.intensity import Intensity
from prect.errors import ConfigError
from prect.ingest.settings import Harmonisation
from prect.manifests.parquet import write_whole


class Profile(BaseModel):
    """How volumes are harmonised and stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    window_hu: tuple[int, int] = (-175, 250)
    """Lowest and highest HU of the recipe's window: what storing a window keeps."""
    harmonisation: Harmonisation
    intensity: Intensity = Intensity()
    storage: Storage = Storage()

    @property
    def digest(self) -> str:
        """BLAKE2b-64 of the profile's content; a store of another digest is stale."""
        return profile_digest(self.model_dump(mode="json"))

    def makes_the_same(self, stored: Mapping[str, Any]) -> bool:
        """Whether a profile that a store holds makes the same stores, whatever its name.

        A profile of an earlier release lacks the settings that came later: their defaults are
        what that release did.
        """
        try:
            other = Profile.model_validate(stored)
        except ValidationError:
            return False
        return other.model_copy(update={"name": self.name}) == self

    @property
    def codec(self) -> Codec:
        """Compression of level 0."""
        plain = self.intensity == Intensity()
        return self.storage.codec if plain else self.storage.dense_codec

    @property
    def coarse_codec(self) -> Codec:
        """Compression of the other levels."""
        return self.storage.dense_codec

    def stored_as(
        self, kind: str | None = None, step: int | None = None, low_pass: bool | None = None
    ) -> Profile:
        """This profile with another intensity or filter; what is left out stays.

        Args:
            kind: ``hu``, or ``window`` for the profile's own window.
            step: HU from one stored value to the next.
            low_pass: smooth along the axes that shrink.

        Raises:
            ConfigError: the intensity cannot be stored.
        """
        intensity = self.intensity
        try:
            if (kind or intensity.kind) == "window":
                low, high = self.window_hu
                if kind is not None or step is not None:
                    intensity = Intensity.window(low, high, step)
            elif kind is not None or step is not None:
                intensity = Intensity(step=step or 1)
        except ValidationError as error:
            raise ConfigError(f"--intensity or --hu-step: {first_message(error)}") from error
        grid = self.harmonisation
        if low_pass is not None:
            grid = grid.model_copy(update={"low_pass": low_pass})
        return self.model_copy(update={"intensity": intensity, "harmonisation": grid})


def profile_digest(profile: Mapping[str, Any]) -> str:
    """BLAKE2b-64 of a profile's sorted JSON, hexadecimal."""
    text = json.dumps(profile, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def first_message(error: ValidationError) -> str:
    """What is wrong with the first wrong value, without pydantic's frame around it."""
    return str(error.errors()[0]["msg"]).removeprefix("Value error, ")


def write_profile(path: Path, profile: Profile) -> None:
    """Write a profile as JSON, whole or not at all."""
    write_whole(path, (json.dumps(profile.model_dump(mode="json"), indent=2) + "\n").encode())


def read_profile(path: Path) -> Profile:
    """Read what `write_profile` wrote.

    Raises:
        ConfigError: there is no such file, or it is no profile of this release.
    """
    try:
        return Profile.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; run: prect build-cache") from None
    except ValidationError as error:
        raise ConfigError(f"{path} is not valid: {first_message(error)}") from error


def load_profile(name_or_path: str) -> Profile:
    """A profile by the name of one that ships with prect, or by the path of a TOML file.

    Raises:
        ConfigError: there is no such profile, or it does not validate.
    """
    folder = resources.files("prect.cache") / "profiles"
    shipped = {
        f.name.removesuffix(".toml"): f for f in folder.iterdir() if f.name.endswith(".toml")
    }
    try:
        if name_or_path in shipped:
            text = shipped[name_or_path].read_text(encoding="utf-8")
        else:
            text = Path(name_or_path).read_text(encoding="utf-8")
        return Profile.model_validate(tomllib.loads(text))
    except OSError:
        raise ConfigError(
            f"no profile {name_or_path!r}: give one of {', '.join(sorted(shipped))}, "
            "or the path of a TOML file"
        ) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise ConfigError(f"profile {name_or_path} is not valid: {error}") from error
