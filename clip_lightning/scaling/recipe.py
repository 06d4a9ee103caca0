"""How batch, learning rate, warm-up and beta2 follow the length of a run, and the rate its model.

If they do not, the exponents of a law are artefacts: Porian et al. 2024 (2406.19146) move one data set's exponent from
0.84 to 0.50 by tuning. The powers are the trend of the best runs among the 581 public CLIP runs of "robust comparison"
(2506.04598): batch ~ samples^0.63, rate ~ samples^0.21. That is practice, confounded by that study's grid, no law.
"""

from dataclasses import dataclass

from clip_lightning.errors import UserError

BATCH_EXPONENT, RATE_EXPONENT = 0.63, 0.21
# Adam's rate for hidden matrices follows 1 / width (Yang et al. 2022, 2203.03466), and FLOPs the square of the width.
SIZE_EXPONENT = -0.5
# Zhai et al. 2023 (2303.15343): gains of larger batches stop near 32k; LAION's 181k was worse than 90k.
_LARGEST_BATCH, _SMALLEST_BATCH = 65536, 64
_LARGE_BATCH = 16384  # from here on beta2 0.95, as in those runs and in SigLIP
WARMUP = 0.05  # share of the run: a fixed 4,000 steps of 90k samples collapsed runs of 128M samples


@dataclass(frozen=True)
class Recipe:
    """Settings of one run.

    Attributes:
        samples: pairs seen, a whole number of steps.
        warmup_samples: the same.
    """

    samples: int
    global_batch: int
    learning_rate: float
    warmup_samples: int
    beta2: float

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.samples // self.global_batch


@dataclass(frozen=True)
class Anchor:
    """A run whose settings are known to work; others follow from it by the powers.

    Attributes:
        name: the preset that has these settings.
        model: whose size the rate was tuned for; None: the rate does not follow the size.
    """

    name: str
    samples: float
    global_batch: int
    learning_rate: float
    model: str | None = None

    def batch(self, samples: float) -> int:
        """A power of two, since it is split over devices."""
        wanted = self.global_batch * (samples / self.samples) ** BATCH_EXPONENT
        smallest = min(_SMALLEST_BATCH, self.global_batch)
        power = 1 << max(0, round(float(wanted)).bit_length() - 1)
        nearest = power if wanted * wanted < power * power * 2 else 2 * power
        return int(min(max(nearest, smallest), _LARGEST_BATCH))

    def recipe(self, samples: float, length: float | None = None, relative_flops: float = 1.0) -> Recipe:
        """The settings of a run.

        Args:
            samples: pairs that it sees; rounded to whole steps.
            length: samples that batch and rate follow; None: those of the run. Branches of one trunk share it.
            relative_flops: of a sample in the run's towers, over those of the anchor's model.
        Raises: UserError: the run is shorter than 20 steps.
        """
        batch = self.batch(length or samples)
        steps = round(samples / batch)
        if steps < 20:
            raise UserError(
                f"{samples:,.0f} samples are {steps} steps of {batch:,}, too few to train; plan a larger budget or "
                "smaller models"
            )
        rate = self.learning_rate * ((length or samples) / self.samples) ** RATE_EXPONENT
        rate *= relative_flops**SIZE_EXPONENT
        beta2 = 0.95 if batch >= _LARGE_BATCH else 0.98
        return Recipe(steps * batch, batch, float(f"{rate:.3g}"), max(1, round(WARMUP * steps)) * batch, beta2)


ANCHORS = {
    # 64M samples: best batch 4k to 8k, rates of the DataComp rungs and the cells beside them.
    "laion": Anchor("laion_b32", 64e6, 4096, 1e-3),
    # compute=cpu_minutes, tuned for model=tiny on data=scenes.
    "cpu": Anchor("cpu_minutes", 256e3, 128, 2e-3, model="tiny"),
}
