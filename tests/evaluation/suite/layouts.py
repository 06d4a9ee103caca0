"""Small data sets in their official layouts: each builder writes one and returns the class names of its images."""

import csv
import gzip
import io
import json
import pickle
import struct
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

KINDS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "ppm": "PPM", "gif": "GIF"}
Builder = Callable[[Path], Sequence[str] | Sequence[set[str]]]


@cache
def drawn(suffix: str, size: int = 8) -> bytes:
    """A picture with a red border of 2 pixels, encoded."""
    pixels = np.full((size, size, 3), 128, dtype=np.uint8)
    pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:] = ((255, 0, 0),) * 4
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, KINDS[suffix.lower()])
    return file.getvalue()


def draw(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(drawn(path.suffix[1:]))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


def food101(root: Path) -> Sequence[str]:
    base = root / "food-101"
    write(base / "meta" / "classes.txt", "apple_pie\nbaklava\n")
    write(base / "meta" / "test.txt", "baklava/1\napple_pie/2\napple_pie/3")  # no newline at the end, as officially
    draw(*(base / "images" / f"{name}.jpg" for name in ("baklava/1", "apple_pie/2", "apple_pie/3")))
    return ["baklava", "apple pie", "apple pie"]


def sun397(root: Path) -> Sequence[str]:
    base = root / "SUN397"
    write(base / "Partitions" / "ClassName.txt", "/a/abbey\n/a/apartment_building/outdoor\n")
    lines = ["/a/abbey/sun_1.jpg", "/a/apartment_building/outdoor/sun_2.jpg"]
    write(base / "Partitions" / "Testing_01.txt", "\n".join(lines) + "\n")
    draw(base / lines[0][1:])
    path = base / lines[1][1:]
    path.parent.mkdir(parents=True)
    path.write_bytes(drawn("png"))  # a PNG that is named .jpg, as officially in places
    return ["abbey", "apartment building outdoor"]


def youtube_bb(root: Path) -> Sequence[set[str]]:
    base, meta = root / "ytbb-robust", root / "ytbb-robust" / "ytbb-robust_metadata"
    classes = ["person", "bird", *(f"class {k}" for k in range(2, 22)), "none", "car"]
    write(meta / "ytbb_class_index.json", json.dumps({str(k): name for k, name in enumerate(classes)}))
    write(meta / "ytbb_robustness_test_anchors_full.csv", "ytid,time_ms,label\r\na_-b,100,0\r\nc,200,22\r\nd,300,1\r\n")
    labels = ["good", "unsure", "bad", *classes[:22], "none", "car"]
    anchors = [
        ("/home/x/ytbb/a_-b_100/frame-50.jpg", [0, 4]),
        ("c_200/frame-7.jpg", [0]),
        ("d_300/frame-9.jpg", [0, 2]),
    ]
    content = [{"key": key, "notes": "", "labels": found} for key, found in anchors]
    write(meta / "anchor_labels.json", json.dumps({"annotations": content, "labels": labels}))
    reviews = ["similar", "dissimilar", "bad-anchor"]
    pairs = [
        ("a_-b_100/frame-50.jpg,a_-b_100/frame-51.jpg", [0]),
        ("a_-b_100/frame-50.jpg,a_-b_100/frame-52.jpg", [1]),
        ("a_-b_100/frame-50.jpg,a_-b_100/frame-61.jpg", [0]),
    ]
    content = [{"key": key, "labels": found} for key, found in pairs]
    write(meta / "pmk_labels.json", json.dumps({"annotations": content, "labels": reviews}))
    write(meta / "rev_class_idx_map.json", json.dumps({"0": [981, 982], "23": [436]}))
    draw(
        *(base / f"{name}.jpg" for name in ("a_-b_100/frame-50", "a_-b_100/frame-51", "c_200/frame-7", "d_300/frame-9"))
    )
    return [{"person", "bird"}, {"person", "bird"}, {"car"}]


def imagenet_vid(root: Path) -> Sequence[set[str]]:
    base = root / "imagenet-vid-robust"
    write(base / "metadata" / "map_vid.txt", "n1 1 airplane\nn2 2 antelope\nn3 3 bear\n")
    frames = [f"val/ILSVRC2015_val_00000000/{k:06d}.JPEG" for k in range(3)]
    write(base / "metadata" / "labels.json", json.dumps({frames[0]: [0], frames[1]: [0, 2], frames[2]: [1]}))
    write(base / "metadata" / "pmsets.json", json.dumps({frames[1]: [frames[0]], frames[2]: []}))
    write(base / "metadata" / "rev_class_idx_map.json", json.dumps({"0": [404], "2": [294, 295]}))
    for frame in frames:
        (base / frame).parent.mkdir(parents=True, exist_ok=True)
        (base / frame).write_bytes(drawn("jpg"))
    return [{"airplane", "bear"}, {"airplane"}, {"antelope"}]


def folders(base: Path, images: dict[str, int], suffix: str = ".jpg") -> None:
    """A folder per class with so many images; beside them what official archives have and nobody reads."""
    for name, number in images.items():
        draw(*(base / name / f"{k}{suffix}" for k in range(number)))
        write(base / name / "._resource", "x")
    write(base / "README.txt", "read me")


def eurosat(root: Path) -> Sequence[str]:
    folders(root / "EuroSAT_RGB", {"SeaLake": 1, "AnnualCrop": 2})
    return ["annual crop land"] * 2 + ["lake or sea"]


def caltech101(root: Path) -> Sequence[str]:
    base = root / "caltech101" / "101_ObjectCategories"
    folders(base, {"BACKGROUND_Google": 1, "Faces": 1, "accordion": 1, "yin_yang": 1})
    (base / "BACKGROUND_Google" / "tmp").write_bytes(drawn("jpg"))
    return ["background", "off-center face", "accordion", "yin and yang symbol"]


def synsets(folder: str, images: dict[str, int]) -> Builder:
    def build(root: Path) -> Sequence[str]:
        folders(root / folder, images, ".JPEG")
        for path in (root / folder).rglob("*.JPEG"):
            path.write_bytes(drawn("jpg"))
        return [NAMES[wnid] for wnid, number in sorted(images.items()) for _ in range(number)]

    return build


NAMES = {"n01440764": "tench", "n01443537": "goldfish", "n01498041": "stingray", "n15075141": "toilet paper"}
KINDS["JPEG"] = KINDS["jpeg"]


def imagenet_v2(root: Path) -> Sequence[str]:
    folders(root / "imagenetv2-matched-frequency-format-val", {"0": 1, "10": 1, "2": 1}, ".jpeg")
    return ["tench", "great white shark", "brambling"]


def country211(root: Path) -> Sequence[str]:
    folders(root / "country211" / "test", {"AD": 1, "NA": 1, "XK": 1})
    return ["Andorra", "Namibia", "Kosovo"]


def resisc45(root: Path) -> Sequence[str]:
    folders(root / "NWPU-RESISC45", {"airplane": 1, "thermal_power_station": 1})
    return ["airplane", "thermal power station"]


def rendered_sst2(root: Path) -> Sequence[str]:
    folders(root / "rendered-sst2" / "test", {"positive": 1, "negative": 1}, ".png")
    return ["negative", "positive"]


def sun723(root: Path) -> Sequence[str]:
    folders(root / "sun723" / "test", {"kennel_indoor": 1, "abbey": 1})
    return ["abbey", "kennel indoor"]


def pickled(path: Path, content: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def rows() -> np.ndarray:
    """Two images [2, 3072], the second with a red plane of 255."""
    images = np.zeros((2, 3072), dtype=np.uint8)
    images[1, :1024] = 255
    return images


def cifar10(root: Path) -> Sequence[str]:
    base = root / "cifar-10-batches-py"
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    pickled(base / "batches.meta", {"label_names": names})
    pickled(base / "test_batch", {"data": rows(), "labels": [3, 0]})
    return ["cat", "airplane"]


def cifar100(root: Path) -> Sequence[str]:
    base = root / "cifar-100-python"
    pickled(base / "meta", {"fine_label_names": ["apple", "aquarium_fish"], "coarse_label_names": ["food"]})
    pickled(base / "test", {"data": rows(), "fine_labels": [1, 0], "coarse_labels": [0, 0]})
    return ["aquarium fish", "apple"]


def clevr_count(root: Path) -> Sequence[str]:
    base = root / "CLEVR_v1.0"
    scenes = [
        {"image_filename": f"CLEVR_val_{k:06d}.png", "objects": [{}] * number} for k, number in enumerate((3, 10))
    ]
    write(base / "scenes" / "CLEVR_val_scenes.json", json.dumps({"info": {}, "scenes": scenes}))
    draw(*(base / "images" / "val" / str(scene["image_filename"]) for scene in scenes))
    return ["3", "10"]


def fer2013(root: Path) -> Sequence[str]:
    pixels = " ".join(["7"] * 2304)
    text = "emotion, Usage, pixels\n" + "".join(
        f"{code},{usage},{pixels}\n" for code, usage in ((0, "Training"), (6, "PrivateTest"), (3, "PrivateTest"))
    )
    write(root / "fer2013" / "icml_face_data.csv", text)
    return ["neutral", "happy"]


def ucf101(root: Path) -> Sequence[str]:
    base = root / "ucf101"
    write(base / "ucfTrainTestlist" / "classInd.txt", "1 ApplyEyeMakeup\r\n2 HandstandPushups\r\n3 YoYo\r\n")
    clips = ["HandstandPushups/v_HandStandPushups_g01_c01.avi", "YoYo/v_YoYo_g01_c01.avi", "YoYo/v_YoYo_g01_c02.avi"]
    write(base / "ucfTrainTestlist" / "testlist01.txt", "\n".join(clips) + "\n")
    draw(base / "UCF-101" / clips[0].replace(".avi", ".jpg"))  # an extracted frame, and a folder of frames
    draw(*(base / "UCF-101" / clips[1].removesuffix(".avi") / f"{k}.jpg" for k in range(3)))
    return ["Handstand Pushups", "Yo Yo"]


def kinetics700(root: Path) -> Sequence[str]:
    base = root / "kinetics700"
    rows = [("label", "youtube_id", "time_start", "time_end", "split"), ("testifying", "---QU", "84", "94", "validate")]
    rows += [("singing, loudly (rock)", "-x_y", "0", "10", "validate"), ("testifying", "gone", "1", "11", "validate")]
    file = io.StringIO()
    csv.writer(file).writerows(rows)
    write(base / "validate.csv", file.getvalue())
    draw(base / "val" / "testifying" / "---QU_000084_000094.jpg")
    draw(base / "val" / "singing, loudly (rock)" / "-x_y_000000_000010.jpg")
    return ["testifying", "singing, loudly (rock)"]


def oxford_pets(root: Path) -> Sequence[str]:
    base = root / "oxford-iiit-pet"
    lines = ["Abyssinian_201 1 1 1", "american_pit_bull_terrier_12 3 2 2"]
    write(base / "annotations" / "test.txt", "\n".join(lines) + "\n")
    draw(*(base / "images" / f"{line.split()[0]}.jpg" for line in lines))
    return ["Abyssinian", "American Pit Bull Terrier"]


def fgvc_aircraft(root: Path) -> Sequence[str]:
    base = root / "fgvc-aircraft-2013b" / "data"
    write(base / "variants.txt", "707-320\nBAE 146-200\nF/A-18\n")
    write(base / "images_variant_test.txt", "0747566 F/A-18\n1514522 BAE 146-200\n")
    draw(base / "images" / "0747566.jpg", base / "images" / "1514522.jpg")
    return ["F/A-18", "BAE 146-200"]


def stanford_cars(root: Path) -> Sequence[str]:
    from scipy.io import savemat

    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    names = np.array(["Acura RL Sedan 2012", "Ram C/V Cargo Van Minivan 2012"], dtype=object)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": names})
    kinds = [("class", "O"), ("fname", "O"), ("bbox_x1", "O")]
    rows = np.array([(2, "00001.jpg", 5), (1, "00002.jpg", 5)], dtype=kinds)
    savemat(base / "cars_test_annos_withlabels.mat", {"annotations": rows})
    draw(base / "cars_test" / "00001.jpg", base / "cars_test" / "00002.jpg")
    return [str(names[1]), str(names[0])]


def flowers102(root: Path) -> Sequence[str]:
    from scipy.io import savemat

    base = root / "flowers-102"
    draw(*(base / "jpg" / f"image_{k:05d}.jpg" for k in (1, 2, 3)))
    savemat(base / "imagelabels.mat", {"labels": np.array([[102, 1, 5]], dtype=np.uint8)})
    savemat(base / "setid.mat", {"trnid": [[2]], "valid": [[2]], "tstid": [[3, 1]]})
    return ["english marigold", "blackberry lily"]


def birdsnap(root: Path) -> Sequence[str]:
    base = root / "birdsnap"
    species = (
        "id\tcommon\tscientific\tdir\n1\tCooper's Hawk\tAccipiter cooperii\tcoopers_hawk\n2\tBlue Jay\tC\tblue_jay\n"
    )
    write(base / "species.txt", species)
    write(base / "test_images.txt", "path\nBlue_Jay/3.jpg\nCoopers_Hawk/0561.jpg\nCoopers_Hawk/gone.jpg\n")
    draw(
        base / "download" / "images" / "Blue_Jay" / "3.jpg", base / "download" / "images" / "Coopers_Hawk" / "0561.jpg"
    )
    return ["Blue Jay", "Cooper's Hawk"]


def ayahoo(root: Path) -> Sequence[str]:
    base = root / "ayahoo"
    lines = ["donkey_1.jpg donkey 1 2 3 4 0 1", "donkey_1.jpg donkey 5 6 7 8 0 1", "mug_2.jpg mug 1 2 3 4 0 0"]
    write(base / "attribute_data" / "ayahoo_test.txt", "\n".join(lines) + "\n")
    draw(base / "ayahoo_test_images" / "donkey_1.jpg", base / "ayahoo_test_images" / "mug_2.jpg")
    return ["donkey", "mug"]


def objectnet(root: Path) -> Sequence[str]:
    base = root / "objectnet-1.0"
    folders_of = {"alarm_clock": "Alarm clock", "banana": "Banana", "tongs": "Tongs"}
    write(base / "mappings" / "folder_to_objectnet_label.json", json.dumps(folders_of))
    to_imagenet = {"Alarm clock": "analog clock; digital clock", "Banana": "banana"}
    write(base / "mappings" / "objectnet_to_imagenet_1k.json", json.dumps(to_imagenet))
    filler = [f"class {k}" for k in range(997)]
    write(
        base / "mappings" / "imagenet_to_label_2012_v2", "\n".join(["digital clock", "banana", "analog clock", *filler])
    )
    sorted_index = {str(k): (k + 10) % 1000 for k in range(1000)}
    write(base / "mappings" / "pytorch_to_imagenet_2012_id.json", json.dumps(sorted_index))
    folders(base / "images", {"banana": 1, "alarm_clock": 1, "tongs": 2}, ".png")
    return ["Alarm clock", "Banana"]


def dtd(root: Path) -> Sequence[str]:
    base = root / "dtd"
    write(base / "labels" / "test1.txt", "polka-dotted/polka-dotted_0002.jpg\nbanded/banded_0004.jpg\n")
    draw(base / "images" / "polka-dotted" / "polka-dotted_0002.jpg", base / "images" / "banded" / "banded_0004.jpg")
    return ["polka-dotted", "banded"]


VOC = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"]
VOC += ["horse", "motorbike", "person"]
VOC += ["pottedplant", "sheep", "sofa", "train", "tvmonitor"]


def voc2007(root: Path) -> Sequence[set[str]]:
    base = root / "VOCdevkit" / "VOC2007"
    positive = {"dog": ("000001",), "person": ("000001", "000002")}
    for name in VOC:
        values = [" 1" if image in positive.get(name, ()) else "-1" for image in ("000001", "000002")]
        if name == "train":
            values[1] = " 0"  # in difficult objects only
        write(base / "ImageSets" / "Main" / f"{name}_test.txt", f"000001 {values[0]}\r\n000002 {values[1]}\r\n")
    write(base / "ImageSets" / "Main" / "train.txt", "000005\n")
    draw(base / "JPEGImages" / "000001.jpg", base / "JPEGImages" / "000002.jpg")
    return [{"dog", "person"}, {"person", "train"}]


def mnist(root: Path) -> Sequence[str]:
    base = root / "mnist"
    base.mkdir()
    images = np.arange(2 * 28 * 28, dtype=np.uint32).astype(np.uint8)
    (base / "t10k-images.idx3-ubyte").write_bytes(struct.pack(">4I", 2051, 2, 28, 28) + images.tobytes())
    labels = struct.pack(">2I", 2049, 2) + bytes([7, 0])
    (base / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    return ["7", "0"]


def svhn(root: Path) -> Sequence[str]:
    from scipy.io import savemat

    (root / "svhn").mkdir()
    savemat(root / "svhn" / "test_32x32.mat", {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[10], [3]])})
    return ["zero", "three"]


def hateful_memes(root: Path) -> Sequence[str]:
    base = root / "hateful_memes"
    lines = [
        '{"id":42953,"img":"img\\/42953.png","label":0,"text":"a"}',
        '{"id":8291,"img":"img\\/08291.png","label":1}',
    ]
    write(base / "dev_seen.jsonl", "\n".join(lines))
    draw(base / "img" / "42953.png", base / "img" / "08291.png")
    return ["meme", "hatespeech meme"]


def gtsrb(root: Path) -> Sequence[str]:
    base = root / "gtsrb"
    header = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"
    write(base / "GT-final_test.csv", f"{header}\r\n00000.ppm;53;54;6;5;48;49;14\r\n00001.ppm;42;45;5;5;36;40;42\r\n")
    write(base / "GTSRB" / "Final_Test" / "Images" / "GT-final_test.test.csv", "Filename\r\n00000.ppm\r\n")
    draw(*(base / "GTSRB" / "Final_Test" / "Images" / f"0000{k}.ppm" for k in range(2)))
    return ["stop", "white circle with gray strike bar indicating no passing for trucks has ended"]


def stl10(root: Path) -> Sequence[str]:
    base = root / "stl10_binary"
    write(base / "class_names.txt", "airplane\nbird\ncar\n")
    image = np.zeros((1, 3, 96, 96), dtype=np.uint8)
    image[:, :, :10] = 255  # the first ten columns, since height and width are exchanged
    (base / "test_X.bin").write_bytes(np.concatenate([image, image]).tobytes())
    (base / "test_y.bin").write_bytes(bytes([3, 1]))
    return ["car", "airplane"]


def kitti_distance(root: Path) -> Sequence[str]:
    base = root / "kitti" / "training"
    objects = {  # ids of VTAB's test split; z is column 14
        "000005": [
            "DontCare -1 -1 -10 1 2 3 4 -1 -1 -1 -1000 -1000 -1000 -10",
            kitti_object("Car", 7.5),
            kitti_object("Van", 30.0),
        ],
        "000024": [kitti_object("Pedestrian", 3.0)],
        "000029": [kitti_object("Truck", 20.0)],
    }
    for name, lines in objects.items():
        write(base / "label_2" / f"{name}.txt", "\n".join(lines) + "\n")
        draw(base / "image_2" / f"{name}.png")
    draw(base / "image_2" / "000000.png")  # not in the split
    words = ["on my left or right side", "no car", "in the distance"]
    return [next(name for name in KITTI if word in name) for word in words]


KITTI = (
    "a photo i took of a car on my left or right side.",
    "a photo i took with a car nearby.",
    "a photo i took with a car in the distance.",
    "a photo i took with no car.",
)


def kitti_object(kind: str, z: float) -> str:
    return f"{kind} 0.00 0 -1.57 1 2 3 4 1.5 1.6 3.9 1.0 1.6 {z:.2f} -1.59"


def pcam(root: Path) -> Sequence[str]:
    import h5py

    (root / "pcam").mkdir()
    for key, values in (("x", np.zeros((2, 96, 96, 3), np.uint8)), ("y", np.array([1, 0]).reshape(2, 1, 1, 1))):
        with h5py.File(root / "pcam" / f"camelyonpatch_level_2_split_test_{key}.h5", "w") as file:
            file[key] = values
    return ["lymph node containing metastatic tumor tissue", "lymph node"]


def svhn_numbers(root: Path) -> Sequence[str]:
    import h5py

    base = root / "svhn" / "test"
    base.mkdir(parents=True)
    numbers = [
        ([5, 1, 8], [9.0, 2.0, 30.0]),
        ([7], [3.0]),
        ([2, 10, 1], [1.0, 8.0, 4.0]),
    ]  # digits and their left edges
    with h5py.File(base / "digitStruct.mat", "w") as file:
        cells = file.create_group("#refs#")
        for field in ("name", "bbox"):
            file.create_dataset(f"digitStruct/{field}", (len(numbers), 1), dtype=h5py.ref_dtype)
        for k, (digits, lefts) in enumerate(numbers):
            name = cells.create_dataset(f"name{k}", data=np.array([[ord(c)] for c in f"{k + 1}.png"], np.uint16))
            box = cells.create_group(f"box{k}")
            for field, values in (("label", digits), ("left", lefts)):
                if len(values) == 1:
                    box.create_dataset(field, data=np.array([[float(values[0])]]))
                    continue
                column = box.create_dataset(field, (len(values), 1), dtype=h5py.ref_dtype)
                for j, value in enumerate(values):
                    column[j, 0] = cells.create_dataset(f"{field}{k}{j}", data=np.array([[float(value)]])).ref
            file["digitStruct/name"][k, 0], file["digitStruct/bbox"][k, 0] = name.ref, box.ref
            draw(base / f"{k + 1}.png")
    return ["158", "7", "210"]


BUILDERS: dict[str, Builder] = {
    "food101": food101,
    "sun397": sun397,
    "youtube_bb": youtube_bb,
    "eurosat": eurosat,
    "pcam": pcam,
    "imagenet_a": synsets("imagenet-a", {"n01498041": 2}),
    "cifar10": cifar10,
    "clevr_count": clevr_count,
    "fer2013": fer2013,
    "ucf101": ucf101,
    "caltech101": caltech101,
    "imagenet_r": synsets("imagenet-r", {"n01443537": 2}),
    "oxford_pets": oxford_pets,
    "imagenet_v2": imagenet_v2,
    "cifar100": cifar100,
    "fgvc_aircraft": fgvc_aircraft,
    "country211": country211,
    "resisc45": resisc45,
    "stanford_cars": stanford_cars,
    "sun723": sun723,
    "kinetics700": kinetics700,
    "flowers102": flowers102,
    "imagenet": synsets("imagenet/val", {"n15075141": 1, "n01443537": 1}),
    "birdsnap": birdsnap,
    "ayahoo": ayahoo,
    "objectnet": objectnet,
    "imagenet_blurry": synsets("imagenet-c/gaussian_blur/3", {"n01440764": 1, "n15075141": 1}),
    "dtd": dtd,
    "voc2007": voc2007,
    "mnist": mnist,
    "svhn_numbers": svhn_numbers,
    "imagenet_vid": imagenet_vid,
    "imagenet_sketch": synsets("sketch", {"n01440764": 1, "n15075141": 2}),
    "hateful_memes": hateful_memes,
    "rendered_sst2": rendered_sst2,
    "gtsrb": gtsrb,
    "stl10": stl10,
    "kitti_distance": kitti_distance,
    "svhn": svhn,
}
NEEDS_H5PY = ("pcam", "svhn_numbers")
