#!/bin/bash
# A program written for Ray, unchanged: no ray start, no ports, no sleep.
#
#   sbatch examples/slurm/ray.sh
#
#SBATCH --job-name=ray
#SBATCH --nodes=2 --ntasks-per-node=1 --cpus-per-task=2
#SBATCH --time=10:00
#SBATCH --output=ray-%j.log --open-mode=append

# module load python/3.11; source ~/venvs/work/bin/activate
launcher run --as-ray -- python3 examples/ray/pi_progress.py
