"""(g) Numbers on the command line: zero, negative, past 32 and 64 bits, of thousands of digits, and no numbers."""

from collections.abc import Callable
from random import Random

from tests.fuzz.place import Chosen, Place, Plan, words
from tests.fuzz.roles import SOURCES
from tests.fuzz.values import NUMBERS

CSV = f"prepare log.csv {SOURCES['log.csv'].replace(' --min-count 1', '')} --out new"
LINES = {
    f"{CSV} --min-count={{n}}": ("log.csv",),
    f"{CSV} --min-count=1 --seed={{n}}": ("log.csv",),
    "synth --users={n} --items=120 --mean-length=10 --out new": (),
    "synth --users=20 --items={n} --mean-length=10 --out new": (),
    "synth --users=20 --items=400 --mean-length={n} --out new": (),
    "synth --users=20 --items=120 --mean-length=10 --seed={n} --out new": (),
    "synth --users={n} --items={n} --mean-length={n} --seed={n} --out new": (),
    "reshard run --nproc={n} --out new": ("run",),
    "consolidate run --max-shard-size={n} --out new": ("run", "store"),
    "consolidate run --max-shard-size={n}KB --out new": ("run", "store"),
    "consolidate run --max-shard-size={n}TB --out new": ("run", "store"),
    "evaluate run --top-n={n} --json out.json": ("run", "store"),
    "evaluate run --top-n=2,{n} --json out.json": ("run", "store"),
    "evaluate --data store --baseline ease --top-n={n} --json out.json": ("store",),
    "evaluate run --top-n=3 --categories items.csv --diversity={n} --json out.json": ("run", "store", "items.csv"),
    "recommend model --user u1 --top-n={n} --json out.json": ("model", "store"),
    "recommend model --user={n} --top-n=3 --json out.json": ("model", "store"),
    "recommend model --user u1 --top-n=3 --categories items.csv --diversity={n} --json out.json": (
        "model",
        "store",
        "items.csv",
    ),
    "train --config small.yaml --run-dir new --set seed={n}": ("small.yaml", "store"),
    "train --config small.yaml --run-dir new --set train.global_batch_size={n}": ("small.yaml", "store"),
    "train --config small.yaml --run-dir new --set train.accumulation={n}": ("small.yaml", "store"),
    "train --config small.yaml --run-dir new --set objective.num_negatives={n}": ("small.yaml", "store"),
    "train --config small.yaml --run-dir new --set evaluation.batch_size={n}": ("small.yaml", "store"),
    "train --config small.yaml --run-dir new --set task.history_length={n}": ("small.yaml", "store"),
    "train --config small.yaml --run-dir new --set world_size={n}": ("small.yaml", "store"),
    "launch --dry-run --nproc={n} -- train": (),
    "launch --dry-run --nnodes={n} --node-rank 0 --rdzv-endpoint a:1 -- train": (),
    "launch --dry-run --nnodes=2 --node-rank={n} --rdzv-endpoint a:1 -- train": (),
    "launch --dry-run --nnodes=2 --node-rank=0 --rdzv-endpoint a:{n} -- train": (),
    "launch --dry-run --nproc 2 --threads={n} -- train": (),
    "launch --dry-run --nproc 2 --max-restarts={n} -- train": (),
    "launch --dry-run --nproc 2 --grace={n} -- train": (),
    "import released.pt --data store --out new --set model.num_levels={n}": ("released.pt", "store"),
    "import released.pt --data store --out new --set task.history_length={n}": ("released.pt", "store"),
}


def draw(place: Place, random: Random) -> Plan:
    line, needs = random.choice(list(LINES.items()))
    number = random.choice(NUMBERS)
    if random.random() < 0.1:
        number = str(random.choice([-1, 1]) * random.randrange(1 << random.choice([31, 32, 63, 64, 65, 200])))
    return _plan(place, line, number, needs)


def _plan(place: Place, line: str, number: str, needs: tuple[str, ...]) -> Plan:
    for name in needs:
        place.take(name)
    after = {"reshard": ["verify", "new"], "import": words("recommend new --user u1 --top-n 3 --json out.json")}
    first = words(line, n=number)
    return Plan(f"number {number[:30]!r}: {line}", [first, *([after[first[0]]] if first[0] in after else [])])


def _chosen(start: str, number: str) -> Callable[[Place], Plan]:
    line, needs = next((line, needs) for line, needs in LINES.items() if line.startswith(start))
    return lambda place: _plan(place, line, number, needs)


CHOSEN: Chosen = {
    "nproc": _chosen("reshard", "2147483648"),
    "shard-size": _chosen("consolidate run --max-shard-size={n}TB", "9" * 400),
    "top-n": _chosen("evaluate run --top-n={n}", str(10**20)),
    "users": _chosen("synth --users={n} --items=120", str(2**63)),
    "seed": _chosen("synth --users=20 --items=120", str(10**20)),
    "min-count": _chosen("prepare", str(10**20)),
    "digits": _chosen("recommend model --user u1 --top-n={n}", "9" * 5000),
}
