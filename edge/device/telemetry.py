"""Progress of a task: shown here, and sent as telemetry."""

import asyncio
import time
from collections.abc import Callable

from edge.device.session import Session
from edge.protocol.messages import Manifest, Telemetry
from edge.training.requests import Progress

EVERY_S = 1.0
EXPIRY_S = 60  # older telemetry is of no use to anybody


class ProgressReporter:
    """Telemetry of one client: training never waits for the network."""

    def __init__(self, session: Session, clock: Callable[[], float] = time.monotonic) -> None:
        self._session = session
        self._clock = clock
        self._sending: asyncio.Task[None] | None = None
        self._sent_at = float("-inf")

    def of(self, manifest: Manifest) -> Callable[[Progress], None]:
        """Returns what takes the progress of a task; a sealed or hidden one's loss is told here alone."""
        version, tells_loss = manifest.version, manifest.seal is None and not manifest.privacy.is_on

        def report(progress: Progress) -> None:
            self._show(version, progress)
            now = self._clock()
            is_idle = self._sending is None or self._sending.done()
            if is_idle and now - self._sent_at >= EVERY_S:
                self._sending = asyncio.create_task(self._send(version, progress, tells_loss))
                self._sent_at = now

        return report

    async def close(self) -> None:
        """Gives up what has not gone out."""
        if self._sending:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)

    def _show(self, version: int, progress: Progress) -> None:
        self._session.say(
            "training",
            f"on version {version}, step {progress.step} of {progress.steps or '?'}, "
            f"loss {progress.loss:.4f}, {progress.tokens_per_s:,.0f} tokens/s",
            version=version,
            done=progress.step,
            total=progress.steps,
            loss=progress.loss,
            tokens_per_s=progress.tokens_per_s,
            memory_bytes=progress.memory_bytes,
        )

    async def _send(self, version: int, progress: Progress, tells_loss: bool) -> None:
        telemetry = Telemetry(
            base_version=version,
            step=progress.step,
            steps=progress.steps,
            loss=progress.loss if tells_loss else None,
            tokens_per_s=progress.tokens_per_s,
            memory_bytes=progress.memory_bytes,
        )
        await self._session.publish("telemetry", telemetry, expiry_s=EXPIRY_S)
