"""The baseline of an ImageNet ResNet-50: a random one, saved as torchvision and timm save theirs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from clip_lightning.errors import UserError
from clip_lightning.evaluation.suite.names import imagenet_names
from clip_lightning.evaluation.tasks import ZeroShotTask
from clip_lightning.records import read_records
from experiments.figures import resnet50
from experiments.figures.run_tables import read_runs
from tests.support.small_data import jpeg, write_tar


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights of one network as torchvision's .pth, as timm's .safetensors and under `state_dict`."""
    torchvision = pytest.importorskip("torchvision")
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    state = torchvision.models.resnet50(weights=None).state_dict()
    torch.save(state, folder / "resnet50.pth")
    torch.save({"epoch": 3, "state_dict": state}, folder / "checkpoint.pth")
    save_file(dict(state), folder / "model.safetensors")
    return folder


def task_of(names: list[str], num: int = 4) -> ZeroShotTask:
    return ZeroShotTask("set", names, ["a {c}"], np.arange(num) % len(names), jpeg)


@pytest.mark.slow
def test_each_file_gives_torchvisions_own_features_and_classes(weights: Path) -> None:
    from torchvision.models import resnet50 as reference

    pixels = torch.rand(2, 3, 64, 64)
    network = reference(weights=None).eval()
    network.load_state_dict(torch.load(weights / "resnet50.pth", weights_only=True))
    with torch.no_grad():
        expected = network(pixels)
        for name in ("resnet50.pth", "checkpoint.pth", "model.safetensors"):
            model = resnet50.load_resnet50(weights / name)
            features = model.forward_head(model.forward_features(pixels), pre_logits=True)
            assert features.shape == (2, 2048)
            torch.testing.assert_close(model.fc(features), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_folder_gets_a_probe_and_the_classifiers_score(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for split, count in (("train", 12), ("test", 6)):
        members = [(f"{k}.{end}", content) for k in range(count)
                   for end, content in (("jpg", jpeg(k)), ("cls", str(k % 2).encode()))]  # fmt: skip
        write_tar(folder / split / "0.tar", members)
        (folder / split / "nshards.txt").write_text("1")
    (folder / "classnames.txt").write_text("goldfish\nsunglasses\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    out = tmp_path / "resnet50"
    assert resnet50.main([str(weights / "resnet50.pth"), "--folders", str(folder), "--out", str(out)]) == 0
    records = {record.what: record for record in read_records(out / "metrics.jsonl")}
    assert records.keys() == {"linear_probe_acc1", "supervised_acc1"}
    assert {record.n for record in records.values()} == {6}
    assert set(read_runs([out]).method) == {"linear_probe", "supervised"}


def test_classes_are_found_among_imagenets_by_name() -> None:
    names = imagenet_names().classnames
    assert resnet50.imagenet_columns(task_of(["goldfish", "tench"])) == [[1], [0]]
    (both,) = resnet50.imagenet_columns(task_of(["sunglasses"])) or [[]]
    assert [names[k] for k in both] == ["sunglasses", "sunglasses"]
    assert resnet50.imagenet_columns(task_of(names)) == [[k] for k in range(1000)]
    assert resnet50.imagenet_columns(task_of(["goldfish", "a class of another set"])) is None


def test_other_files_and_empty_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is nothing to measure"):
        resnet50.main([str(tmp_path / "none.pth")])
    with pytest.raises(UserError, match="cannot be read"):
        resnet50.main([str(tmp_path / "none.pth"), "--tasks", "shape"])
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="does not hold the weights of a ResNet-50"):
        resnet50.load_resnet50(tmp_path / "other.pth")
