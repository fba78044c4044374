"""(e), of tensors: headers of safetensors files, weights and optimizer states that are not finite, released models."""

import json
import math
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tests.fuzz.text import changed
from tests.fuzz.values import changed_json, json_value

NUMBERS = [math.nan, math.inf, -math.inf, 1e38, -1e38, 3.4e38, 1e30, 1e20, 1e-45, 0.0]
DTYPES = [
    "F64", "F32", "F16", "BF16", "I64", "I32", "I8", "U8", "BOOL", "F8_E4M3", "C64", "X", "", "f32",
]  # fmt: skip
SHAPES: list[Any] = [
    [], [0], [1], [-1], [31], [31, 8, 1], [8, 31], [2**40, 2**40], [2**63, 0], [31, 8.0], ["31", 8], None, 31,
    [[31], 8],
]  # fmt: skip


def read(file: Path) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:start]), content[start:]


def write(file: Path, header: str, data: bytes, length: int | None = None) -> None:
    """`length`: what the first eight bytes say of the header, if not the truth."""
    text = header.encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def change_header(file: Path, random: Random) -> str:
    """Returns what was changed."""
    header, data = read(file)
    length = None
    name = random.choice([key for key in header if key != "__metadata__"])
    entry = header[name]
    others = [key for key in header if key not in ("__metadata__", name)]
    what = random.choice(
        ["dtype", "shape", "offsets", "metadata", "length", "name", "swap", "gone", "text", "data", "anything"]
    )
    text = None
    match what:
        case "dtype":
            entry["dtype"] = random.choice([*DTYPES, json_value(random)])
        case "shape":
            entry["shape"] = random.choice([*SHAPES, entry["shape"][::-1], [*entry["shape"], 1], entry["shape"][:-1]])
        case "offsets":
            first, last = entry["data_offsets"]
            entry["data_offsets"] = random.choice(
                [
                    [last, first],
                    [-1, last],
                    [first, last + 1],
                    [first, 2**63],
                    [0, 0],
                    [first],
                    None,
                    [first + 1, last + 1],
                    ["0", 1],
                ]
            )
        case "metadata":
            text = _changed_metadata(header, random)
        case "length":
            length = random.choice([0, 1, 2, 8, 2**31, 2**63, 2**64 - 1, 100, 10**8])
        case "name":
            header[
                random.choice(
                    [name + "x", "", "table.x", "dense.x", "__metadata__", "\ud800", "x" * 3000, name.upper()]
                )
            ] = header.pop(name)
        case "swap" if others:
            other = random.choice(others)
            header[name], header[other] = header[other], header[name]
        case "gone":
            del header[name]
        case "text":
            what, raw = changed(json.dumps(header).encode(), random)
            text = raw.decode("utf-8", "surrogateescape").encode("utf-8", "replace").decode()
        case "data":
            data = random.choice([data[:-1], data + b"x", b"", data[:100], data * 2])
        case _:
            text = changed_json(header, random)
    write(file, json.dumps(header) if text is None else text, data, length)
    return what


def _changed_metadata(header: dict[str, Any], random: Random) -> str:
    """What torch's reader learns of it: which rows a file holds."""
    metadata = header.get("__metadata__", {})
    if "DCP_SHARDING_INFO" not in metadata or random.random() < 0.3:
        header["__metadata__"] = "@changed@"
        return json.dumps(header).replace('"@changed@"', changed_json(metadata, random))
    sharding = json.loads(metadata["DCP_SHARDING_INFO"])
    if random.random() < 0.5:
        name = random.choice(list(sharding))
        offsets = sharding[name]["saved_offsets"]
        sharding[name]["saved_offsets"] = random.choice(
            [
                [],
                [0],
                [-1, 0],
                [1, 0],
                [0, 1],
                [2**63, 0],
                [10**20, 0],
                [0.5, 0],
                ["0", 0],
                None,
                [offsets],
                [True, False],
                "00",
            ]
        )
        text = json.dumps(sharding)
    else:
        text = changed_json(sharding, random)
    metadata["DCP_SHARDING_INFO"] = random.choice([text, text, text, sharding, None, "", "{", "[]"])
    return json.dumps(header)


def set_values(directory: Path, prefix: str, value: float, random: Random | None = None) -> None:
    """Of the float tensors of a checkpoint whose names start so, all numbers; with `random` perhaps only some."""
    for file in sorted(directory.glob("*.safetensors")):
        header, data = read(file)
        content = bytearray(data)
        for name, entry in header.items():
            if name == "__metadata__" or entry["dtype"] != "F32" or not name.startswith(prefix):
                continue
            first, last = entry["data_offsets"]
            numbers = np.frombuffer(content, "<f4", (last - first) // 4, first)
            if len(numbers):
                start, stop = 0, len(numbers)
                if random and random.random() < 0.7:
                    start = random.randrange(len(numbers))
                    stop = random.choice([start + 1, min(start + 8, len(numbers))])
                numbers[start:stop] = value
        write(file, json.dumps(header), bytes(content))


def change_values(directory: Path, random: Random) -> str:
    value = random.choice(NUMBERS)
    prefix = random.choice(
        [
            "",
            "dense.",
            "table.",
            "table.item",
            "table.user",
            "dense_optimizer",
            "table_optimizer",
            _name(directory, random),
        ]
    )
    set_values(directory, prefix, value, random)
    return f"{value} in {prefix or 'all'}"


def _name(directory: Path, random: Random) -> str:
    files = sorted(directory.glob("*.safetensors"))
    return random.choice([name for file in files for name in read(file)[0] if name != "__metadata__"])


def change_release(file: Path, random: Random) -> str:
    """A tensor of the authors' model.pt."""
    import torch

    tensors: dict[Any, Any] = torch.load(file, weights_only=True)
    name = random.choice(list(tensors))
    tensor = tensors[name]
    what = random.choice(["value", "value", "shape", "dtype", "gone", "added", "kind", "bytes", "text"])
    match what:
        case "value":
            tensor.view(-1)[random.choice([slice(None), slice(0, 1)])] = random.choice(NUMBERS)
        case "shape":
            tensors[name] = random.choice(
                [
                    tensor[:-1],
                    tensor[None],
                    tensor.flatten(),
                    tensor.sum(),
                    tensor.new_zeros(0),
                    tensor.mT if tensor.ndim > 1 else tensor[:1],
                    tensor.repeat(2, *[1] * (tensor.ndim - 1)),
                ]
            )
        case "dtype":
            kind = random.choice(
                [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64]
            )
            tensors[name] = tensor.to(kind)
        case "gone":
            del tensors[name]
        case "added":
            key = random.choice(
                [
                    "x",
                    "",
                    "multi_interest_network.query_mlps.7.0.weight",
                    "multi_interest_network.encoder.layers.9.x",
                    7,
                    None,
                ]
            )
            tensors[key] = tensor
        case "kind":
            tensors[name] = random.choice(
                [None, 1, "x", [tensor], {"a": tensor}, tensor.to_sparse() if tensor.ndim > 1 else 0]
            )
        case "bytes":
            content = bytearray(file.read_bytes())
            for _ in range(random.choice([1, 10])):
                content[random.randrange(len(content))] ^= 1 << random.randrange(8)
            file.write_bytes(bytes(content))
            return what
        case _:
            what, content_ = changed(file.read_bytes()[:2000], random)
            file.write_bytes(content_)
            return what
    torch.save(tensors, file)
    return f"{what} of {name}"
