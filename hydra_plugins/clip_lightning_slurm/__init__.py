"""hydra/launcher=slurm: Hydra takes launchers from this namespace only; the work is `clip_lightning.slurm.submit`'s."""
