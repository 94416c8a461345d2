"""The pictures in a gateway's store, as files."""

from pathlib import Path

from scripted import World


async def files(world: World) -> list[Path]:
    """Pictures in the store once all is settled."""
    await world.service.drain()
    assert world.config.store is not None
    return _files_under(Path(world.config.store.url.removeprefix("file://")))


def _files_under(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
