"""`deploy`, `deployments`, `undeploy`, `models`: what is served under which name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safelight.catalog import COMMIT, CatalogEntry, check_model, commit_of, is_hub_id, kept_name, name_for
from safelight.catalog_file import load_catalog, weights_finder
from safelight.cli.loras import read_loras
from safelight.cli.opening import with_store
from safelight.cli.options import ConfigOption, DataOption, JsonOption, existing_settings_of, settings_of
from safelight.cli.output import explain, say, say_json, say_table, size, when
from safelight.cli.overrides import Overrides, parse_overrides
from safelight.config import Settings
from safelight.deployments import Defaults, Deployment, DeploymentStatus, check_name
from safelight.errors import FieldError, InvalidFields, ModelError

if TYPE_CHECKING:
    from safelight.store import Store


def deploy(
    identifier: Annotated[str, typer.Argument(help="Identifier from `safelight models`, repository, folder or file.")],
    name: Annotated[
        str | None, typer.Option(help="Name to serve it under. Unset: the identifier, or the last part of a path.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A default or limit of the deployment; may be repeated."),
    ] = None,
    loras: Annotated[
        list[str] | None,
        typer.Option("--lora", metavar="NAME=FILE", help="A LoRA that requests may use; may be repeated."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Commit of the weights. Unset: the one found on this machine.")
    ] = None,
    data: DataOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve a model under a name; a name that is taken gets a new version. A running server takes it up at once."""
    settings = settings_of(config, data)
    wanted = new_deployment(
        settings, identifier, name=name, overrides=parse_overrides(overrides or ()), revision=revision
    )
    if loras:
        files = read_loras(loras, _weights(settings, wanted.model, wanted.revision))
        wanted = replace(wanted, serving=replace(wanted.serving, lora_files=files))
    made = with_store(settings, lambda store: store.deployments.deploy(wanted))
    if as_json:
        say_json(made)
    else:
        say(f"deployed {made.model} as {made.name}, version {made.version}")
    explain_deployment(settings, made)


