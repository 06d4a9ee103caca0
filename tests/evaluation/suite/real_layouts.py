"""Official metadata of the evaluation sets (../shared/data/evalsets) with drawn images under the official names.

A builder writes one set below a root and returns what its images are: `listed` where an official list names each of
them, `drawn` where names or numbers follow the documented layout without a list.
"""

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from clip_lightning.evaluation.suite.names import timm_list
from tests.evaluation.suite.array_layouts import pickled
from tests.evaluation.suite.drawing import drawn, write
from tests.evaluation.suite.layouts import kitti_object
from tests.support.small_folder import write_tar

EVALSETS = Path(__file__).parents[4] / "shared" / "data" / "evalsets"
LINKS_PER_FILE = 30_000  # a file system allows 65,000


def link(paths: Iterable[Path], suffix: str = "") -> None:
    """Hard links of drawn pictures: a few bytes each, however many."""
    sources: dict[str, Path] = {}
    for number, path in enumerate(paths):
        kind = suffix or path.suffix[1:].lower()
        if number % LINKS_PER_FILE == 0:
            sources = {}
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True)
        if kind in sources:
            os.link(sources[kind], path)
        else:
            path.write_bytes(drawn(kind))
            sources[kind] = path


def use(root: Path, *names: str) -> None:
    """Copies official files, named relative to the collection, to the same place below the root."""
    for name in names:
        source, target = EVALSETS / name, root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, target)


def lines(name: str) -> list[str]:
    return [line.strip() for line in (EVALSETS / name).read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def food101(root: Path) -> str:
    use(root, "food101/food-101/meta")
    link(root / "food101/food-101/images" / f"{name}.jpg" for name in lines("food101/food-101/meta/test.txt"))
    return "listed"


def sun397(root: Path) -> str:
    use(root, "sun397/Partitions")
    link(root / "sun397" / name[1:] for name in lines("sun397/Partitions/Testing_01.txt"))
    return "listed"


def youtube_bb(root: Path) -> str:
    base = root / "youtube_bb"
    shutil.copytree(EVALSETS / "youtube_bb_robust" / "testbed_metadata", base / "testbed_metadata")
    content = json.loads((base / "testbed_metadata" / "anchor_labels.json").read_text(encoding="utf-8"))
    names = {"/".join(one["key"].split("/")[-2:]) for one in content["annotations"]}
    link(base / name for name in sorted(names))
    return "listed"


def imagenet_vid(root: Path) -> str:
    base = root / "imagenet_vid"
    for name in ("testbed_metadata", "ILSVRC2015_devkit"):
        shutil.copytree(EVALSETS / "imagenet_vid_robust" / name, base / name)
    link((base / name for name in json.loads((base / "testbed_metadata/labels.json").read_text())), "jpeg")
    return "listed"


def eurosat(root: Path) -> str:
    sizes = dict.fromkeys(lines("eurosat/tfds_labels.txt"), 3000)
    sizes |= dict.fromkeys(("Highway", "Industrial", "PermanentCrop", "River"), 2500) | {"Pasture": 2000}
    base = root / "eurosat" / "2750"
    link(base / name / f"{name}_{k + 1}.jpg" for name, number in sizes.items() for k in range(number))
    return "drawn"


def one_per_synset(folder: str, synsets: str) -> Callable[[Path], str]:
    def build(root: Path) -> str:
        link((root / folder / wnid / "sketch_0.JPEG" for wnid in timm_list(synsets)), "jpeg")
        return "drawn, one per class"

    return build


def imagenet_a(root: Path) -> str:
    names = lines("imagenet_a/imagenet_a_synsets.txt")
    link(root / "imagenet-a" / wnid / "0.000116_digital clock _ digital clock_0.865662.jpg" for wnid in names)
    write(root / "imagenet-a" / "README.txt", "read me")
    return "drawn, one per class"


def imagenet_r(root: Path) -> str:
    link(root / "imagenet-r" / wnid / "art_0.jpg" for wnid in lines("imagenet_r/imagenet_r_synsets.txt"))
    return "drawn, one per class"


def imagenet_v2(root: Path) -> str:
    content = json.loads((EVALSETS / "imagenet_v2/imagenetv2-b-33.json").read_text(encoding="utf-8"))
    index = {wnid: k for k, wnid in enumerate(timm_list("imagenet_synsets.txt"))}
    base = root / "imagenetv2-matched-frequency-format-val"
    link(base / str(index[wnid]) / f"{name}.jpeg" for name, wnid in content["image_filenames"])
    return "listed"


def imagenet(root: Path) -> str:
    use(root, "imagenet/ILSVRC2015_devkit")
    link((root / "imagenet" / "val" / f"ILSVRC2012_val_{k + 1:08d}.JPEG" for k in range(50_000)), "jpeg")
    return "listed"


def cifar(name: str, folder: str, meta: str, batch: str, labels: str, classes: int) -> Callable[[Path], str]:
    def build(root: Path) -> str:
        use(root, f"{name}/{folder}/{meta}")
        content = {"data": np.zeros((10_000, 3072), np.uint8), labels: [k % classes for k in range(10_000)]}
        pickled(root / name / folder / batch, content)
        return "drawn"

    return build


def clevr_count(root: Path) -> str:
    use(root, "clevr/CLEVR_v1.0")
    path = root / "clevr" / "CLEVR_v1.0" / "scenes" / "CLEVR_val_scenes.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    (scene,) = content["scenes"]
    scene["image_filename"] = next((root / "clevr" / "CLEVR_v1.0" / "images" / "val").glob("*.png")).name
    path.write_text(json.dumps(content), encoding="utf-8")
    return "one real scene"


def fer2013(root: Path) -> str:
    header, first, *_ = lines("fer2013/fer2013/fer2013.csv")
    face = ",".join(first.split(",")[1:2])
    rows = "".join(f"{k % 7},{face},PrivateTest\n" for k in range(3589))
    write(root / "fer2013" / "fer2013.csv", f"{header}\n{first}\n{rows}")
    return "drawn"


def ucf101(root: Path) -> str:
    use(root, "ucf101/ucfTrainTestlist")
    base = root / "ucf101" / "UCF-101"
    link(
        base / f"{name.split()[0].removesuffix('.avi')}.jpg" for name in lines("ucf101/ucfTrainTestlist/testlist01.txt")
    )
    return "listed"


def kinetics700(root: Path) -> str:
    use(root, "kinetics700/kinetics700/validate.csv")
    text = (EVALSETS / "kinetics700/kinetics700/validate.csv").read_text(encoding="utf-8")
    base = root / "kinetics700" / "kinetics700" / "val"
    rows = list(csv.DictReader(io.StringIO(text)))
    link(
        base / row["label"] / f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}.jpg"
        for row in rows
    )
    return "listed"


