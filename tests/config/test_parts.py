"""The parts of a mixture: any data option, the user's own included, with a path of any characters."""

from pathlib import Path

import pytest

from clip_lightning.config import compose
from clip_lightning.data.layouts.mixture import build_mixture
from clip_lightning.errors import UserError
from tests.support.small_data import jpeg

OTHERS = ["data=mixture", "model=vit_b32", "compute=openclip_cc12m"]


@pytest.mark.slow
def test_a_part_may_be_the_users_own_option_and_have_any_path(tmp_path: Path) -> None:
    folder = tmp_path / "dé, {1}'s"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
        (folder / f"{number}.txt").write_text(f"picture {number}")
    (tmp_path / "conf/data").mkdir(parents=True)
    (tmp_path / "conf/data/mine.yaml").write_text(
        f'name: mine\nkind: folder\npath: "{folder}"\nnum_samples: 3\nimage_keys: [jpg]\n'
    )
    paths = f'data.mixture_paths={{folder: "{folder}"}}'
    arguments = [f"--config-dir={tmp_path}/conf", "data.mixture={mine: 1.0, folder: 2.0}", paths]
    config = compose.load("train", [*arguments, *OTHERS])
    assert [part["path"] for part in config.data.parts.values()] == [str(folder), str(folder)]
    assert config.data.parts["mine"]["image_keys"] == ["jpg"]
    assert build_mixture(config.data).num_samples == 6
    # A frozen config is read without the user's folder.
    (tmp_path / "config.yaml").write_text(compose.dump(config))
    again = compose.read(tmp_path / "config.yaml")
    assert again == config
    assert build_mixture(again.data).captions(4) == ["picture 1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("data.mixture={foldre: 1.0}", "did you mean folder?"),
        ("data.mixture={mixture: 1.0}", "which is a mixture itself"),
        ("data.mixture={folder: 1.0}", "data.mixture_paths.folder is not set"),
        ("data.parts={folder: {path: x}}", "data.parts is filled in"),
    ],
)
def test_a_part_that_cannot_be_read_is_refused(setting: str, key: str) -> None:
    with pytest.raises(UserError, match=key):
        compose.load("train", [setting, *OTHERS])
