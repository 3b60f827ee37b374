"""LoRA with transformers and peft, on the GPU where there is one; see `model.py`."""

from edge.backends.torch.model import load as load