def caltech101(root: Path) -> str:
    names = [line.split("\t")[0] for line in lines("caltech101/101_ObjectCategories.filelist.tsv")]
    link((root / "caltech101" / name for name in names), "jpg")
    return "listed"


def oxford_pets(root: Path) -> str:
    use(root, "oxford_pets/annotations")
    link(
        root / "oxford_pets" / "images" / f"{line.split()[0]}.jpg" for line in lines("oxford_pets/annotations/test.txt")
    )
    return "listed"


def fgvc_aircraft(root: Path) -> str:
    base = "fgvc_aircraft/fgvc-aircraft-2013b/data"
    use(root, base)
    link(root / base / "images" / f"{line.split()[0]}.jpg" for line in lines(f"{base}/images_variant_test.txt"))
    return "listed"


def country211(root: Path) -> str:
    codes = [line.split("\t")[1] for line in lines("country211/DERIVED_folder_codes.tsv")]
    codes = [code for code in codes if len(code) == 2]
    link(root / "country211" / "test" / code / f"{k}_1.0_2.0.jpg" for code in codes for k in range(100))
    return "drawn"


def resisc45(root: Path) -> str:
    base = root / "resisc45" / "NWPU-RESISC45"
    names = lines("resisc45/tfds_labels.txt")
    link(base / name / f"{name}_{k + 1:03d}.jpg" for name in names for k in range(700))
    return "drawn"


def stanford_cars(root: Path) -> str:
    use(root, "stanford_cars/devkit", "stanford_cars/cars_test_annos_withlabels.mat")
    link(root / "stanford_cars" / "cars_test" / f"{k + 1:05d}.jpg" for k in range(8041))
    return "listed"


def flowers102(root: Path) -> str:
    use(root, "flowers102/imagelabels.mat", "flowers102/setid.mat")
    link(root / "flowers102" / "jpg" / f"image_{k + 1:05d}.jpg" for k in range(8189))
    return "listed"


def birdsnap(root: Path) -> str:
    use(root, "birdsnap/birdsnap/species.txt", "birdsnap/birdsnap/test_images.txt")
    base = root / "birdsnap" / "birdsnap" / "download" / "images"
    link(base / name for name in lines("birdsnap/birdsnap/test_images.txt")[1:])
    return "listed"


def ayahoo(root: Path) -> str:
    use(root, "ayahoo/attribute_data")
    names = {line.split()[0] for line in lines("ayahoo/attribute_data/ayahoo_test.txt")}
    link(root / "ayahoo" / "ayahoo_test_images" / name for name in names)
    return "listed"


def objectnet(root: Path) -> str:
    use(root, "objectnet/objectnet-1.0/mappings")
    base = root / "objectnet" / "objectnet-1.0"
    names = json.loads((base / "mappings" / "folder_to_objectnet_label.json").read_text(encoding="utf-8"))
    link(base / "images" / name / "0.png" for name in names)
    return "drawn, one per folder"


def dtd(root: Path) -> str:
    names = [f"{name}/{name}_{k + 1:04d}.jpg" for name in lines("dtd/tfds_dtd_key_attributes.txt") for k in range(40)]
    write(root / "dtd" / "dtd" / "labels" / "test1.txt", "\n".join(names))
    link(root / "dtd" / "dtd" / "images" / name for name in names)
    return "drawn"


