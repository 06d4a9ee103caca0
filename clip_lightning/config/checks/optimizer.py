"""Which keys of the optimizer go together."""

from collections.abc import Iterator

from clip_lightning.config.schema import Config, OptimizerConfig


def problems(config: Config) -> Iterator[str]:
    """A sentence for each key of `optimizer` that has no effect, or for an import path that cannot be one."""
    optimizer = config.optimizer
    if optimizer._target_ is None:
        if optimizer.options:
            yield "optimizer.options has no effect without optimizer._target_, whose arguments it holds; leave it out"
        return
    for name in ("beta1", "beta2", "eps"):
        if (value := getattr(optimizer, name)) != getattr(OptimizerConfig(), name):
            yield (
                f"optimizer.{name}={value} has no effect: it is AdamW's, and optimizer._target_="
                f"{optimizer._target_} takes optimizer.options; leave it out"
            )
    for name in ("lr", "weight_decay", "params"):
        if name in optimizer.options:
            instead = {"lr": "compute.learning_rate", "weight_decay": "optimizer.weight_decay"}.get(name)
            yield f"optimizer.options.{name} is set elsewhere; " + (f"write {instead}" if instead else "leave it out")
    if optimizer._target_.endswith("Adafactor") and config.cluster.strategy in ("fsdp", "hsdp"):
        yield (
            f"optimizer._target_={optimizer._target_} keeps sums over rows and columns, which cluster.strategy="
            f"{config.cluster.strategy} cannot save in shards; write cluster=ddp, or another optimizer"
        )
