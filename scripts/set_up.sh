#!/usr/bin/env bash
# Makes .venv and installs Safelight into it. Called by the Makefile: set_up.sh EXTRAS STAMP, where EXTRAS is "" or "[dev]".
# Everything that can be missing on the machine is said with its remedy.
set -euo pipefail

extras=$1
stamp=$2
min_free_kb=$((3 * 1000 * 1000))

stop() {
  printf 'error: %s\n' "$1" >&2
  exit 1
}

is_usable() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' >/dev/null 2>&1
}

find_python() {
  if [ -n "${PYTHON:-}" ]; then
    is_usable "$PYTHON" || stop "$PYTHON is not a Python 3.11 to 3.14; name another one: make PYTHON=python3.12"
    echo "$PYTHON"
    return
  fi
  for candidate in python3 python3.13 python3.12 python3.11 python3.14; do
    if is_usable "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  stop "no Python 3.11 to 3.14 was found; install one (Debian, Ubuntu: apt install python3.12 python3.12-venv), or name it: make PYTHON=/path/to/python3"
}

make_venv() {
  local python
  python=$(find_python)
  "$python" -c 'import venv, ensurepip' >/dev/null 2>&1 ||
    stop "$python has no venv module; install it (Debian, Ubuntu: apt install python3-venv), or name another Python: make PYTHON=/path/to/python3"
  "$python" -m venv --clear .venv || stop "no virtual environment could be made in $PWD/.venv; the reason is above"
}

check_disk() {
  local free_kb
  free_kb=$(df -Pk . | awk 'NR == 2 { print $4 }')
  [ "$free_kb" -ge "$min_free_kb" ] ||
    stop "only $((free_kb / 1000)) MB are free in $PWD, and the packages need about $((min_free_kb / 1000)) MB; make room, or clone to another disk"
}

# The tests run over PostgreSQL as well, and skip that half where there is no server to start.
find_postgres() {
  if command -v postgres >/dev/null || compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; then
    return 0
  fi
  if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    echo "installing PostgreSQL for the tests" >&2
    mkdir -p /etc/postgresql-common
    # Only the programs: the tests make a server of their own, and none is to run beside it.
    [ -e /etc/postgresql-common/createcluster.conf ] || echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
    if { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends postgresql; } >/dev/null 2>&1; then
      return 0
    fi
  fi
  echo "no PostgreSQL server was found, so its tests are skipped; install one: apt-get install postgresql" >&2
}

is_usable .venv/bin/python || { check_disk; make_venv; }
compgen -G '.venv/lib/python3*/site-packages/torch' >/dev/null || check_disk
echo "installing into .venv (minutes the first time, seconds after that)" >&2
# shellcheck disable=SC2086 # PIP_FLAGS is a list of words
.venv/bin/python -m pip install --quiet --disable-pip-version-check ${PIP_FLAGS:-} -c constraints.txt -e ".$extras" ||
  stop "the packages could not be installed; pip says why above. Without a network, give pip a folder of wheels: make PIP_FLAGS='--no-index --find-links DIR'. If /tmp is full: TMPDIR=/other/folder make"
[ "$extras" = "[dev]" ] && find_postgres
touch "$stamp"
