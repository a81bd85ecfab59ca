#!/bin/bash
# A thousand small pieces of work on all cores of two nodes, as one Slurm job.
#
#   sbatch examples/slurm/array.sh
#
#SBATCH --job-name=array
#SBATCH --nodes=2 --ntasks-per-node=1 --cpus-per-task=2
#SBATCH --time=10:00
#SBATCH --output=array-%j.log --open-mode=append

# Each piece finds its number in LAUNCHER_TASK_INDEX. One that fails is run again, twice at most.
launcher run --array 0-999 --cpus 0.5 --retry-failed 2 -- \
	sh -c 'n=$LAUNCHER_TASK_INDEX; echo "square of $n is $((n * n))"'
