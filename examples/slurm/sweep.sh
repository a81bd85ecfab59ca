#!/bin/bash
# A search for the best learning rate; trials that are behind end early. What was found is
# in the log at the end: the table has every trial.
#
#   sbatch examples/slurm/sweep.sh
#
#SBATCH --job-name=sweep
#SBATCH --nodes=2 --ntasks-per-node=1 --cpus-per-task=2
#SBATCH --time=10:00
#SBATCH --output=sweep-%j.log --open-mode=append

# module load python/3.11; source ~/venvs/work/bin/activate
launcher sweep examples/digits/sweep.toml
