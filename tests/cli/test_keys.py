from __future__ import annotations

import json
import math

import pytest
import sqlalchemy as sa

from safelight.errors import Unauthorized
from safelight.keys import Scope
from safelight.store.schema import keys

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


@pytest.mark.parametrize("days", ["36501", "9999999", "inf", "nan"])
def test_a_key_ends_within_a_hundred_years_or_never(house: House, days: str) -> None:
    result = house.run("keys", "create", "laptop", "--expires-days", days)
    assert result.exit_code and "36500" in result.stderr
    house.ok("keys", "create", "laptop", "--expires-days", "36500")
    assert "expires 21" in house.ok("keys", "list").stdout


@pytest.mark.parametrize("hours", ["8761", "1e9", "inf", "nan"])
def test_an_old_key_goes_on_for_a_year_at_most(house: House, hours: str) -> None:
    house.ok("keys", "create", "laptop")
    result = house.run("keys", "rotate", "laptop", "--overlap-hours", hours)
    assert result.exit_code and "8760" in result.stderr
    house.ok("keys", "rotate", "laptop", "--overlap-hours", "8760")
    assert "expires 20" in house.ok("keys", "list").stdout


def test_a_key_whose_end_no_calendar_has_is_listed(house: House) -> None:
    house.ok("keys", "create", "laptop")
    # As older releases stored it.
    far = sa.update(keys).values(expires_at=math.inf)
    house.store(lambda store: store._database.write(lambda connection: connection.execute(far).rowcount))
    assert "valid" in house.ok("keys", "list").stdout


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


def test_limits_are_set_one_by_one_and_taken_away(house: House) -> None:
    house.ok("keys", "create", "laptop")
    house.ok("keys", "limit", "laptop", "--requests-per-minute", "60", "--weight", "2", "--priority", "3")
    assert "requests_per_minute 60" in house.ok("keys", "limit", "laptop", "--images-per-day", "10").stdout
    shown = json.loads(house.ok("keys", "limit", "laptop", "--requests-per-minute", "0", "--json").stdout)
    assert (shown["requests_per_minute"], shown["images_per_day"]) == (None, 10)
    assert (shown["weight"], shown["priority"]) == (2.0, 3)
    assert "keys list" in house.refused("keys", "limit", "phone", "--weight", "1")


def test_a_rotated_key_goes_on_under_its_name_and_the_old_one_for_a_while(house: House) -> None:
    old = house.ok("keys", "create", "laptop").stdout.strip()
    new = house.ok("keys", "rotate", "laptop", "--overlap-hours", "1").stdout.strip()
    for secret in (old, new):
        house.store(lambda store, secret=secret: store.keys.authenticate(secret))
    assert house.store(lambda store: store.keys.authenticate(new)).name == "laptop"
    newest = house.ok("keys", "rotate", "laptop", "--overlap-hours", "0").stdout.strip()
    with pytest.raises(Unauthorized):
        house.store(lambda store: store.keys.authenticate(new))
    assert newest.startswith("sl_live_")


def test_usage_of_a_key_is_shown(house: House) -> None:
    house.ok("keys", "create", "laptop")
    assert "nothing" in house.ok("keys", "usage", "laptop", "--days", "7").stderr
    assert json.loads(house.ok("keys", "usage", "--json").stdout) == []
