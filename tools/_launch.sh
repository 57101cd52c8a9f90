# shellcheck shell=bash disable=SC2154
# What the launch scripts share; they source it with $repo set to the repository's root, and it launches with the
# repository's own interpreter and package. Knobs are environment variables, see each script.

python=${PYTHON:-}
if [[ -z $python ]]; then
  if [[ -x $repo/.venv/bin/python ]]; then python=$repo/.venv/bin/python; else python=python; fi
fi
export PYTHONPATH="$repo${PYTHONPATH:+:$PYTHONPATH}"

# torchrun N SCRIPT [args...]: N processes on this node.
torchrun() {
  local processes=$1
  shift
  if [[ ! $processes =~ ^[1-9][0-9]*$ ]]; then
    echo "${0##*/}: the number of processes is '$processes', and a whole number from 1 on is expected" >&2
    exit 2
  fi
  # Jobs that share a node need ports of their own; nodes that share a job need the same one.
  local port=29500
  if [[ ${NNODES:-1} == 1 ]]; then port=$((20000 + $$ % 10000)); fi
  exec "$python" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-$port}" \
    --nproc_per_node="$processes" "$@"
}

# slurm_run PARTITION JOB SCRIPT [args...]: one task per process. Outside an allocation the knobs, or their defaults, say
# how large it is to be; inside one (sbatch, salloc) its own sizes hold, and only knobs that are set change them.
slurm_run() {
  local options=(--job-name="$2") more=()
  local gpus=${GPUS:-} gpus_per_node=${GPUS_PER_NODE:-} tasks_per_node=${TASKS_PER_NODE:-} cpus=${CPUS_PER_TASK:-}
  if [[ -z ${SLURM_JOB_ID:-} ]]; then
    options=(-p "$1" "${options[@]}")
    gpus=${gpus:-8} gpus_per_node=${gpus_per_node:-8} cpus=${cpus:-5}
    tasks_per_node=${tasks_per_node:-$((0 < gpus_per_node && gpus_per_node < gpus ? gpus_per_node : gpus))}
  else
    cpus=${cpus:-${SLURM_CPUS_PER_TASK:-}} # srun no longer takes this one over from sbatch by itself
    if [[ $gpus_per_node != 0 && -z ${SLURM_GPUS_ON_NODE:-}${SLURM_JOB_GPUS:-}${CUDA_VISIBLE_DEVICES:-} ]]; then
      echo "${0##*/}: job $SLURM_JOB_ID seems to hold no GPU; GPUS_PER_NODE=0 says that it is meant to" >&2
    fi
  fi
  shift 2
  if [[ -n $gpus && -n $gpus_per_node ]] && ((gpus_per_node > gpus)); then gpus_per_node=$gpus; fi
  if ((${gpus_per_node:-0} > 0)); then options+=(--gres="gpu:$gpus_per_node"); fi
  if [[ -n $gpus ]]; then options+=(--ntasks="$gpus"); fi
  if [[ -n $tasks_per_node ]]; then options+=(--ntasks-per-node="$tasks_per_node"); fi
  if [[ -n $cpus ]]; then options+=(--cpus-per-task="$cpus"); fi
  read -ra more <<<"${SRUN_ARGS:-}"
  # All tasks of a job agree on a port that other jobs on the node do not use. Only inside the tasks is the job's id
  # known for sure.
  # shellcheck disable=SC2016  # expanded by the task's bash
  exec srun "${options[@]}" --kill-on-bad-exit=1 "${more[@]}" \
    bash -c 'export MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}; exec "$@"' task \
    "$python" -u "$@"
}
