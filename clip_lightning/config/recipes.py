"""What a preset of `compute` says by model: the learning rate and AdamW's numbers."""

from dataclasses import fields

from clip_lightning.config.schema import Config, Recipe


def fill(config: Config) -> list[str]:
    """Fills the nulls of `compute` and `optimizer` from the recipes by model name, and then empties those.

    Returns: a sentence where there is no recipe for what is left open.
    """
    recipes, name = config.compute.recipes, config.model.name
    config.compute.recipes = {}
    own, default = recipes.get(name, Recipe()), recipes.get("default", Recipe())
    without = []
    is_adamw = config.optimizer._target_ is None  # AdamW's numbers say nothing of another optimizer
    for field in fields(Recipe):
        if field.name != "learning_rate" and not is_adamw:
            continue
        group = config.compute if field.name == "learning_rate" else config.optimizer
        if getattr(group, field.name) is None:
            value = getattr(own, field.name)
            value = getattr(default, field.name) if value is None else value
            setattr(group, field.name, value)
            if value is None:
                without.append(f"{'compute' if group is config.compute else 'optimizer'}.{field.name}")
    if not without:
        return []
    models = [model for model in recipes if model != "default"]
    known = f" (only for {', '.join(models)})" if models else ""
    return [f"compute={config.compute.name} has no recipe for model={name}{known}; set {', '.join(without)}"]
