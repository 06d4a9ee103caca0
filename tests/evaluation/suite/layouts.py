"""Small data sets in their official layouts: each builder writes one and returns the class names of its images."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.evaluation.suite.array_layouts import ARRAYS
from tests.evaluation.suite.drawing import draw, drawn, write

Builder = Callable[[Path], Sequence[str] | Sequence[set[str]]]


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
    """A folder per class with so many images; beside them what official archives have and no loader reads."""
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


def clevr_count(root: Path) -> Sequence[str]:
    base = root / "CLEVR_v1.0"
    scenes = [
        {"image_filename": f"CLEVR_val_{k:06d}.png", "objects": [{}] * number} for k, number in enumerate((3, 10))
    ]
    write(base / "scenes" / "CLEVR_val_scenes.json", json.dumps({"info": {}, "scenes": scenes}))
    draw(*(base / "images" / "val" / str(scene["image_filename"]) for scene in scenes))
    return ["3", "10"]


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


BUILDERS: dict[str, Builder] = ARRAYS | {
    "food101": food101,
    "sun397": sun397,
    "youtube_bb": youtube_bb,
    "eurosat": eurosat,
    "imagenet_a": synsets("imagenet-a", {"n01498041": 2}),
    "clevr_count": clevr_count,
    "ucf101": ucf101,
    "caltech101": caltech101,
    "imagenet_r": synsets("imagenet-r", {"n01443537": 2}),
    "oxford_pets": oxford_pets,
    "imagenet_v2": imagenet_v2,
    "fgvc_aircraft": fgvc_aircraft,
    "country211": country211,
    "resisc45": resisc45,
    "sun723": sun723,
    "kinetics700": kinetics700,
    "imagenet": synsets("imagenet/val", {"n15075141": 1, "n01443537": 1}),
    "birdsnap": birdsnap,
    "ayahoo": ayahoo,
    "objectnet": objectnet,
    "imagenet_blurry": synsets("imagenet-c/gaussian_blur/3", {"n01440764": 1, "n15075141": 1}),
    "dtd": dtd,
    "voc2007": voc2007,
    "imagenet_vid": imagenet_vid,
    "imagenet_sketch": synsets("sketch", {"n01440764": 1, "n15075141": 2}),
    "hateful_memes": hateful_memes,
    "rendered_sst2": rendered_sst2,
    "gtsrb": gtsrb,
    "kitti_distance": kitti_distance,
}