def voc2007(root: Path) -> str:
    base = "VOCdevkit/VOC2007"
    shutil.copytree(EVALSETS / "voc2007" / base / "ImageSets", root / base / "ImageSets")
    link(root / base / "JPEGImages" / f"{name}.jpg" for name in lines(f"voc2007/{base}/ImageSets/Main/test.txt"))
    return "listed"


def mnist(root: Path) -> str:
    use(root, "mnist/t10k-images-idx3-ubyte.gz", "mnist/t10k-labels-idx1-ubyte.gz")
    return "real"


def hateful_memes(root: Path) -> str:
    first = json.loads(lines("hateful_memes/FORMAT_SAMPLE_train.jsonl")[0])
    rows = [first | {"img": f"img/{k:05d}.png", "label": k % 2} for k in range(500)]
    write(root / "hateful_memes" / "dev_seen.jsonl", "\n".join(json.dumps(row).replace("/", "\\/") for row in rows))
    link(root / "hateful_memes" / str(row["img"]) for row in rows)
    return "drawn"


def rendered_sst2(root: Path) -> str:
    base = root / "rendered-sst2" / "test"
    link(base / name / f"{k}.png" for name, number in (("negative", 912), ("positive", 909)) for k in range(number))
    return "drawn"


def gtsrb(root: Path) -> str:
    use(root, "gtsrb/GT-final_test.csv")
    names = [line.split(";")[0] for line in lines("gtsrb/GT-final_test.csv")[1:]]
    link(root / "gtsrb" / "GTSRB" / "Final_Test" / "Images" / name for name in names)
    return "listed"


def stl10(root: Path) -> str:
    use(root, "stl10/stl10_binary/class_names.txt")
    base = root / "stl10" / "stl10_binary"
    with (base / "test_X.bin").open("wb") as file:
        file.truncate(8000 * 3 * 96 * 96)  # takes no room on disk
    (base / "test_y.bin").write_bytes(bytes(1 + k % 10 for k in range(8000)))
    return "drawn"


def kitti_distance(root: Path) -> str:
    base = root / "kitti" / "training"
    names = lines("kitti/DERIVED_vtab_test_ids.txt")
    for k, name in enumerate(names):
        write(base / "label_2" / f"{name}.txt", kitti_object("Car", 5.0 + k % 40) + "\n")
    link(base / "image_2" / f"{name}.png" for name in names)
    return "listed, labels drawn"


def pcam(root: Path) -> str:
    folder = root / "wds_vtab-pcam"
    samples = {
        f"s{k:07d}.{kind}": content
        for k in range(32)
        for kind, content in (("cls", b"%d" % (k % 2)), ("webp", drawn("webp")))
    }
    (folder / "test").mkdir(parents=True)
    write_tar(folder / "test" / "0.tar", samples)
    return "drawn, as tars (HDF5: test_layouts)"


def svhn_numbers(root: Path) -> str:
    base = root / "svhn_numbers"
    numbers = [str(number) for number in (158, 7, 1999, 0)]
    write(base / "test.csv", "path,label\n" + "".join(f"{k}.png,{number}\n" for k, number in enumerate(numbers)))
    link(base / f"{k}.png" for k in range(len(numbers)))
    return "drawn, as a list (HDF5: test_layouts)"


def sun723(root: Path) -> str:
    link(root / "sun723" / "test" / f"class_{k}" / "0.jpg" for k in range(723))
    return "drawn"


BUILDERS: dict[str, Callable[[Path], str]] = {
    "food101": food101,
    "sun397": sun397,
    "youtube_bb": youtube_bb,
    "eurosat": eurosat,
    "imagenet_a": imagenet_a,
    "cifar10": cifar("cifar10", "cifar-10-batches-py", "batches.meta", "test_batch", "labels", 10),
    "clevr_count": clevr_count,
    "fer2013": fer2013,
    "ucf101": ucf101,
    "caltech101": caltech101,
    "imagenet_r": imagenet_r,
    "oxford_pets": oxford_pets,
    "imagenet_v2": imagenet_v2,
    "cifar100": cifar("cifar100", "cifar-100-python", "meta", "test", "fine_labels", 100),
    "fgvc_aircraft": fgvc_aircraft,
    "country211": country211,
    "resisc45": resisc45,
    "stanford_cars": stanford_cars,
    "sun723": sun723,
    "pcam": pcam,
    "svhn_numbers": svhn_numbers,
    "kinetics700": kinetics700,
    "flowers102": flowers102,
    "imagenet": imagenet,
    "birdsnap": birdsnap,
    "ayahoo": ayahoo,
    "objectnet": objectnet,
    "imagenet_blurry": one_per_synset("imagenet-c/gaussian_blur/3", "imagenet_synsets.txt"),
    "dtd": dtd,
    "voc2007": voc2007,
    "mnist": mnist,
    "imagenet_vid": imagenet_vid,
    "imagenet_sketch": one_per_synset("sketch", "imagenet_synsets.txt"),
    "hateful_memes": hateful_memes,
    "rendered_sst2": rendered_sst2,
    "gtsrb": gtsrb,
    "stl10": stl10,
    "kitti_distance": kitti_distance,
}
