"""A Siglip2Model of transformers, whose tower reads rows of patches, opens with the same features."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize
from transformers import Siglip2Config, Siglip2Model

from clip_lightning.training.any_model import open_model
from tests.export.models import WORDS, hub_folder

PATCH, SIDE = 16, 64
TOWER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_features_of_siglip2_at_its_fixed_size_are_ours(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Siglip2Config(
        text_config=TOWER | {"vocab_size": WORDS + 10, "max_position_embeddings": 77, "projection_size": 64},
        vision_config=TOWER | {"patch_size": PATCH, "num_patches": (SIDE // PATCH) ** 2},
    )
    theirs = Siglip2Model(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    folder = hub_folder(tmp_path, {})  # has the tokenizer
    save_file({name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    ours = open_model(folder).model
    pixels = torch.randn(3, 3, SIDE, SIDE)
    grid = SIDE // PATCH
    patches = pixels.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # [B, 3, grid, grid, P, P]
    patches = patches.permute(0, 2, 3, 4, 5, 1).reshape(3, grid**2, PATCH * PATCH * 3)
    mask, shapes = torch.ones(3, grid**2, dtype=torch.long), torch.tensor([[grid, grid]] * 3)
    ids = torch.randint(3, WORDS, (3, 77))
    with torch.no_grad():
        image = theirs.get_image_features(patches, mask, shapes).pooler_output
        text = theirs.get_text_features(ids).pooler_output
        torch.testing.assert_close(ours.encode_image(pixels), normalize(image, dim=-1), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            ours.encode_text(ids, torch.full((3,), 77)), normalize(text, dim=-1), atol=1e-5, rtol=0
        )
