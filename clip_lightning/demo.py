"""A page to try a model in a browser: `python -m clip_lightning.demo SOURCE [SOURCE ...] [--images FOLDER]`.

Three tabs: which of the typed labels an image shows, the images of a folder that fit a text best, and the same image
under several models. What the page shows is computed by the functions here, which need no Gradio; the page itself is
`page`, which does (`pip install clip_lightning[demo]`).
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clip_lightning.errors import UserError, run_command
from clip_lightning.formatting import percent

if TYPE_CHECKING:
    import numpy as np

    from clip_lightning.training.embedding import LoadedModel

MAX_LABELS, MAX_RESULTS = 1000, 100
EXAMPLE_LABELS, EXAMPLE_TEMPLATE = "a cat\na dog\na bicycle", "{c}"


class Match(NamedTuple):
    """An image that fits a text, and their cosine."""

    path: Path
    cosine: float


class ImageFolder(NamedTuple):
    """The readable images of a folder and their features.

    Attributes:
        paths: n files.
        features: float32 [n, D], each of length 1.
        num_unreadable: image files that cannot be decoded, and are left out.
    """

    paths: list[Path]
    features: "np.ndarray"
    num_unreadable: int


def labels_of(text: str) -> list[str]:
    """The labels that a person has typed: one per line, or in one line with commas between them.

    Raises:
        UserError: there are none, too many, or one occurs twice.
    """
    parts = text.splitlines() if "\n" in text.strip() else text.split(",")
    labels = [part.strip() for part in parts if part.strip()]
    if not labels:
        raise UserError("type labels, one per line or with commas between them")
    if len(labels) > MAX_LABELS:
        raise UserError(f"{len(labels):,} labels are too many for this page; type at most {MAX_LABELS:,}")
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise UserError(f"the label '{twice[0]}' is typed twice; keep one")
    return labels


def probabilities(loaded: "LoadedModel", image: Any, labels: Sequence[str], template: str = "{c}") -> dict[str, float]:
    """The probability of each label for one image: a softmax over the labels at the model's own logit scale.

    This is what Figure 21 of Radford et al. 2021 shows (section 3.1.2, "scaled by a temperature parameter, and
    normalized into a probability distribution via a softmax"). A bias, which models with a sigmoid loss have, cancels.

    Args:
        image: a path, the bytes of a file, or a PIL image.
        template: a prompt with `{c}` where the label goes.

    Raises:
        UserError: the template has no `{c}`, or the image cannot be read.
    """
    from clip_lightning.data.layouts.layout import BadSample
    from clip_lightning.evaluation.prompts import PLACEHOLDER, fill_all
    from clip_lightning.training.embedding import embed_images, embed_texts

    if PLACEHOLDER not in template:
        raise UserError(f"the prompt '{template}' has no {PLACEHOLDER}: write {PLACEHOLDER} where the label goes")
    try:
        image_1D = embed_images(loaded, [image])
    except (BadSample, OSError) as error:
        raise UserError(f"this image cannot be read: {error}") from error
    text_CD = embed_texts(loaded, fill_all([template], labels))
    logits_C = loaded.model.current_logit_scale().cpu() * (image_1D @ text_CD.T)[0]
    return dict(zip(labels, logits_C.softmax(0).tolist(), strict=True))


def compare(
    models: Mapping[str, "LoadedModel"], image: Any, labels: Sequence[str], template: str = "{c}"
) -> dict[str, dict[str, float]]:
    """`probabilities` of the same image and labels under each model, by the model's name."""
    return {name: probabilities(loaded, image, labels, template) for name, loaded in models.items()}


def table(found: Sequence[Mapping[str, float]]) -> list[list[str]]:
    """Rows of a label and its probability under each model, in percent; the most probable of the first model first."""
    labels = sorted(found[0], key=lambda label: -found[0][label])
    return [[label, *(percent(one[label], 2) for one in found)] for label in labels]


def embed_folder(loaded: "LoadedModel", folder: str | Path, report: Callable[[str], None] | None = None) -> ImageFolder:
    """Features of all images in a folder and the folders in it; hidden files are left out.

    Args: report: receives a line for each part that is done.

    Raises:
        UserError: there is no such folder, or no image in it that can be read.
    """
    import numpy as np

    from clip_lightning.data.images.headers import READABLE_SUFFIXES
    from clip_lightning.training.embedding import embed_images_to

    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; --images names a folder of images")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower().lstrip(".") in READABLE_SUFFIXES)
    files = [file for file in files if not file.name.startswith(".")]
    if not files:
        raise UserError(f"{folder} has no image: files that end with {', '.join(sorted(READABLE_SUFFIXES))}")
    with tempfile.TemporaryDirectory(prefix="clip_lightning_demo_") as parts:
        quiet = report or (lambda line: None)
        embed_images_to(parts, loaded, files, file_format="npy", worker=(0, 1), rows_per_part=4096, report=quiet)
        features = np.concatenate([np.load(part) for part in sorted(Path(parts).glob("part-*.npy"))])
    readable = ~np.isnan(features).any(axis=1)
    if not readable.any():
        raise UserError(f"{folder}: none of its {len(files):,} image files can be decoded")
    paths = [file for file, good in zip(files, readable, strict=True) if good]
    return ImageFolder(paths, features[readable], int((~readable).sum()))


def search(loaded: "LoadedModel", images: ImageFolder, text: str, num_results: int = 12) -> list[Match]:
    """The images whose features have the largest cosines with those of a text, the best first.

    Raises:
        UserError: the text is empty.
    """
    from clip_lightning.training.embedding import embed_texts

    if not text.strip():
        raise UserError("type what to search for")
    cosines = images.features @ embed_texts(loaded, [text.strip()]).numpy()[0]
    best = (-cosines).argsort(kind="stable")[:num_results]
    return [Match(images.paths[k], float(cosines[k])) for k in best]


def names_of(sources: Sequence[str]) -> list[str]:
    """A short name for each source: of a path its last part, unless two are equal; otherwise the source itself."""
    paths = [Path(source).expanduser() for source in sources]
    short = [path.resolve().name if path.exists() else source for path, source in zip(paths, sources, strict=True)]
    return [name if short.count(name) == 1 else source for name, source in zip(short, sources, strict=True)]


def page(models: Mapping[str, "LoadedModel"], images: Mapping[str, ImageFolder] | None = None) -> Any:
    """The page as `gradio.Blocks`; its functions can be called by name: /classify, /search, /compare.

    Args:
        models: by the name that the page shows.
        images: the searched folder's features under each model; None: the page has no search.
    """
    import gradio as gr

    with gr.Blocks(title="clip_lightning", analytics_enabled=False) as blocks:
        gr.Markdown(f"# clip_lightning\n{', '.join(f'`{name}`' for name in models)}")
        with gr.Tab("Labels of an image"), gr.Row():
            _classify_tab(gr, models)
        if images is not None:
            with gr.Tab("Search a folder"):
                _search_tab(gr, models, images)
        if len(models) > 1:
            with gr.Tab("Compare models"), gr.Row():
                _compare_tab(gr, models)
    return blocks


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m clip_lightning.demo", description="Try models on a page in the browser."
    )
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="directories of runs, or what model.pretrained takes"
    )
    parser.add_argument("--images", metavar="FOLDER", help="a folder of images, to search it by text")
    parser.add_argument("--device", default=None, help="default: a visible GPU, or the CPU")
    parser.add_argument("--checkpoint", default="last", help="of a single run: last, or the name of one")
    parser.add_argument("--weights", default="raw", choices=("raw", "ema"), help="of runs: raw, or their average")
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 opens the page to the network (default: only here)"
    )
    parser.add_argument("--port", type=int, default=7860, help="default 7860")
    arguments = parser.parse_args(argv)
    if find_spec("gradio") is None:
        raise UserError("the page needs Gradio: pip install 'clip_lightning[demo]'")
    if arguments.images and not Path(arguments.images).expanduser().is_dir():
        raise UserError(f"--images={arguments.images}: there is no such folder")
    # Gradio would otherwise report each start to its makers, and ask the hub for its newest version.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import torch  # slow to import, and not needed for --help

    from clip_lightning.training.embedding import load

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options = {"checkpoint": arguments.checkpoint, "weights": arguments.weights, "device": device}
    models = {
        name: load(source, **options)
        for name, source in zip(names_of(arguments.sources), arguments.sources, strict=True)
    }
    images = None
    if arguments.images:
        print(f"reads the images in {arguments.images}", flush=True)
        images = {name: embed_folder(loaded, arguments.images) for name, loaded in models.items()}
    blocks = page(models, images)
    launch(blocks, arguments.images, host=arguments.host, port=arguments.port)
    print(f"http://{arguments.host}:{arguments.port} shows the page; Ctrl-C ends it", flush=True)
    blocks.block_thread()
    return 0


