"""Several processes: they give one process's losses, end together, go on in another number; what launches them."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import yaml

from min_llm.cli.main import main
from min_llm.config import UserError
from min_llm.parallel import launch, processes
from min_llm.parallel.stragglers import Stragglers, own_seconds
from tests.parallel import launched

# Stand-ins for SLURM's commands, found first on PATH: sbatch runs the script at once, and again when it was requeued;
# srun starts every task here. They check our script, not SLURM.
SLURM = {
    "sbatch": """
        export SLURM_JOB_ID=$$ SLURM_NTASKS="$(sed -n 's/^#SBATCH --ntasks=//p' "$1")" SLURM_JOB_NODELIST=here
        export SLURM_RESTART_COUNT=0
        while :; do
            rm -f "$STAND_IN/requeued"
            bash "$1" >>"$STAND_IN/output.txt" 2>&1
            status=$?
            [ -e "$STAND_IN/requeued" ] || break
            SLURM_RESTART_COUNT=$((SLURM_RESTART_COUNT + 1))
        done
        echo "Submitted batch job $SLURM_JOB_ID"
        exit $status""",
    "srun": """
        shift
        rm -f "$STAND_IN/tasks"
        for ((rank = 0; rank < SLURM_NTASKS; rank++)); do
            SLURM_PROCID=$rank "$@" &
            echo $! >>"$STAND_IN/tasks"
        done
        status=0
        for task in $(cat "$STAND_IN/tasks"); do wait "$task" || status=$?; done
        exit $status""",
    "scontrol": """
        if [ "$1" = requeue ]; then touch "$STAND_IN/requeued"; else echo 127.0.0.1; fi""",
}


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    """The tiny run, and its losses in one process."""
    made = launched.Trainings(tmp_path_factory.mktemp("trainings"))
    made.train("one")
    return made


@pytest.mark.devices
@pytest.mark.newest
def test_preempted_under_slurm_it_goes_on_with_one_process_losses(trainings, tmp_path):
    """SIGTERM to one of two tasks: both stop at the same step, the script requeues itself, the run is finished."""
    for name, text in SLURM.items():
        (tmp_path / name).write_text(f"#!/bin/bash{text}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "STAND_IN": str(tmp_path), "XLA_FLAGS": ""}
    job = trainings.start(["launch", "--slurm", "--processes", "2", "--"], "slurm", {"fsdp": 2}, **env)
    trainings.wait_for_checkpoint("slurm", job)
    os.kill(int((tmp_path / "tasks").read_text().split()[1]), signal.SIGTERM)
    trainings.ends(job, "slurm")
    said = (tmp_path / "output.txt").read_text()
    assert "min-llm: status 143, restart 0, last checkpoint: step " in said
    assert "min-llm: status 0, restart 1, last checkpoint: step 120" in said
    assert launched.apart(trainings.losses("slurm"), trainings.losses("one")) < 1e-4


@pytest.mark.devices
def test_a_killed_process_ends_the_others_and_another_number_goes_on(trainings):
    """Two processes with two devices each; the second is killed; one process with one device finishes the run."""
    job = trainings.launch("killed", 2, fsdp=2, tp=2)
    trainings.wait_for_checkpoint("killed", job)
    os.kill(launched.children(job)[1], signal.SIGKILL)
    began = time.monotonic()
    trainings.ends(job, "killed", status=1)
    assert time.monotonic() - began < 30
    said = trainings.output("killed").read_text()
    assert "min-llm: process 1 of 2 was killed by SIGKILL; the others ended within" in said
    step = trainings.checkpoints("killed")[-1]
    assert f"The last checkpoint is step {step}; the same command resumes" in said
    trainings.train("killed")
    assert launched.apart(trainings.losses("killed"), trainings.losses("one")) < 1e-4
    assert (trainings.folder / "runs/killed/processes/1.txt").exists()


# Who they are


def test_the_environment_says_which_process_this_is():
    meeting = {processes.COORDINATOR: "node1:1234", processes.PROCESSES: "4"}
    assert processes.place({}) is None
    assert (
        processes.place({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}) is None
    )  # nobody said that they belong together
    assert processes.place({**meeting, processes.PROCESSES: "1", processes.PROCESS: "0"}) is None
    for name in processes.RANKS:
        assert processes.place({**meeting, name: "3"}) == processes.Place(3, 4, "node1:1234")
    with pytest.raises(UserError, match="only 4"):
        processes.place({**meeting, "SLURM_PROCID": "4"})
    for broken in ({**meeting}, {processes.PROCESSES: "2", processes.PROCESS: "0"}):
        with pytest.raises(UserError, match="needs MIN_LLM_COORDINATOR=HOST:PORT"):
            processes.place(broken)


def test_alone_everything_answers_at_once():
    assert (processes.rank(), processes.count(), processes.primary()) == (0, 1, True)
    assert processes.share([1]) == [1] and processes.collect(2) == [2]
    processes.barrier()
    agreed = processes.Agreement()
    assert [agreed(False), agreed(True)] == [False, True]


# Watching


def start(*codes):
    """Python processes that run these lines."""
    return [subprocess.Popen([sys.executable, "-c", f"import os, time; {code}"]) for code in codes]


def test_the_first_to_fail_ends_the_others(monkeypatch):
    monkeypatch.setattr(launch, "GRACE", 0.3)
    ending = launch.watch(start("time.sleep(60)", "os._exit(7)"), lambda rank: f"output of {rank}")
    assert (ending.status, ending.rank, ending.how) == (1, 1, "ended with status 7")
    assert ending.output == "output of 1" and ending.seconds < 10
    refused = launch.watch(start("os._exit(2)", "time.sleep(60)"), str)
    assert (refused.status, refused.rank) == (2, 0)


def test_processes_that_stop_or_finish_together_are_nobodys_fault():
    assert launch.watch(start("pass", "pass"), str) == launch.Ending(0)
    assert launch.watch(start("os._exit(143)", "time.sleep(0.2); os._exit(143)"), str) == launch.Ending(143)


def test_an_aborted_process_is_a_victim():
    """JAX aborts all others at once when process 0 dies."""
    assert launch.culprit({0: -signal.SIGKILL, 1: -signal.SIGABRT}) == 0
    assert launch.culprit({0: -signal.SIGABRT, 1: 1, 2: -signal.SIGABRT}) == 1
    assert launch.how(-signal.SIGKILL) == "was killed by SIGKILL"


# Launching


def test_local_processes_get_devices_and_the_snapshot(tmp_path):
    given = {"XLA_FLAGS": "--a=1 --xla_force_host_platform_device_count=8", "PYTHONPATH": "/x", "HOME": "/h"}
    env = launch.environment(given, 2, tmp_path)
    assert env["XLA_FLAGS"] == "--a=1 --xla_force_host_platform_device_count=2"
    assert env["PYTHONPATH"] == f"{tmp_path}{os.pathsep}/x" and env["HOME"] == "/h"


def test_the_snapshot_runs_and_knows_its_commit(tmp_path):
    place = launch.snapshot(tmp_path, "abc+")
    assert launch.snapshot(tmp_path, "later") == place and len(list((tmp_path / "code").iterdir())) == 1
    code = "import min_llm, min_llm.train.environment as e; print(min_llm.__file__, e.commit())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(place)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [str(place / "min_llm" / "__init__.py"), "abc+"], done.stderr


def test_the_slurm_script(tmp_path):
    job = launch.Job("run 1", tmp_path / "run 1", 4, ("a b.yaml", "train.steps=5"), tmp_path / "code")
    script = launch.slurm(job, {"partition": "gpu", "time": "2:00:00"}, gpus=8, limit="1:00:00")
    lines = script.splitlines()
    for line in (
        "--nodes=4",
        "--ntasks=4",
        "--gpus-per-node=8",
        "--partition=gpu",
        "--time=2:00:00",
        "--requeue",
    ):
        assert f"#SBATCH {line}" in lines
    assert f"#SBATCH --signal=TERM@{launch.SAVING}" in lines and "#SBATCH --time=1:00:00" not in lines
    assert "train 'a b.yaml' train.steps=5" in script
    (tmp_path / "script").write_text(script)
    subprocess.run(["bash", "-n", tmp_path / "script"], check=True)


def test_the_jobset(capsys, monkeypatch, tmp_path):
    words = [
        "launch",
        "--kubernetes",
        "--processes",
        "4",
        "--gpus",
        "8",
        "--image",
        "here/min_llm:1",
        "--claim",
        "disk",
    ]
    monkeypatch.setattr(
        sys, "argv", ["min-llm", *words, "--", "name=My_Run", f"out={tmp_path}", "parallel.mesh.fsdp=32"]
    )
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    made = yaml.safe_load(capsys.readouterr().out)
    assert (made["kind"], made["metadata"]["name"]) == ("JobSet", "my-run")
    work = made["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (work["completions"], work["completionMode"]) == (4, "Indexed")
    container = work["template"]["spec"]["containers"][0]
    env = {row["name"]: row["value"] for row in container["env"]}
    assert env == {processes.COORDINATOR: "my-run-train-0-0.my-run:8476", processes.PROCESSES: "4"}
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    assert container["command"][:4] == ["python", "-m", "min_llm", "train"]
    assert container["volumeMounts"] == [{"name": "runs", "mountPath": str(tmp_path)}]
    assert processes.place({**env, "JOB_COMPLETION_INDEX": "3"}).rank == 3


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--processes", "3", "--", "parallel.mesh.fsdp=4"], "which 3 processes of equally many devices"),
        (["--slurm", "--gpus", "8", "--processes", "2", "--", "name=a"], "2 processes of 8 devices"),
        (["--processes", "0", "--", "name=a"], "--processes is 0"),
        (["--slurm", "--kubernetes", "--", "name=a"], "two ways"),
        (["--kubernetes", "--", "name=a"], "--image"),
        (["--processes", "2", "--", "train.stepz=4"], "stepz"),
    ],
)
def test_what_cannot_be_launched_is_a_sentence(words, sentence, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["min-llm", "launch", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2 and sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# Stragglers


@pytest.mark.parametrize("seed", range(20))
def test_a_process_20_percent_slower_is_found_within_10_steps(seed):
    """Simulated: 64 processes with 3 % of noise, each of them held up one time in twenty."""
    draw, slow, detector = random.Random(seed), seed, Stragglers()

    def row(factor):
        times = [draw.gauss(1, 0.03) * (1.5 if draw.random() < 0.05 else 1) for _ in range(64)]
        times[slow] *= factor
        return times

    for _ in range(100):
        assert detector.feed(row(1.0)) == {}
    found = [detector.feed(row(1.2)) for _ in range(10)]
    named = [rank for one in found for rank in one]
    assert named == [slow]  # once, and nobody else
    assert max(one[slow] for one in found if one) > 1.1


def test_of_two_the_slower_one_is_named():
    detector = Stragglers()
    assert [detector.feed([1.0, 1.3]) for _ in range(9)] == [{}] * 7 + [{1: 1.3}, {}]


def test_own_seconds_take_the_waiting_out():
    """Three need 1, 1 and 1.5 s for the product and 0.1 s for data, so all of them see 1.6 s."""
    assert own_seconds(1.6, [0.1] * 3, [0.01, 0.01, 0.015]) == pytest.approx([1.1, 1.1, 1.6])
    assert own_seconds(1.0, [0.8, 0.0], [0.01, 0.01]) == pytest.approx([1.0, 0.2])  # one waits for its data
