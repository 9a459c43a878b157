from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from safelight.cli.demo.server import environment
from safelight.cli.doctor import Verdict, examine
from safelight.cli.machine import Torch
from safelight.cli.output import size
from safelight.config import Settings, StoreSettings, load_settings
from safelight.errors import ConfigError
from safelight.version import __version__

from .conftest import House

HEAVY = ("torch", "diffusers", "transformers", "fastapi", "uvicorn")


def imported_by(*arguments: str) -> set[str]:
    """Which of the heavy packages a command loads."""
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('LOADED', *[m for m in {HEAVY!r} if m in sys.modules]))\n"
        "from safelight.cli import main\n"
        "main()"
    )
    answer = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return set(answer.stdout.splitlines()[-1].split()[1:])


def test_help_and_keys_load_neither_torch_nor_fastapi(house: House) -> None:
    assert imported_by("--help") == set()
    assert imported_by("keys", "--help") == set()
    assert imported_by("keys", "create", "laptop", "--data", str(house.data)) == set()
    assert imported_by("runs", "list", "--data", str(house.data)) == set()


def test_the_version_is_the_packages() -> None:
    command = [sys.executable, "-m", "safelight", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"safelight {__version__}\n"


@pytest.mark.parametrize("command", [("runs", "list"), ("keys", "list"), ("deployments",), ("webhooks", "list")])
def test_looking_into_a_folder_that_is_not_there_makes_none(house: House, command: tuple[str, ...]) -> None:
    assert "--data" in house.refused(*command)
    assert not house.data.exists()


def test_a_folder_that_cannot_be_made_is_one_line(house: House) -> None:
    (house.folder / "data").write_text("a file, not a folder")
    house.refused("keys", "create", "laptop")


def test_wrong_usage_exits_with_two(house: House) -> None:
    assert house.run("keys", "create").exit_code == 2
    assert house.run("no-such-command").exit_code == 2


def test_the_printed_settings_are_a_settings_file(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFELIGHT_WEBHOOKS__ALLOWED_NETWORKS", '["10.0.0.0/8"]')
    monkeypatch.setenv("SAFELIGHT_MODELS", '{"my.model" = "/models/é"}')
    in_force = load_settings(flags={"data": house.data})
    file = house.folder / "settings.toml"
    file.write_text(house.ok("config").stdout, encoding="utf-8")
    assert load_settings(file, environ={}) == in_force
    assert Settings.model_validate(json.loads(house.ok("config", "--json").stdout)) == in_force


def test_the_printed_settings_hold_no_password(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFELIGHT_STORE__DATABASE_URL", "postgresql://me:hunter2@db/safelight")
    printed = house.ok("config").stdout
    assert "hunter2" not in printed + house.ok("config", "--json").output
    assert "database_url is set" in printed
    (house.folder / "settings.toml").write_text(printed, encoding="utf-8")
    assert load_settings(house.folder / "settings.toml") == load_settings(flags={"data": house.data})


def test_the_demo_has_a_store_of_its_own_whatever_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFELIGHT_STORE__DATABASE_URL", "postgresql://me:hunter2@db/safelight")
    monkeypatch.setenv("SAFELIGHT_CONFIG", "/etc/safelight.toml")
    monkeypatch.setenv("SAFELIGHT_ENGINE__NUM_THREADS", "3")
    settings = load_settings(environ=environment(), flags={"data": Path("demo")})
    assert (settings.store, settings.engine.num_threads) == (StoreSettings(), 3)


def test_an_unknown_setting_is_one_line(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFELIGHT_SERVER__PROT", "8001")
    assert "server.prot" in house.refused("config")


def verdicts(settings: Settings, torch: Torch) -> dict[str, Verdict]:
    return {finding.what: finding.verdict for finding in examine(settings, torch=lambda: torch)}


def test_the_doctor_has_a_verdict_on_everything(tmp_path: Path) -> None:
    found = verdicts(load_settings(flags={"data": tmp_path, "server.port": 0}), Torch(version="2", num_threads=2))
    expected = {"Python", "torch", "devices", "threads", "SQLite", "data folder", "disk", "port"}
    assert expected | {"weights of pinhole", "weights of stable-diffusion"} == set(found)
    assert found["Python"] == found["torch"] == found["port"] == Verdict.OK


def test_a_torch_that_cannot_be_loaded_is_a_failure_with_a_remedy(tmp_path: Path) -> None:
    findings = examine(load_settings(flags={"data": tmp_path}), torch=lambda: Torch(failure="ImportError: no libfoo"))
    (torch,) = [finding for finding in findings if finding.what == "torch"]
    assert torch.verdict is Verdict.FAIL
    assert "pip install" in torch.remedy


def test_a_bucket_that_cannot_be_used_is_a_failure_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-no-use")
    flags = {"data": tmp_path, "store.images_url": "s3://pictures", "store.images_endpoint": "http://127.0.0.1:9"}
    (bucket,) = [finding for finding in examine(load_settings(flags=flags), torch=Torch) if finding.what == "bucket"]
    assert bucket.verdict is Verdict.FAIL and "cannot be reached" in bucket.detail
    assert "store.images_endpoint" in bucket.remedy


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_data_folder_that_cannot_be_written_is_a_failure() -> None:
    assert verdicts(load_settings(flags={"data": "/proc/safelight"}), Torch())["data folder"] is Verdict.FAIL


def test_the_doctor_exits_with_one_when_something_must_be_mended(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safelight.cli.doctor.look_at_torch", lambda: Torch(failure="broken"))
    result = house.run("doctor", "--json")
    assert result.exit_code == 1
    assert [each["what"] for each in json.loads(result.stdout) if each["verdict"] == "fail"] == ["torch"]


def test_sizes_are_said_as_people_say_them() -> None:
    assert [size(number) for number in (999, 12_345, 45_000_000, 2_581_000_000)] == [
        "999 B",
        "12 kB",
        "45.0 MB",
        "2.6 GB",
    ]


def test_the_key_of_the_dashboards_examples_is_no_setting() -> None:
    assert load_settings(environ={"SAFELIGHT_KEY": "sl_live_x"}) == load_settings(environ={})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("store.retention_days", "inf"),
        ("server.sync_timeout_seconds", "nan"),
        ("server.receive_timeout_seconds", "3000000"),
    ],
)
def test_numbers_without_end_are_refused_by_their_setting(name: str, value: str, tmp_path: Path) -> None:
    section, setting = name.split(".")
    file = tmp_path / "settings.toml"
    file.write_text(f"[{section}]\n{setting} = {value}\n")
    with pytest.raises(ConfigError, match=name):
        load_settings(file, environ={})


def test_a_settings_file_that_is_no_text_is_said(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_settings(file, environ={})
