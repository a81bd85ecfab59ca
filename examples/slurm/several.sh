#!/bin/bash
# Several things at a time in one allocation, each with its part of the nodes' cores.
#
#   sbatch examples/slurm/several.sh
#
#SBATCH --job-name=several
#SBATCH --nodes=2 --ntasks-per-node=1 --cpus-per-task=2
#SBATCH --time=10:00
#SBATCH --output=several-%j.log --open-mode=append

launcher run --array 0-9 --limit cpu=2 -- sh -c 'echo left $LAUNCHER_TASK_INDEX' &
left=$!
launcher run --array 0-9 --limit cpu=2 -- sh -c 'echo right $LAUNCHER_TASK_INDEX' &
right=$!
wait $left && wait $right # the script's exit code says whether both were right
