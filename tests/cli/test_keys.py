from __future__ import annotations

import json

from safelight.keys import Scope

from .conftest import House


def test_a_new_key_stands_alone_on_stdout_and_works(house: House) -> None:
    result = house.ok("keys", "create", "laptop")
    secret = result.stdout.removesuffix("\n")
    assert secret.startswith("sl_live_")
    assert "\n" not in secret
    assert "cannot be shown again" in result.stderr
    key = house.store(lambda store: store.keys.authenticate(secret))
    assert (key.name, key.scopes) == ("laptop", {Scope.PREDICT})


def test_a_key_gets_the_scopes_project_and_end_it_was_given(house: House) -> None:
    house.ok("keys", "create", "ops", "--scope", "read", "--scope", "admin", "--project", "shop", "--expires-days", "2")
    (key,) = json.loads(house.ok("keys", "list", "--json").stdout)
    assert (key["scopes"], key["project"]) == (["admin", "read"], "shop")
    assert 1.9 < (key["expires_at"] - key["created_at"]) / 86400 < 2.1


def test_a_list_shows_no_secret(house: House) -> None:
    secret = house.ok("keys", "create", "laptop").stdout.strip()
    for listed in (house.ok("keys", "list"), house.ok("keys", "list", "--json")):
        assert "laptop" in listed.stdout
        assert secret not in listed.output


def test_a_revoked_key_says_so(house: House) -> None:
    house.ok("keys", "create", "laptop")
    assert "is revoked" in house.ok("keys", "revoke", "laptop").stdout
    assert "revoked" in house.ok("keys", "list").stdout


def test_a_name_that_is_taken_is_refused(house: House) -> None:
    house.ok("keys", "create", "laptop")
    assert "already" in house.refused("keys", "create", "laptop")


def test_an_unknown_key_cannot_be_revoked(house: House) -> None:
    house.ok("keys", "create", "laptop")
    assert "keys list" in house.refused("keys", "revoke", "phone")


def test_an_unknown_scope_is_wrong_usage(house: House) -> None:
    result = house.run("keys", "create", "laptop", "--scope", "root")
    assert result.exit_code == 2
    assert "predict" in result.stderr
