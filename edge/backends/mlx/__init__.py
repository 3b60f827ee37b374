"""LoRA with mlx-lm, on bases in full precision or in 4 or 8 bits; see `model.py`."""

from edge.backends.mlx.model import load as load
