"""Pictures that runs begin from: found where the request names them, looked at, and kept before the run
that names them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from safelight.api.params import NewParams, RunImage
from safelight.errors import FieldError, NotFound
from safelight.inputs import InputShape, look_at
from safelight.runs import InputName, RunInput
from safelight.store import Store

_INDEX_OF = {InputName.INIT_IMAGE: 0, InputName.MASK: 1}
_BEFORE_ANY_CLAIM = 0
"""The fence in the names of their files."""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A file that was looked at."""

    data: bytes
    shape: InputShape


Pictures = Mapping[InputName, Picture]


async def take_pictures(store: Store, project: str, asked: NewParams) -> tuple[Pictures, Sequence[FieldError]]:
    """The pictures of a request, and what is wrong with those that cannot be used."""
    named = {InputName.INIT_IMAGE: asked.init_image, InputName.MASK: asked.mask}
    taken: dict[InputName, Picture] = {}
    wrong: list[FieldError] = []
    for name, given in named.items():
        if given is None:
            continue
        try:
            data = await _image_of(store, project, given) if isinstance(given, RunImage) else given
            taken[name] = Picture(data, await asyncio.to_thread(look_at, data))
        except ValueError as error:
            wrong.append(FieldError(name.value, str(error)))
    return taken, [*wrong, *_other_size(taken)]


async def keep_pictures(store: Store, run_id: str, pictures: Pictures) -> tuple[RunInput, ...]:
    """Write them so that they survive power loss once this returns. Raises StorageFull."""
    kept = []
    for name, picture in pictures.items():
        stored = await store.images.write(
            run_id, _INDEX_OF[name], _BEFORE_ANY_CLAIM, picture.shape.format, picture.data
        )
        kept.append(RunInput(name=name, path=stored.path, num_bytes=stored.num_bytes, sha256=stored.sha256))
    return tuple(kept)


async def _image_of(store: Store, project: str, named: RunImage) -> bytes:
    """Raises ValueError with the rest of a sentence."""
    try:
        run = await store.runs.get(named.run_id, project=project)
    except NotFound as error:
        raise ValueError(f"names the run {named.run_id}, which is not there") from error
    record = next((image for image in run.images if image.index == named.index), None)
    if record is None:
        raise ValueError(f"names image {named.index} of run {run.id}, which has {len(run.images)} images")
    return await store.images.read(record.path)


def _other_size(taken: Pictures) -> list[FieldError]:
    picture, mask = taken.get(InputName.INIT_IMAGE), taken.get(InputName.MASK)
    if picture is None or mask is None:
        return []
    sides, wanted = (mask.shape.width, mask.shape.height), (picture.shape.width, picture.shape.height)
    if sides == wanted:
        return []
    message = f"is {sides[0]} x {sides[1]} pixels and init_image {wanted[0]} x {wanted[1]}; send it in the same size"
    return [FieldError(InputName.MASK.value, message)]
