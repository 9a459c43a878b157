"""Runs that begin from a picture: what is taken, what is refused, and that it is kept before the answer."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from safelight.config import ServerSettings
from safelight.inputs import look_at, start_mask, start_pixels
from safelight.runs import InputName, OutputFormat

from .house import solid_png


def picture(width: int = 64, height: int = 96, kind: str = "PNG", mode: str = "RGB", **options: object) -> bytes:
    columns = np.tile(np.arange(width, dtype=np.uint8), (height, 1))
    buffer = io.BytesIO()
    Image.fromarray(columns).convert(mode).save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def bomb(side: int = 60_000) -> bytes:
    """A PNG of some bytes that says it is very large."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    whole = solid_png(8, 8, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return whole[:8] + chunk + whole[8 + len(chunk) :]


async def record_of(house, answer):
    assert answer.status_code == 202, answer.text
    return (await house.client.get(f"/runs/{answer.json()['run_id']}")).json()


async def submit(house, **body):
    asked = {"prompt": "a red house"} | body
    return await house.client.post("/pinhole/predict", json=asked, headers={"Prefer": "respond-async"})


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
async def test_a_picture_is_kept_with_the_run_and_not_in_its_record(house, kind):
    sent = picture(kind=kind)
    answer = await submit(house, init_image="data:image/png;base64," + text(sent), strength=0.5)
    record = await record_of(house, answer)
    assert record["params"]["strength"] == 0.5 and record["params"]["has_mask"] is False
    assert (record["params"]["width"], record["params"]["height"]) == (64, 96), "the picture's own sides"
    assert text(sent)[:40] not in str(record)
    [kept] = await house.store.runs.inputs(record["id"])
    assert kept.name is InputName.INIT_IMAGE and await house.store.images.read(kept.path) == sent


async def test_sides_that_are_named_win_and_others_are_rounded_to_what_can_be_drawn(house):
    named = await record_of(house, await submit(house, init_image=text(picture()), width=128))
    assert (named["params"]["width"], named["params"]["height"]) == (128, 96)
    odd = await record_of(house, await submit(house, init_image=text(picture(101, 99))))
    assert (odd["params"]["width"], odd["params"]["height"]) == (104, 96)
    assert odd["params"]["strength"] == 0.8


async def test_a_mask_of_the_same_size_is_kept_beside_it(house):
    record = await record_of(house, await submit(house, init_image=text(picture()), mask=text(picture(mode="L"))))
    assert record["params"]["has_mask"] is True
    assert [each.name for each in await house.store.runs.inputs(record["id"])] == ["init_image", "mask"]


async def test_an_earlier_run_s_image_is_copied(house):
    async with house.working():
        first = await house.client.post("/pinhole/predict", json={"prompt": "x", "width": 64, "height": 64, "seed": 7})
    run_id = first.json()["run_id"]
    second = await record_of(house, await submit(house, init_image=f"run:{run_id}/0"))
    await house.client.delete(f"/runs/{run_id}")
    [kept] = await house.store.runs.inputs(second["id"])
    assert await house.store.images.read(kept.path) == solid_png(64, 64, 7)


@pytest.mark.parametrize(
    ("field", "body", "reason"),
    [
        ("init_image", {"init_image": "not base64!"}, "neither base64"),
        ("init_image", {"init_image": 7}, "neither base64"),
        ("init_image", {"init_image": text(b"GIF89a" + bytes(100))}, "no whole PNG, JPEG or WebP"),
        ("init_image", {"init_image": text(picture()[:-40])}, "no whole PNG"),
        ("init_image", {"init_image": text(bomb())}, "more than 16777216"),
        ("init_image", {"init_image": text(bomb(5000))}, "5000 x 5000 pixels"),
        ("init_image", {"init_image": text(picture(64, 4))}, "less than 8"),
        ("init_image", {"init_image": "run:00000000-0000-4000-8000-000000000000/0"}, "is not there"),
        (
            "mask",
            {"init_image": text(picture()), "mask": text(picture(64, 64))},
            "64 x 64 pixels and init_image 64 x 96",
        ),
        ("mask", {"mask": text(picture())}, "there is none"),
        ("strength", {"strength": 0.5}, "there is none"),
        ("strength", {"init_image": text(picture()), "strength": 0}, "over 0 and at most 1"),
        ("strength", {"init_image": text(picture()), "strength": 1.5}, "nearest is 1.0"),
        ("width", {"init_image": text(picture(2048, 64))}, "the nearest is 1024"),
    ],
)
async def test_what_cannot_be_used_is_refused_by_its_field_and_nothing_is_kept(house, field, body, reason):
    answer = await submit(house, **body)
    assert answer.status_code == 422
    [wrong] = answer.json()["errors"]
    assert wrong["field"] == field and reason in wrong["message"]
    assert await house.store.images.shelves() == []


