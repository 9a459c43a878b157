"""What a worker writes while a run is drawn: finished pictures, and checkpoints to go on from."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from safelight.engine.beginnings import StartPicture
from safelight.engine.checkpoints import Checkpoint, pack, unpack
from safelight.engine.events import ImageReady
from safelight.errors import NotFound
from safelight.inputs import start_mask, start_pixels
from safelight.pictures import PictureMetadata, Pixels, encode_picture
from safelight.runs import Claim, ImageRecord, InputName, OutputFormat, Run
from safelight.store import Store
from safelight.worker.held import Held

log = logging.getLogger("safelight.worker")


async def keep_picture(store: Store, held: Held, event: ImageReady, *, is_last: bool) -> None:
    """Encode a picture and write it durably, off the loop, and only then name it in the store.

    The last one is named by the transaction that ends the run: one commit less for whoever waits.
    """
    claim, deployment = held.claim, held.deployment
    assert deployment is not None
    params = claim.run.params
    metadata = PictureMetadata(params=params, seed=event.seed, model=deployment.model, revision=deployment.revision)
    encode = partial(
        encode_picture, event.pixels, params.output_format, metadata if deployment.embed_metadata else None
    )
    # One way to a thread for both: a way there and back takes as long as encoding a small picture.
    stored = await store.images.write(claim.run.id, event.index, claim.fence, params.output_format, encode)
    record = ImageRecord(
        index=event.index,
        seed=event.seed,
        output_format=params.output_format,
        path=stored.path,
        num_bytes=stored.num_bytes,
        sha256=stored.sha256,
    )
    if is_last:
        held.unnamed = (record,)
    else:
        await store.runs.add_image(claim, record)


async def keep_preview(store: Store, held: Held, pixels: Pixels) -> None:
    """Leave it where whoever watches finds it. A disk that is full is said in the log only."""
    run_id, held.has_preview = held.claim.run.id, True
    try:
        await store.previews.write(run_id, await asyncio.to_thread(encode_picture, pixels, OutputFormat.PNG))
    except OSError as error:
        log.warning("a preview cannot be written", extra={"run_id": run_id, "reason": str(error)})
    store.notifications.publish(f"run:{run_id}")


async def start_picture(store: Store, run: Run) -> StartPicture | None:
    """What a run begins from, in the size of its images; None for noise alone. Raises NotFound, TryLater."""
    if run.params.strength is None:
        return None
    files = {each.name: await store.images.read(each.path) for each in await store.runs.inputs(run.id)}
    if InputName.INIT_IMAGE not in files:
        raise NotFound("the picture that this run begins from is gone; send it again", code="image_not_found")
    sides = (run.params.height, run.params.width)
    mask = files.get(InputName.MASK)
    return StartPicture(
        await asyncio.to_thread(start_pixels, files[InputName.INIT_IMAGE], *sides),
        None if mask is None else await asyncio.to_thread(start_mask, mask, *sides),
    )


class CheckpointKeeper:
    """Writes the checkpoints of runs beside their drawing. Losing one costs steps and nothing else."""

    def __init__(self, store: Store) -> None:
        self._folder = store.checkpoints

    async def last(self, claim: Claim) -> Checkpoint | None:
        """Where an earlier claim of the run came to; a first claim has nothing to look for."""
        if claim.fence == 1:
            return None
        data = await self._folder.newest(claim.run.id)
        return None if data is None else await asyncio.to_thread(unpack, data)

    def save(self, held: Held, checkpoint: Checkpoint) -> None:
        """Begin to write it. While one is being written the next is let go: a newer one comes soon."""
        if held.saving is None or held.saving.done():
            held.saving = asyncio.create_task(self.write(held.claim, checkpoint))

    async def write(self, claim: Claim, checkpoint: Checkpoint) -> None:
        """A disk that is full is said in the log only."""
        try:
            data = await asyncio.to_thread(pack, checkpoint)
            await self._folder.write(claim.run.id, claim.fence, data)
        except OSError as error:
            log.warning("a checkpoint cannot be written", extra={"run_id": claim.run.id, "reason": str(error)})

    async def forget(self, held: Held) -> None:
        """The run has ended. Most have none, and cost nothing here."""
        if held.saving is not None:
            await held.saving
        if held.saving is not None or held.claim.fence > 1:
            await self._folder.remove(held.claim.run.id)
