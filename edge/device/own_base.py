"""The base model on this device: what it is known by, and whether its files have changed."""

import hashlib
from pathlib import Path

from converters.bases.read import read_base
from converters.errors import BaseModelError


def base_files(base: Path) -> str:
    """Returns a hash of the sizes and times of writing of the model's files."""
    files = sorted(path for path in base.iterdir() if path.is_file()) if base.is_dir() else [base]
    told = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(told).encode()).hexdigest()


def base_fingerprint(base: Path, configured: str | None) -> str | None:
    """Returns the fingerprint of the model at `base`, or None: a quantised or GGUF model is proved later.

    Args:
        base: A folder, or a GGUF file.
        configured: Is believed of a model that would have to be proved.

    Raises:
        BaseModelError: It cannot be read, or has another fingerprint than is configured.
    """
    model = read_base(base)
    if model.is_quantized or not base.is_dir():
        return configured
    own = model.fingerprint
    if configured and own != configured:
        raise BaseModelError(f"{base}: has fingerprint {own}, the configuration says {configured}")
    return own
