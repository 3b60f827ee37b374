"""Whether this device's base model is the fleet's: by its fingerprint, or by a sample of the fleet's own.

A quantised model has no fingerprint of its own. The coordinator serves a small sample of the model in full
precision, whose hash stands in the manifest; the device holds its own model against it
(`converters.proof.check`) and remembers what came out for as long as the model's files stay as they are.
"""

import asyncio
from pathlib import Path

from converters.bases.read import read_base
from converters.errors import BaseModelError
from converters.proof.check import Verdict, check_base
from converters.proof.sample import MAX_BYTES, parse_sample
from edge.device.learning.blobs import Blobs
from edge.device.session import Session
from edge.protocol.messages import Blob, Manifest


class Proof:
    """What is known of this device's base model."""

    def __init__(self, session: Session, blobs: Blobs) -> None:
        self._session = session
        self._state = session.state
        self._blobs = blobs
        self._base = Path(session.config.base)

    async def holds(self, manifest: Manifest) -> bool:
        """Tells that the model is the fleet's; False where the sample stopped coming and is another by now.

        Raises:
            BaseModelError: The fleet trains another base model, with what differs.
            DiskRefused: There is no room for the sample, or for what came out.
        """
        if self._state.memory.base is None and not await self._prove(manifest):
            return False
        own = self._state.memory.base or ""
        if manifest.base != own:
            raise BaseModelError(
                f"fleet {manifest.fleet} trains base model {manifest.base[:16]}…, {self._base} is "
                f"{own[:16]}…; give --base the fleet's model"
            )
        return True

    async def _prove(self, manifest: Manifest) -> bool:
        if not await asyncio.to_thread(_has_fingerprint, self._base, manifest.base):
            path = await self._sample(manifest)
            if path is None:
                return False
            try:
                verdict = await asyncio.to_thread(_check, self._base, path)
            finally:
                path.unlink(missing_ok=True)
            self._session.say(
                "proved",
                f"{self._base.name} is a copy of base model {manifest.base[:16]}…: "
                f"{verdict.num_values - verdict.num_wrong:,} of {verdict.num_values:,} sampled values agree",
                num_values=verdict.num_values,
                num_wrong=verdict.num_wrong,
            )
        self._state.update(base=manifest.base)
        self._session.wakeups.something_to_send.set()  # who the device is
        return True

    async def _sample(self, manifest: Manifest) -> Path | None:
        sample = sample_of(manifest, self._base)

        def is_obsolete() -> bool:
            newest = self._session.inbox.choose(self._session.config.max_rank)
            return newest is not None and newest.sketch != sample

        final = self._state.folder / "sketch"
        return await self._blobs.fetch(
            sample, manifest.chunk_bytes, final, "the sample of the base model", is_obsolete
        )


def sample_of(manifest: Manifest, base: Path) -> Blob:
    """Returns where the fleet's sample is to be had.

    Args:
        manifest: Of a version.
        base: This device's model, for the message.

    Raises:
        BaseModelError: There is none, or none that is small.
    """
    if manifest.sketch is None:
        raise BaseModelError(
            f"{base}: has no fingerprint of its own, and fleet {manifest.fleet} serves no sample to prove it "
            f"by; give --fingerprint {manifest.base} if you know that it is a copy of the fleet's"
        )
    if manifest.sketch.size_bytes > MAX_BYTES:
        raise BaseModelError(
            f"fleet {manifest.fleet}: its sample of the base model has {manifest.sketch.size_bytes} bytes, "
            f"expected at most {MAX_BYTES}"
        )
    return manifest.sketch


def _has_fingerprint(base: Path, fingerprint: str) -> bool:
    """Tells whether the model has that fingerprint itself: a GGUF file in full precision can."""
    try:
        return read_base(base).fingerprint == fingerprint
    except BaseModelError:  # what is wrong with the file, if anything, is told by `_check`
        return False


def _check(base: Path, sketch: Path) -> Verdict:
    return check_base(read_base(base), parse_sample(sketch.read_bytes()))
