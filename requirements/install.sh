#!/bin/sh
# Fill a virtual environment from a lock, every package checked against its hash.
#
#   requirements/install.sh VENV LOCK PACKAGE...
#
# PACKAGE comes last, without its dependencies: "-e ." or a wheel. The setuptools that the lock brought builds it
# (--no-build-isolation), so nothing unhashed is fetched and a repeat needs no network.
# uv does the work where it can be had, being three times faster; plain pip does it otherwise.
# PYTHON names the interpreter. Where packages come from is up to pip's and uv's own settings.
set -eu
cd "$(dirname "$0")/.."
case $1 in /*) venv=$1 ;; *) venv=$PWD/$1 ;; esac
lock=$2
shift 2
start=$(date +%s)
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf 'setup: %-66s %3d s\n' "$1" $(($(date +%s) - start)); }
fail() { printf 'setup: %s\n' "$@" >&2; exit 1; }

has() { "$python" -c "import $1" >/dev/null 2>&1; }

# Prints the interpreter behind a name, which may be a shim or another virtual environment, if it is new enough.
interpreter() {
    "$1" -c 'import sys; sys.version_info < (3, 11) and sys.exit(1); print(getattr(sys, "_base_executable", sys.executable))' \
        2>/dev/null
}

find_python() {
    useless=
    for name in ${PYTHON:-python3.14 python3.13 python3.12 python3.11 python3}; do
        python=$(interpreter "$name") || continue
        if has pip || has ensurepip || command -v uv >/dev/null; then return; fi
        useless=$python
    done
    if [ -n "$useless" ]; then
        fail "$useless cannot fill a virtual environment, for it has neither pip nor ensurepip." \
            "Debian and Ubuntu keep them apart: apt-get install python3-venv"
    elif [ -n "${PYTHON-}" ]; then
        fail "PYTHON=$PYTHON is no Python 3.11 or newer that runs."
    else
        fail "no Python 3.11 or newer was found." \
            "Install one (apt-get install python3 python3-venv, brew install python3)" \
            "or name one: make setup PYTHON=/path/to/python3"
    fi
}

# An outer pip fills a virtual environment from outside, which saves the seconds that ensurepip takes.
new_venv() { if has pip; then "$python" -m venv --clear --without-pip "$1"; else "$python" -m venv --clear "$1"; fi; }
pip_in() {
    target=$1/bin/python
    shift
    if has pip; then "$python" -m pip --python "$target" "$@"; else "$target" -m pip "$@"; fi
}

find_uv() {
    uv=$(command -v uv) && return
    uv=$PWD/.tools/uv/bin/uv
    if cmp -s requirements/uv.lock .tools/uv/uv.lock && "$uv" --version >/dev/null 2>&1; then return; fi
    new_venv .tools/uv && pip_in .tools/uv install --quiet --require-hashes -r requirements/uv.lock &&
        cp requirements/uv.lock .tools/uv/uv.lock
}

# uv reads none of pip's settings: where only pip was told about indexes, say the same to uv.
borrow_pip_settings() {
    if env | grep -Eq '^UV_(DEFAULT_INDEX|EXTRA_INDEX_URL|INDEX|CONFIG_FILE|FIND_LINKS|NO_INDEX)'; then return; fi
    asked=$python
    has pip || asked=.tools/uv/bin/python
    eval "$("$asked" -m pip config list 2>/dev/null | "$python" requirements/pip_settings.py)"
}

# A folder that was moved leaves scripts that point to where it was.
still_good() { interpreter "$venv/bin/python" >/dev/null && grep -qsF "$venv" "$venv/bin/activate"; }

locked_already() { cmp -s "$lock" "$venv/installed.lock"; }
note_locked() {
    cp "$lock" "$venv/installed.lock"
    say "installed what $lock pins, each hash checked"
}

with_uv() {
    borrow_pip_settings
    mkdir -p "$("$uv" cache dir)" 2>/dev/null || export UV_CACHE_DIR="$PWD/.tools/cache"
    still_good || "$uv" --quiet venv --clear --python "$python" "$venv" || return
    if ! locked_already; then
        "$uv" --quiet pip sync --python "$venv/bin/python" --require-hashes "$lock" || return
        note_locked
    fi
    "$uv" --quiet pip install --python "$venv/bin/python" --no-deps --no-build-isolation "$@"
}

with_pip() {
    still_good || new_venv "$venv"
    if ! locked_already; then
        pip_in "$venv" install --quiet --no-compile --require-hashes -r "$lock"
        note_locked
    fi
    pip_in "$venv" install --quiet --no-deps --no-build-isolation "$@"
}

find_python
say "using $("$python" --version) at $python"
if find_uv; then
    say "using $("$uv" --version | cut -d' ' -f1,2)"
    with_uv "$@" || { say "uv failed, going on with pip"; with_pip "$@"; }
else
    say "uv is not to be had, going on with pip"
    with_pip "$@"
fi
say "${venv##*/} is ready"
