"""File systems that a database cannot be on."""

from __future__ import annotations

from pathlib import Path

from safelight.errors import ConfigError

NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "beegfs"}
    | {"fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.rclone"}
)


def refuse_network_file_system(folder: Path) -> None:
    """Raises ConfigError where `folder` is on one: its file locks are not reliable enough for several
    writing processes."""
    kind = _file_system(folder.resolve())
    if kind in NETWORK_FILE_SYSTEMS:
        raise ConfigError(f"{folder} is on a network file system ({kind}); put the data folder on a local disk")


def _file_system(folder: Path) -> str | None:
    """The type of the file system that holds `folder`, where /proc tells."""
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    mounts = [(Path(fields[1].replace("\\040", " ")), fields[2]) for fields in map(str.split, lines) if len(fields) > 2]
    holding = [(len(point.parts), kind) for point, kind in mounts if folder.is_relative_to(point)]
    # The last of several mounts on one point is the one that is seen.
    return max(reversed(holding), key=lambda mount: mount[0])[1] if holding else None
