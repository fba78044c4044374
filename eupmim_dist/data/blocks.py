"""The one rule for cutting a range into contiguous parts: rows of a table, slots of a batch, users to rank."""


def block_range(total: int, index: int, num_blocks: int) -> tuple[int, int]:
    """First and past-the-last element of block `index`: ceil(total / num_blocks) each, the last ones shorter.

    It is also how DTensor's Shard(0) cuts a dimension, so a shard is a valid DTensor as it stands.
    """
    size = -(-total // num_blocks)
    return min(index * size, total), min((index + 1) * size, total)
