"""What lies in launch/ and is told in docs/launching.md: each script is run with stand-ins for the launchers."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.runs import command_line
from tests.stores import small_store

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
LAUNCHERS = [path for path in SCRIPTS if path.name not in ("common.sh", "collect_wheels.sh")]
FILES = sorted(path for path in (ROOT / "launch").rglob("*") if path.is_file())
SAYS = '#!/bin/sh\necho "$(basename "$0") $*"; env | grep -E "^(EUPMIM|OMP|ACCELERATE)_" | sort\n'
ELSEWHERE = ("make ", "sbatch ", "docker ", "kubectl ")
"""Commands of the documentation that are not run here, as it says itself."""


@pytest.fixture
def run(tmp_path):
    """Runs a command line with stand-ins that say what they were called with; `stubs` are others, by name."""

    def run(line, stubs=None, **env):
        programs = tmp_path / "bin"
        programs.mkdir(exist_ok=True)
        names = ("accelerate", "torchrun", "deepspeed", "nvidia-smi")
        for name, text in (dict.fromkeys(names, SAYS) | {"nvidia-smi": "#!/bin/sh\nexit 9\n"} | (stubs or {})).items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        env = {"PATH": f"{programs}{os.pathsep}/usr/bin{os.pathsep}/bin", "TMPDIR": str(tmp_path), **env}
        done = subprocess.run(["bash", "-c", line], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout.splitlines(), done.stderr

    return run


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_launch_files_are_short(path):
    assert len(path.read_text().splitlines()) < 60


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(path):
    check = ["shellcheck", "-x", path] if shutil.which("shellcheck") else ["bash", "-n", path]
    done = subprocess.run(check, cwd=ROOT / "launch", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", [path.name for path in LAUNCHERS])
def test_a_script_without_a_subcommand_says_how_it_is_used(run, name):
    code, out, err = run(f"launch/{name}")
    assert (code, out) == (2, [])
    assert f"launch/{name} " in err
    assert "set -" not in err


@pytest.mark.parametrize(
    ("visible", "ranks"),
    [
        ({}, 2),
        ({"CUDA_VISIBLE_DEVICES": ""}, 2),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 2),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8f,GPU-6a,GPU-1"}, 3),
    ],
)
def test_there_is_a_rank_for_each_visible_gpu(run, visible, ranks):
    code, [command, threads, world], err = run("launch/local.sh train --config a.yaml", **visible)
    assert code == 0, err
    assert command == (
        f"accelerate launch --num_processes {ranks} --num_machines 1 --multi_gpu --main_process_port 0 "
        "--mixed_precision no --dynamo_backend no -m eupmim_dist train --config a.yaml"
    )
    assert (threads, world) == (f"EUPMIM_WORLD_SIZE={ranks}", "OMP_NUM_THREADS=1")


def test_several_nodes(run):
    place = "NODES=2 NODE_RANK=1 ENDPOINT=node0:29500 RANKS=4"
    _, [command, world, _], _ = run(f"{place} MIXED_PRECISION=bf16 launch/accelerate_nodes.sh train 'a b'")
    assert command == (
        "accelerate launch --multi_gpu --num_processes 8 --num_machines 2 --machine_rank 1 --main_process_ip node0 "
        "--main_process_port 29500 --mixed_precision bf16 --dynamo_backend no -m eupmim_dist train a b"
    )
    assert world == "EUPMIM_WORLD_SIZE=8"
    _, [command, *_], _ = run(f"{place} launch/torchrun.sh train")
    meet = "--nnodes 2 --node_rank 1 --rdzv_backend static --rdzv_endpoint node0:29500 --rdzv_id 0"
    assert command == f"torchrun {meet} --nproc_per_node 4 -m eupmim_dist train"
    code, out, err = run("NODES=2 launch/accelerate_nodes.sh train")
    assert (code, out) == (1, [])
    assert "NODE_RANK: number of this node, from 0" in err


def test_deepspeed_hands_on_what_each_rank_is_told(run, tmp_path):
    (tmp_path / "hosts").write_text("# all slots=1\nnode0\tslots=8\nnode1 slots=4\n")
    shows = SAYS + 'echo; cat "$DS_ENV_FILE"\n'
    told = {"NCCL_IB_DISABLE": "1", "NCCL_DEBUG_FILE": "a b", "HF_HUB_OFFLINE": "1", "HF_TOKEN": "secret"}
    code, out, err = run(
        f"HOSTFILE={tmp_path}/hosts ZERO=1 launch/deepspeed.sh train --config a.yaml", {"deepspeed": shows}, **told
    )
    assert code == 0, err
    given, handed_on = out[1 : out.index("")], out[out.index("") + 1 :]
    assert out[0] == (
        f"deepspeed --hostfile {tmp_path}/hosts --master_addr node0 --master_port 29500 "
        "--module eupmim_dist train --config a.yaml"
    )
    assert {"NCCL_IB_DISABLE=1", "HF_HUB_OFFLINE=1"} < set(handed_on)
    assert given == sorted(line for line in handed_on if not line.startswith(("PATH=", "NCCL_IB", "HF_")))
    assert {"EUPMIM_WORLD_SIZE=12", "ACCELERATE_USE_DEEPSPEED=true", "ACCELERATE_DEEPSPEED_ZERO_STAGE=1"} < set(given)
    assert not list(tmp_path.glob("tmp*"))


def test_a_hostfile_without_a_node_is_refused(run, tmp_path):
    (tmp_path / "hosts").write_text("# node0 slots=8\n\n")
    code, out, err = run(f"HOSTFILE={tmp_path}/hosts launch/deepspeed.sh train --config a.yaml")
    assert (code, out) == (2, [])
    assert err == f"{tmp_path}/hosts: names no node; write a line such as 'node0 slots=8' for each\n"


JOB = {
    "SLURM_JOB_NODELIST": "n[3-4]",
    "SLURM_NNODES": "2",
    "SLURM_JOB_ID": "20001",
    "SLURM_GPUS_ON_NODE": "2",
    "SLURM_CPUS_PER_TASK": "8",
}
SCONTROL = '#!/bin/sh\n[ "$1" = show ] && printf "n3\\nn4\\n" || echo "scontrol $*"\n'
# As srun does: the command once for each task, with its node's number; the highest exit code.
SRUN = """#!/bin/sh
echo "srun $1 $2"; shift 2; code=0
for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@" || code=$?; done
exit $code
"""


@pytest.mark.parametrize(("ended", "code", "requeued"), [(0, 0, False), (2, 2, False), (75, 0, True), (138, 0, True)])
def test_slurm_starts_each_node_and_queues_again_what_was_stopped_and_saved(run, tmp_path, ended, code, requeued):
    launcher = f'#!/bin/sh\necho "$*"; [ "$SLURM_NODEID" = 0 ] || exit {ended}\n'
    stubs = {"scontrol": SCONTROL, "srun": SRUN, "eupmim-dist": launcher}
    returned, out, err = run("launch/slurm.sh train --run-dir 'a b'", stubs, **JOB, SLURM_SUBMIT_DIR=str(tmp_path))
    command = "launch --nnodes 2 --nproc 2 --rdzv-endpoint n3:20001 --grace 600 --node-rank {} -- train --run-dir a b"
    first = ["srun --cpus-per-task=8 --kill-on-bad-exit=1", command.format(0), command.format(1)]
    assert (returned, out) == (code, first + ["scontrol requeue 20001"] * requeued), err


def test_the_manifest_is_a_pytorchjob_of_two_nodes():
    """As far as the operator checks it: its schema wants a cluster."""
    job = yaml.safe_load((ROOT / "launch/kubernetes/pytorchjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", job["metadata"]["name"])
    assert job["spec"].keys() == {"runPolicy", "pytorchReplicaSpecs"}
    assert job["spec"]["pytorchReplicaSpecs"].keys() == {"Master", "Worker"}
    for replica in job["spec"]["pytorchReplicaSpecs"].values():
        assert (replica["replicas"], replica["restartPolicy"]) == (1, "OnFailure")
        pod = replica["template"]["spec"]
        [container] = pod["containers"]
        assert container["name"] == "pytorch"
        words = [*container["command"], *container["args"]]
        ranks = (
            int(re.search(r"--nnodes=(\d+)", " ".join(words)).group(1))
            * container["resources"]["limits"]["nvidia.com/gpu"]
        )
        env = {each["name"]: each["value"] for each in container["env"]}
        assert env["EUPMIM_WORLD_SIZE"] == str(ranks)
        assert int(env["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < pod["terminationGracePeriodSeconds"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert set(re.findall(r"\$\((\w+)\)", " ".join(words))) == {"RANK", "MASTER_ADDR", "MASTER_PORT"}


def test_the_image_is_built_of_what_is_there():
    lines = (ROOT / "launch/kubernetes/Dockerfile").read_text().splitlines()
    stages = [line.split()[-1] for line in lines if re.match(r"FROM .* AS ", line)]
    assert {"cpu", "cuda"} < set(stages)
    for line in lines:
        if line.startswith("COPY "):
            assert all((ROOT / name).exists() for name in line.split()[1:-1]), line
    config = re.search(r"--config=(\S+)", (ROOT / "launch/kubernetes/pytorchjob.yaml").read_text()).group(1)
    assert (ROOT / config).exists()


def documented():
    text = (ROOT / "docs/launching.md").read_text()
    return re.findall(
        r"^    ((?:[A-Z_]+=\S* )*(?:eupmim-dist|accelerate|launch/|make|sbatch|docker|kubectl) ?.*)$", text, re.M
    )


@pytest.mark.parametrize("line", [line for line in documented() if not line.startswith(ELSEWHERE)])
def test_each_documented_command_starts_a_launcher(run, line, monkeypatch, capsys, tmp_path):
    if line.startswith("eupmim-dist launch"):
        options, _, subcommand = line.partition(" -- ")
        monkeypatch.chdir(ROOT)
        from eupmim_dist.cli.app import app

        app([*shlex.split(options)[1:], "--dry-run", "--", *shlex.split(subcommand)], standalone_mode=False)
        assert "accelerate launch" in capsys.readouterr().err
        return
    if line.startswith("eupmim-dist doctor"):
        monkeypatch.chdir(ROOT)
        monkeypatch.setenv("EUPMIM_TIMEOUT_SECONDS", "20")
        small_store(tmp_path / "store")
        assert command_line(f"{line.partition(' ')[2]} --set data.dir={tmp_path}/store --run-dir {tmp_path}/run") == 0
        return
    (tmp_path / "hosts").write_text("node0 slots=2\nnode1 slots=2\n")
    code, out, err = run(line.replace("HOSTFILE=hosts", f"HOSTFILE={tmp_path}/hosts"))
    assert code == 0, err
    assert out[0].startswith(("accelerate launch ", "torchrun ", "deepspeed "))


def test_the_documented_files_and_targets_are_there():
    text = (ROOT / "docs/launching.md").read_text()
    for name in re.findall(r"(?:launch|configs)/[\w/]+\.\w+", text):
        assert (ROOT / name).exists(), name
    targets = (ROOT / "Makefile").read_text()
    for name in re.findall(r"make ([\w-]+)", text):
        assert f"\n{name}:" in targets, name
    assert all(path.name in text for path in FILES if path.name != "common.sh")
    assert all(path.stem in text for path in (ROOT / "configs/accelerate").glob("*.yaml"))
