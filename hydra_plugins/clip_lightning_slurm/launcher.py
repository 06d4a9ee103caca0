"""The launcher: each point of a sweep is prepared in this process, and then all are submitted as job arrays."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn


@dataclass
class SlurmLauncherConf:
    """`hydra/launcher=slurm`; the requests of a job are in `cluster.slurm`."""

    _target_: str = "hydra_plugins.clip_lightning_slurm.launcher.SlurmLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="slurm", node=SlurmLauncherConf, provider="clip_lightning")


class SlurmLauncher(BasicLauncher):
    """Iterates over the points as Hydra's own launcher does; each run decides that it is submitted."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submits the points; exits with a code when SLURM refuses them, since Hydra would print a traceback."""
        from clip_lightning.config.compose import print_error
        from clip_lightning.errors import UserError
        from clip_lightning.slurm import submit as slurm

        try:
            with slurm.gathered():
                return super().launch(job_overrides, initial_job_idx)
        except UserError as error:
            sys.exit(print_error(error))
