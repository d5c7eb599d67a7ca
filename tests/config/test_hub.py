"""The hub is asked once, with a limit."""

import socket

import pytest

from paft_ray.config import hub
from paft_ray.config.errors import ConfigError
from paft_ray.config.hub import require_hub, require_hub_model


@pytest.fixture(autouse=True)
def online(monkeypatch):
    hub._unreachable.cache_clear()
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")


def test_hub_that_refuses_or_never_answers_is_named_with_the_variable_for_offline_use(monkeypatch):
    monkeypatch.setattr(hub, "_LIMIT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        with pytest.raises(ConfigError, match=r"model\.path: a/b .*HF_HUB_OFFLINE=1"):
            require_hub("model.path", "a/b")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}/closed")
    with pytest.raises(ConfigError, match="refused"):
        require_hub("model.path", "a/b")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    require_hub("model.path", "a/b")


def test_model_must_be_in_the_cache_where_the_hub_is_not_asked(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"model\.path: a/b .*HF_HUB_OFFLINE is set"):
        require_hub_model("model.path", "a/b")
    snapshot = tmp_path / "models--a--b/snapshots/c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    require_hub_model("model.path", "a/b", "c0ffee")
    with pytest.raises(ConfigError, match="does not hold it"):
        require_hub_model("model.path", "a/b", "other")
