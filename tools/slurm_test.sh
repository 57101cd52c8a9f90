#!/usr/bin/env bash
#SBATCH --open-mode=append
set -euo pipefail

if (($# < 4)); then
  cat >&2 <<'USAGE'
usage: tools/slurm_test.sh PARTITION JOB CONFIG CHECKPOINT [args of tools/test.py...]

Tests CHECKPOINT under CONFIG with one Slurm task per GPU. Run directly it asks for an allocation and waits; under
sbatch it uses the allocation that it is given. The environment variables are those of tools/slurm_train.sh.
USAGE
  exit 2
fi

# sbatch runs a copy of this script in a spool folder: the job's own record knows where it came from.
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ ! -f $repo/tools/_launch.sh && -n ${SLURM_JOB_ID:-} ]]; then
  script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p') || script=
  repo=${script%/tools/slurm_test.sh*}
  if [[ ! -f $repo/tools/_launch.sh ]]; then repo=${SLURM_SUBMIT_DIR:-$PWD}; fi
fi
if [[ ! -f $repo/tools/_launch.sh ]]; then
  echo "${0##*/}: no tools/_launch.sh in $repo: submit the job from the root of the lckd_mm repository" >&2
  exit 1
fi
# shellcheck source=tools/_launch.sh
source "$repo/tools/_launch.sh"

slurm_run "$1" "$2" "$repo/tools/test.py" "$3" "$4" --launcher slurm "${@:5}"