def launch(blocks: Any, images: str | None = None, *, host: str, port: int | None) -> Any:
    """Opens the page on `host` and `port` (None: a free one); nothing is sent elsewhere, and no link is made public.

    Args: images: the searched folder, whose files the page may show.
    Returns: Gradio's (app, local address, None), once the page answers.

    Raises:
        UserError: the port is in use.
    """
    import gradio as gr

    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # none from a server
    try:
        return blocks.launch(
            server_name=host, server_port=port, share=False, ssr_mode=False, prevent_thread_lock=True,
            quiet=True, allowed_paths=[str(Path(images).expanduser().resolve())] if images else None,
            theme=gr.themes.Default(**fonts), footer_links=["api"], enable_monitoring=False,
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"--port={port} on {host} cannot be opened: {error}") from error


def _classify_tab(gr: Any, models: Mapping[str, "LoadedModel"]) -> None:
    def classify(name: str, image: Any, text: str, template: str) -> tuple[dict[str, float], list[list[str]]]:
        found = _shown(gr, lambda: probabilities(models[name], _given(image), labels_of(text), template))
        return found, table([found])

    with gr.Column():
        given = [_choice(gr, models), *_inputs(gr)]
        button = gr.Button("Compute probabilities", variant="primary")
    with gr.Column():
        bars = gr.Label(label="Probability of each label", num_top_classes=10)
        numbers = _numbers(gr, "probability")
    button.click(classify, given, [bars, numbers], api_name="classify")


