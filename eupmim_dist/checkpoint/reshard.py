"""A training checkpoint rewritten as another number of ranks would have written it."""

from pathlib import Path

from eupmim_dist.checkpoint.layout import Checkpoint, check_files
from eupmim_dist.checkpoint.manifest import STEP_MANIFEST, write_manifest
from eupmim_dist.checkpoint.pieces import Piece, finite, read_pieces, shape_of, stored_blocks
from eupmim_dist.checkpoint.stream import Part, shard_metadata, write_parts
from eupmim_dist.data.blocks import block_range
from eupmim_dist.files import out_directory
from eupmim_dist.hashing import OnBytes, ignore_bytes
from eupmim_dist.parallel.placement import is_replicated


def reshard(checkpoint: Checkpoint, num_ranks: int, out: Path, on_bytes: OnBytes = ignore_bytes) -> None:
    """Writes weights, optimizer states and progress of a training checkpoint to `out`, in a file per rank.

    Tables and their states that `num_ranks` ranks would shard are cut as they would be; what each of them would hold
    whole goes whole to the file that is smallest. Less than 1 GB is needed, whatever the size of the tables.

    `on_bytes` hears of the bytes of each block checked and of each written. Raises Damaged for a damaged checkpoint.
    """
    check_files(checkpoint.path, on_bytes=on_bytes)
    description = checkpoint.manifest.model_dump(mode="json", exclude={"format_version", "files"}, exclude_unset=True)
    description["config"] = checkpoint.config.model_dump(mode="json")  # in today's form
    with out_directory(out) as staging:
        files = {}
        for number, parts in enumerate(_dealt(checkpoint, num_ranks), start=1):
            if not parts:
                continue
            name = f"shard-{number:05d}-of-{num_ranks:05d}.safetensors"
            files[name] = write_parts(staging / name, parts, shard_metadata(parts), on_bytes)
        write_manifest(staging, STEP_MANIFEST, description, files)


def _dealt(checkpoint: Checkpoint, num_ranks: int) -> list[list[Part]]:
    """What to write to the file of each rank."""
    shards: list[list[Part]] = [[] for _ in range(num_ranks)]
    whole = {}
    for name, pieces in read_pieces(checkpoint.path).items():
        if _is_sharded(checkpoint, name, num_ranks):
            for rank, shard in enumerate(shards):
                first, stop = block_range(shape_of(pieces)[0], rank, num_ranks)
                if first < stop:
                    shard.append(_part(name, pieces, first, stop))
        else:
            shape_of(pieces)  # raises if it is not whole
            whole[name] = pieces
    sizes = [sum(part.num_bytes for part in shard) for shard in shards]
    for name, pieces in sorted(whole.items(), key=lambda item: -_num_bytes(item[1])):
        smallest = sizes.index(min(sizes))
        shards[smallest].append(_part(name, pieces))
        sizes[smallest] += _num_bytes(pieces)
    return shards


def _is_sharded(checkpoint: Checkpoint, name: str, num_ranks: int) -> bool:
    """Whether ranks would hold a tensor in shards."""
    kind, _, rest = name.partition(".")
    if num_ranks == 1 or kind not in ("table", "table_optimizer"):
        return False
    table = rest if kind == "table" else rest.rpartition(".")[0]
    return not is_replicated(table, checkpoint.tables[table][0], num_ranks, checkpoint.config.tables)


def _part(name: str, pieces: list[Piece], first: int = 0, stop: int | None = None) -> Part:
    """Rows first..stop-1 of a tensor, all of them if None."""
    shape = shape_of(pieces)
    num_bytes = _num_bytes(pieces)
    if stop is not None:
        shape, num_bytes = (stop - first, *shape[1:]), (stop - first) * pieces[0].row_bytes
    blocks = finite(stored_blocks(pieces, first, stop), pieces, name)
    return Part(name, pieces[0].dtype, shape, num_bytes, blocks, first)


def _num_bytes(pieces: list[Piece]) -> int:
    return sum(piece.num_bytes for piece in pieces)