def deployments(data: DataOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List what is served."""
    found = with_store(existing_settings_of(config, data), lambda store: store.deployments.list())
    if as_json:
        say_json(found)
        return
    rows = (
        (
            each.name,
            each.version,
            each.model,
            _status(each),
            f"{each.defaults.width}x{each.defaults.height}",
            each.defaults.num_inference_steps,
            each.defaults.sampler,
            when(each.created_at),
        )
        for each in found
    )
    columns = ("NAME", "VERSION", "MODEL", "STATUS", "SIZE", "STEPS", "SAMPLER", "SINCE")
    say_table(columns, rows, empty="nothing is deployed; try `safelight deploy pinhole`")


def undeploy(
    name: Annotated[str, typer.Argument(help="Name of the deployment.")],
    data: DataOption = None,
    config: ConfigOption = None,
) -> None:
    """Stop serving a name. Runs that were accepted still end."""
    with_store(existing_settings_of(config, data), lambda store: store.deployments.undeploy(name))
    say(f"{name} is no longer served; runs already accepted still end")


def models(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the identifiers that can be deployed, and whether their weights are on this machine."""
    settings = settings_of(config, None)
    found = [(entry, _weights(settings, entry.identifier)) for entry in load_catalog(settings.catalog).values()]
    if as_json:
        say_json([_as_plain(entry, weights) for entry, weights in found])
        return
    rows = (
        (
            entry.identifier,
            entry.title,
            entry.family or "",
            entry.licence,
            size(entry.num_bytes) if entry.num_bytes else "",
            entry.native_side,
            "here" if isinstance(weights, Path) else "not here",
        )
        for entry, weights in found
    )
    say_table(("IDENTIFIER", "TITLE", "FAMILY", "LICENCE", "SIZE", "NATIVE", "WEIGHTS"), rows, empty="")
    for _, weights in found:
        if isinstance(weights, ModelError):
            explain(f"note: {weights.message}")


def new_deployment(
    settings: Settings, identifier: str, *, name: str | None, overrides: Overrides, revision: str | None
) -> Deployment:
    """What `deploy` would store; the store gives it its version. Raises InvalidFields and ModelError."""
    catalog = load_catalog(settings.catalog)
    is_own = identifier in settings.models
    if not is_own:
        check_model(identifier, catalog=catalog, hf_home=settings.hf_home)
    entry = catalog.get(identifier)
    name = name or (identifier if is_own else name_for(identifier, catalog=catalog))
    check_name(name)
    defaults, limits = overrides.apply(entry.defaults if entry else Defaults())
    return Deployment(
        name=name,
        version=0,
        model=identifier if is_own else kept_name(identifier, catalog=catalog),
        revision=_revision(settings, identifier, revision),
        defaults=defaults,
        limits=limits,
        serving=overrides.apply_serving(),
        embed_metadata=overrides.embed_metadata,
    )


async def deploy_missing(store: Store, settings: Settings, identifiers: list[str]) -> list[Deployment]:
    """Deploy each model under its own name where nothing has that name yet; what was added."""
    taken = {each.name for each in await store.deployments.list()}
    wanted = [
        new_deployment(settings, each, name=None, overrides=Overrides(), revision=None)
        for each in dict.fromkeys(identifiers)
    ]
    return [await store.deployments.deploy(each) for each in wanted if each.name not in taken]


def explain_deployment(settings: Settings, made: Deployment) -> None:
    """Licence, a default size that is not the model's own, and missing weights, each with what to do."""
    entry = load_catalog(settings.catalog).get(made.model)
    if entry is not None:
        explain(f"{entry.title}, licence {entry.licence}: {entry.licence_url}")
        _explain_size(made, entry)
    weights = _weights(settings, made.model, made.revision)
    if isinstance(weights, ModelError):
        explain(f"warning: {weights.message}; until then its runs fail")


def _explain_size(made: Deployment, entry: CatalogEntry) -> None:
    side = entry.native_side
    if (made.defaults.width, made.defaults.height) == (side, side):
        return
    current = f"{made.defaults.width}x{made.defaults.height}"
    explain(
        f"note: requests that name no size get {current}; {entry.identifier} was trained at {side}x{side}."
        f" To change: safelight deploy {entry.identifier} --name {made.name} --set width={side} --set height={side}"
    )


def _revision(settings: Settings, identifier: str, wanted: str | None) -> str | None:
    """The commit to record: the one of the hub snapshot that is here, or a wanted one that the catalogue pins, here or
    not. Raises InvalidFields for any other."""
    if wanted is None or _commit_here(settings, identifier, wanted) == wanted:
        return wanted or _commit_here(settings, identifier)
    entry = load_catalog(settings.catalog).get(identifier)
    is_of_hub = bool(entry.hub) if entry else is_hub_id(identifier)
    if not is_of_hub or identifier in settings.models:
        raise InvalidFields([FieldError("revision", f"{identifier} is a folder without revisions; leave it out")])
    if entry is None or wanted not in {source.commit for source in entry.hub}:
        raise InvalidFields([FieldError("revision", _say_lost(settings, identifier, wanted))])
    return wanted


def _commit_here(settings: Settings, identifier: str, wanted: str | None = None) -> str | None:
    weights = _weights(settings, identifier, wanted)
    return commit_of(weights if isinstance(weights, Path) else None)


def _say_lost(settings: Settings, identifier: str, wanted: str) -> str:
    """Why a revision cannot be deployed, and the remedy."""
    if not COMMIT.fullmatch(wanted):
        return f"{wanted!r} is not a commit in full: 40 of 0-9 and a-f"
    here = _commit_here(settings, identifier)
    there = f"; there is {here}" if here else ""
    return (
        f"{wanted} of {identifier} is not on this machine{there}; fetch it with `safelight pull {identifier}"
        f" --revision {wanted}` first"
    )


def _weights(settings: Settings, model: str, revision: str | None = None) -> Path | ModelError:
    try:
        return weights_finder(settings)(model, revision=revision)
    except ModelError as error:
        return error


def _status(deployment: Deployment) -> str:
    said = deployment.status_reason
    if deployment.status is DeploymentStatus.ACTIVE and deployment.load_seconds is not None:
        said = f"loaded in {deployment.load_seconds:.1f} s"
    return f"{deployment.status} ({said})" if said else deployment.status.value


def _as_plain(entry: CatalogEntry, weights: Path | ModelError) -> dict[str, object]:
    plain = {key: getattr(entry, key) for key in ("identifier", "title", "family", "licence", "licence_url")}
    plain |= {"num_bytes": entry.num_bytes, "native_side": entry.native_side}
    if isinstance(weights, ModelError):
        return plain | {"is_here": False, "folder": None, "remedy": weights.message}
    return plain | {"is_here": True, "folder": str(weights), "remedy": None}
