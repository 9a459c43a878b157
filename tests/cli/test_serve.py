from __future__ import annotations

import fcntl
import json
import socket
import subprocess
import sys

import pytest

from .conftest import House


def serve(house: House, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "safelight", "serve", "--data", str(house.data), *arguments]
    return subprocess.run(command, cwd=house.folder, capture_output=True, text=True, check=False, timeout=60)


def started_and_stopped(house: House, *models: str) -> str:
    """All that a server says from its start until it serves, and at its end."""
    command = [sys.executable, "-m", "safelight", "serve", *models, "--data", str(house.data), "--port", "0"]
    with subprocess.Popen(
        command, cwd=house.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        assert server.stdout is not None
        said = []
        for line in server.stdout:
            said.append(line)
            if line.startswith("serving at "):
                server.terminate()
    return "".join(said)


def last_line(answer: subprocess.CompletedProcess[str]) -> str:
    assert answer.returncode == 1
    assert "Traceback" not in answer.stderr
    return answer.stderr.splitlines()[-1]


def test_a_port_that_is_taken_is_one_line_with_the_way_out(house: House) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        answer = serve(house, "--port", str(taken.getsockname()[1]))
    assert "--port" in last_line(answer)


@pytest.mark.parametrize("command", [("worker",), ("serve", "--no-workers")])
def test_workers_and_doors_apart_need_what_both_can_reach(house: House, command: tuple[str, ...]) -> None:
    refusal = house.refused(*command)
    assert "set store.database_url and store.images_url" in refusal
    assert not house.data.exists()


def test_a_start_that_is_refused_makes_and_deploys_nothing(house: House) -> None:
    house.data.mkdir()
    with house.data.joinpath("serve.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another server runs" in last_line(serve(house, "pinhole", "--port", "0"))
    assert [each.name for each in house.data.iterdir()] == ["serve.lock"]


def test_the_first_start_makes_one_admin_key_and_deploys_what_is_named_unless_the_name_is_taken(house: House) -> None:
    house.ok("deploy", "pinhole", "--set", "height=256")
    models = ("pinhole", "stable-diffusion")
    first, second = started_and_stopped(house, *models), started_and_stopped(house, *models)
    assert "admin key, shown this once: sl_live_" in first
    assert "sl_live_" not in second
    keys = json.loads(house.ok("keys", "list", "--json").stdout)
    assert [(key["name"], key["scopes"]) for key in keys] == [("admin", ["admin"])]
    found = json.loads(house.ok("deployments", "--json").stdout)
    assert [(each["name"], each["version"]) for each in found] == [("pinhole", 1), ("stable-diffusion", 1)]
    assert found[0]["defaults"]["height"] == 256
