"""Whether the Hugging Face hub can be reached, asked once: its own client tries for a minute."""

import os
import threading
import urllib.error
import urllib.request
from functools import lru_cache
from http.client import HTTPException

from paft_ray.config.errors import ConfigError, one_line

_LIMIT_S = 5.0
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def is_offline() -> bool:
    """Return whether the user wants the hub's cache only."""
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in _OFFLINE)


def require_hub(field: str, name: str) -> None:
    """Refuse a hub name where the hub cannot be reached.

    Args:
        field: The configuration's field, with which the message begins.
        name: The hub name.

    Raises:
        ConfigError: The hub does not answer, and HF_HUB_OFFLINE is not set.
    """
    if is_offline():
        return
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if (reason := _unreachable(endpoint)) is not None:
        raise ConfigError(
            f"{field}: {name} is on the Hugging Face hub, and {endpoint} cannot be reached "
            f"({reason}): name a local folder, or set HF_HUB_OFFLINE=1 if it is in the cache here"
        )


def require_hub_model(field: str, name: str, revision: str | None = None) -> None:
    """Refuse the hub name of a model that can be had neither from the hub nor from its cache.

    Raises:
        ConfigError: As `require_hub`; or HF_HUB_OFFLINE is set, and the cache has no such model.
    """
    require_hub(field, name)
    if is_offline() and not _is_cached(name, revision):
        raise ConfigError(
            f"{field}: {name} is on the Hugging Face hub, HF_HUB_OFFLINE is set, and the hub's "
            "cache here does not hold it: name a local folder, or unset the variable"
        )


def _is_cached(name: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)
    except HFValidationError:
        return False


@lru_cache
def _unreachable(endpoint: str) -> str | None:
    """The reason why a server does not answer within the limit, None where it does."""
    reasons: list[str | None] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(
                urllib.request.Request(endpoint, method="HEAD"), timeout=_LIMIT_S
            ):
                reasons.append(None)
        except urllib.error.HTTPError:  # an answer
            reasons.append(None)
        except (OSError, HTTPException, ValueError) as error:
            reasons.append(one_line(error))

    thread = threading.Thread(target=ask, name="hub", daemon=True)
    thread.start()
    thread.join(_LIMIT_S)  # names are looked up without a limit
    return reasons[0] if reasons else f"no answer in {_LIMIT_S:.0f} s"