async def test_of_a_run_that_is_refused_for_its_deadline_no_picture_is_kept(house):
    async with house.working():
        assert (await house.predict(width=64, height=64)).status_code == 200
    for _ in range(10):
        await submit(house)
    answer = await submit(house, init_image=text(picture()), deadline_ms=100)
    assert answer.json()["code"] == "deadline_unreachable"
    kept = [await house.store.images.orphans((), -60.0, shelf=shelf) for shelf in await house.store.images.shelves()]
    assert sum(map(len, kept)) == 1, "only that of the run that was drawn"


async def test_an_image_of_another_project_s_run_is_not_there(house):
    async with house.working():
        first = await house.client.post("/pinhole/predict", json={"prompt": "x", "width": 64, "height": 64})
    stranger = house.client_with(await house.make_key("predict", project="theirs"))
    body = {"prompt": "x", "init_image": f"run:{first.json()['run_id']}/0"}
    answer = await stranger.post("/pinhole/predict", json=body)
    assert answer.status_code == 422 and "is not there" in answer.text


async def test_only_pictures_make_a_body_large(house, make_house):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    large = text(buffer.getvalue())
    assert len(large) > 300_000
    assert (await submit(house, init_image=large)).status_code == 202
    assert (await submit(house, init_image=large, note="x" * 70_000)).status_code == 413
    assert (await submit(house, note=large)).status_code == 413
    assert (await submit(house, note="init_image" + large)).status_code == 413
    assert (await submit(house, init_image="", note=[[]] * 30_000)).status_code == 413, "many small values take long"
    assert (await submit(house, note=[{"mask": large[:100]}] * 30_000)).status_code == 413
    assert (await submit(house, init_image=large.replace("/", "\\/"))).status_code != 413
    async with make_house(ServerSettings(max_picture_bytes=1000)) as narrow:
        assert (await submit(narrow, init_image=large)).status_code == 413


async def test_pictures_go_with_their_run(house):
    record = await record_of(house, await submit(house, init_image=text(picture()), mask=text(picture())))
    kept = await house.store.runs.inputs(record["id"])
    await house.store.images.sweep(
        await house.store.runs.image_paths(record["id"][:2]), older_than_seconds=-1, shelf=record["id"][:2]
    )
    assert all([await house.store.images.read(each.path) for each in kept]), "no orphans while the run is there"
    await house.client.post(f"/runs/{record['id']}/cancel")
    assert (await house.client.delete(f"/runs/{record['id']}")).status_code == 204
    assert await house.store.images.shelves() == [] or not await house.store.runs.image_paths(record["id"][:2])
    assert await house.store.runs.inputs(record["id"]) == ()


async def test_the_same_request_again_keeps_no_second_copy(house):
    headers = {"Idempotency-Key": "k", "Prefer": "respond-async"}
    body = {"prompt": "x", "init_image": text(picture())}
    first, second = [await house.client.post("/pinhole/predict", json=body, headers=headers) for _ in range(2)]
    assert first.json()["run_id"] == second.json()["run_id"]
    assert (
        len(await house.store.images.shelves()) == 1 or first.json()["run_id"][:2] in await house.store.images.shelves()
    )


def test_a_photograph_is_taken_as_it_is_shown():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = picture(64, 32, kind="JPEG", exif=exif)
    assert (look_at(data).width, look_at(data).height) == (32, 64)
    assert start_pixels(data, 64, 32).shape == (64, 32, 3)


def test_sixteen_bits_of_grey_are_scaled_and_not_cut_off():
    shades = np.array([[0, 200, 20_000, 65_535]] * 8, np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(shades).save(buffer, "PNG")
    assert Image.open(io.BytesIO(buffer.getvalue())).mode.startswith("I")
    assert start_pixels(buffer.getvalue(), 8, 4)[0, :, 0].tolist() == [0, 0, 78, 255]
    assert start_mask(buffer.getvalue(), 8, 4)[0].tolist() == [False, False, False, True]


def test_white_of_a_mask_is_painted_anew():
    mask = start_mask(picture(256, 8, mode="L"), 8, 256)
    assert mask.shape == (8, 256) and not mask[:, :128].any() and mask[:, 128:].all()


def test_a_picture_is_scaled_to_the_run():
    assert start_pixels(picture(64, 96), 48, 32).shape == (48, 32, 3)


def test_a_photograph_of_a_telephone_is_a_jpeg():
    buffer = io.BytesIO()
    first, second = (Image.open(io.BytesIO(picture(64, 32, kind="JPEG"))) for _ in range(2))
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    assert look_at(buffer.getvalue()).format is OutputFormat.JPEG
    assert start_pixels(buffer.getvalue(), 32, 64).shape == (32, 64, 3)


def test_a_sideways_picture_with_odd_exif_is_turned_all_the_same():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "maker", 72.0
    odd = bytearray(exif.tobytes())
    # The fraction is under a number that belongs to integers: Pillow reads that, and cannot write it again.
    odd[41] = 45
    data = picture(64, 32, kind="JPEG", exif=bytes(odd))
    assert (look_at(data).width, look_at(data).height) == (32, 64)
    assert start_pixels(data, 64, 32).shape == (64, 32, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_turns_it(orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG", exif=exif)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(buffer)))
    assert np.array_equal(start_pixels(buffer.getvalue(), *shown.shape[:2]), shown)
