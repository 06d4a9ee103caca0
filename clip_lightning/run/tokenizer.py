"""The tokenizer of a training run: made at the first start, read from the run's directory at every later one."""

from pathlib import Path

from clip_lightning.config.foreign import sources
from clip_lightning.config.schema import Config
from clip_lightning.data.datamodule import ContrastiveDataModule
from clip_lightning.errors import UserError
from clip_lightning.tokenizer import Tokenizer, build_tokenizer, files
from clip_lightning.tokenizer.trained import FILE_NAME


def prepare_tokenizer(config: Config, folder: Path, datamodule: ContrastiveDataModule) -> Tokenizer:
    """The tokenizer in `folder`, which the first start writes.

    A student uses the one that its teacher has trained, and weights of a run the one that this run has trained.

    Raises:
        UserError: the tokenizer cannot be had, its files have changed, or it is not the teacher's.
    """
    text = config.model.text
    is_trained = text.tokenizer.kind == "trained"
    if is_trained and config.loss.teacher:
        teachers = Path(config.loss.teacher) / "tokenizer" / FILE_NAME
        if not files.is_saved(folder):
            files.save(text, folder, None, teachers)
        elif (folder / FILE_NAME).read_bytes() != teachers.read_bytes():
            raise UserError(
                f"{folder / FILE_NAME} is not the tokenizer of loss.teacher ({teachers}); start over with fresh=true"
            )
    elif is_trained and config.model.pretrained is not None and not files.is_saved(folder):
        own = sources.find(config.model.pretrained).folder
        if own is not None and (own / "tokenizer" / FILE_NAME).is_file():  # what the weights were trained with
            files.save(text, folder, None, own / "tokenizer" / FILE_NAME)
    needs_captions = is_trained and not files.is_saved(folder)
    captions = datamodule.tokenizer_captions(text.tokenizer.vocab_size) if needs_captions else None
    return build_tokenizer(text, folder, captions)
