#!/usr/bin/env bash
set -euo pipefail

if (($# < 2)); then
  cat >&2 <<'USAGE'
usage: tools/dist_train.sh CONFIG N [args of tools/train.py...]

Trains CONFIG with N processes on this node: a GPU each, or on the CPU where there is none.

Environment:
  NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1   several nodes: run this once on each
  PORT      the master's; by default one derived from the process id, 29500 with several nodes
  PYTHON    the interpreter; by default the one in .venv, else python
USAGE
  exit 2
fi

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=tools/_launch.sh
source "$repo/tools/_launch.sh"
torchrun "$2" "$repo/tools/train.py" "$1" --launcher pytorch "${@:3}"
