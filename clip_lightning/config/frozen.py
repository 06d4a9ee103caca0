"""Configs as text: what a run's directory and a checkpoint hold."""

from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from clip_lightning.config.schema import Config
from clip_lightning.errors import UserError


def parse(text: str, schema: type = Config, *, source: str) -> Any:
    """A config from the text that `compose.dump` has made.

    Raises:
        UserError: the text is not valid YAML, or does not fit the schema; it names `source`.
    """
    if "${" in text:
        raise UserError(f"{source}: a frozen config holds no ${{...}}; it was not written by this project")
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(text)))
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise UserError(f"{source}: this config does not fit the schema ({first_line})") from error
