#!/usr/bin/env bash
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

if (($# < 4)); then
  cat >&2 <<'USAGE'
usage: tools/slurm_train.sh PARTITION JOB CONFIG WORK_DIR [args of tools/train.py...]
       sbatch --requeue -p PARTITION -n 8 --gres=gpu:8 -c 5 tools/slurm_train.sh PARTITION JOB CONFIG WORK_DIR [args...]

Trains CONFIG with one Slurm task per GPU. Run directly it asks for an allocation and waits; under sbatch it uses the
allocation that it is given (PARTITION says nothing there), and after a requeue it goes on from the last checkpoint.

Environment:
  GPUS=8            tasks in all
  GPUS_PER_NODE=8   0 asks for no GPU: it trains on the CPU, all tasks on one node
  TASKS_PER_NODE    by default GPUS_PER_NODE, or GPUS without GPUs
  CPUS_PER_TASK=5
  SRUN_ARGS         more arguments of srun, separated by spaces
  MASTER_PORT       by default derived from the job's id
  PYTHON            the interpreter; by default the one in .venv, else python
Inside an allocation only those that are set count, and sbatch does not read them: give it its sizes as above.
USAGE
  exit 2
fi

# sbatch runs a copy of this script in a spool folder: the job's own record knows where it came from.
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ ! -f $repo/tools/_launch.sh && -n ${SLURM_JOB_ID:-} ]]; then
  script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p') || script=
  repo=${script%/tools/slurm_train.sh*}
  if [[ ! -f $repo/tools/_launch.sh ]]; then repo=${SLURM_SUBMIT_DIR:-$PWD}; fi
fi
if [[ ! -f $repo/tools/_launch.sh ]]; then
  echo "${0##*/}: no tools/_launch.sh in $repo: submit the job from the root of the lckd_mm repository" >&2
  exit 1
fi
# shellcheck source=tools/_launch.sh
source "$repo/tools/_launch.sh"

partition=$1 job=$2 config=$3 work_dir=$4
shift 4
if ((${SLURM_RESTART_COUNT:-0} > 0)); then
  # A checkpoint that the job was first told to resume from counts only until the job has saved one of its own.
  if [[ " $*" != *" --resume"* || -f $work_dir/last_checkpoint ]]; then set -- "$@" --resume; fi
fi
slurm_run "$partition" "$job" "$repo/tools/train.py" "$config" --work-dir="$work_dir" --launcher slurm "$@"
