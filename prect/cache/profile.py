"""A profile: everything that decides what bytes a store holds."""

from __future__ import annotations

import hashlib
import json
import tomllib
from importlib import resources
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from prect.cache.format import Storage
from prect.errors import ConfigError
from prect.ingest.settings import Harmonisation


class Profile(BaseModel):
    """How volumes are harmonised and stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    harmonisation: Harmonisation
    storage: Storage = Storage()

    @property
    def digest(self) -> str:
        """BLAKE2b-64 of the profile's content; a store of another digest is stale."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


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
