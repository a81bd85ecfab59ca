#!/bin/bash
# A training on two nodes. What torchrun would set is set (RANK, WORLD_SIZE, MASTER_ADDR ...).
#
#   sbatch examples/slurm/train.sh
#
#SBATCH --job-name=train
#SBATCH --nodes=2 --ntasks-per-node=1 --cpus-per-task=2
#SBATCH --time=10:00
#SBATCH --output=train-%j.log --open-mode=append
## with GPUs: --gres=gpu:8 here, and `launcher train -n 16 --gpus 1` below

# module load python/3.11; source ~/venvs/work/bin/activate
launcher train -n 4 --cpus 1 examples/digits/train.py