def _search_tab(gr: Any, models: Mapping[str, "LoadedModel"], images: Mapping[str, ImageFolder]) -> None:
    def find(name: str, text: str, number: float) -> list[tuple[str, str]]:
        found = _shown(gr, lambda: search(models[name], images[name], text, int(number)))
        return [(str(match.path), f"{match.cosine:.3f}  {match.path.name}") for match in found]

    first = next(iter(images.values()))
    left_out = f"; {first.num_unreadable:,} cannot be read" if first.num_unreadable else ""
    gr.Markdown(f"{len(first.paths):,} images{left_out}. Under each: its cosine with the text.")
    with gr.Row():
        query = gr.Textbox(label="Text", scale=3)
        number = gr.Slider(1, MAX_RESULTS, value=12, step=1, label="Images")
    given = [_choice(gr, models), query, number]
    button = gr.Button("Search", variant="primary")
    gallery = gr.Gallery(label="Images", columns=4, object_fit="contain", format="png")
    button.click(find, given, gallery, api_name="search")
    query.submit(find, given, gallery, api_name=False)


def _compare_tab(gr: Any, models: Mapping[str, "LoadedModel"]) -> None:
    def side_by_side(image: Any, text: str, template: str) -> list[Any]:
        found = _shown(gr, lambda: compare(models, _given(image), labels_of(text), template))
        return [*found.values(), table(list(found.values()))]

    with gr.Column():
        given = _inputs(gr)
        button = gr.Button("Compare", variant="primary")
    with gr.Column():
        panels = [gr.Label(label=name, num_top_classes=10) for name in models]
        numbers = _numbers(gr, *models)
    button.click(side_by_side, given, [*panels, numbers], api_name="compare")


def _inputs(gr: Any) -> list[Any]:
    """Image, labels and prompt. The image is the file as it is: Gradio would otherwise decode and encode it again."""
    image = gr.Image(type="filepath", image_mode=None, sources=["upload", "clipboard"], label="Image", height=320)
    labels = gr.Textbox(EXAMPLE_LABELS, lines=5, label="Labels, one per line or with commas")
    template = gr.Textbox(EXAMPLE_TEMPLATE, label="Prompt; {c} is the label, as in: a photo of a {c}.")
    return [image, labels, template]


def _choice(gr: Any, models: Mapping[str, "LoadedModel"]) -> Any:
    return gr.Dropdown(list(models), value=next(iter(models)), label="Model", visible=len(models) > 1)


def _numbers(gr: Any, *columns: str) -> Any:
    return gr.Dataframe(headers=["label", *columns], label="In numbers", interactive=False, wrap=True)


def _given(image: Any) -> Any:
    if image is None:
        raise UserError("give an image: drop a file on the page")
    return image


def _shown(gr: Any, call: Callable[[], Any]) -> Any:
    """The result of a call; its error as a message on the page."""
    try:
        return call()
    except UserError as error:
        raise gr.Error(str(error), print_exception=False) from error


if __name__ == "__main__":
    run_command(main)
