"""`min-llm launch`: one training in several processes, here, through SLURM or as a Kubernetes JobSet."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from min_llm.config import UserError

if TYPE_CHECKING:
    from min_llm.parallel.launch import Ending, Job


def launch(
    settings: Annotated[
        list[str], typer.Argument(metavar="-- [CONFIG.yaml] [key=value ...]", show_default=False)
    ],
    processes: Annotated[int, typer.Option(help="How many processes.")] = 1,
    devices_per_process: Annotated[
        int, typer.Option(help="Virtual devices of each process on this machine; 0: as the mesh needs.")
    ] = 0,
    slurm: Annotated[bool, typer.Option("--slurm", help="Write an sbatch script and submit it.")] = False,
    kubernetes: Annotated[bool, typer.Option("--kubernetes", help="Print a JobSet manifest.")] = False,
    gpus: Annotated[int, typer.Option(help="GPUs of each process (SLURM, Kubernetes).")] = 0,
    time: Annotated[str, typer.Option(help="Time limit of the job, as sbatch reads it (SLURM).")] = "",
    sbatch: Annotated[
        list[str] | None,
        typer.Option(help="Another option of sbatch, as partition=gpu; may come several times."),
    ] = None,
    image: Annotated[str, typer.Option(help="Container image with min_llm (Kubernetes).")] = "",
    claim: Annotated[str, typer.Option(help="PersistentVolumeClaim for the runs (Kubernetes).")] = "",
) -> None:
    """Train in several processes: `min-llm launch --processes 2 -- CONFIG.yaml parallel.mesh.fsdp=2`.

    On this machine they use the processor; a machine with accelerators needs only one process, `min-llm train`.
    """
    from min_llm import config as config_lib
    from min_llm.parallel import launch as launcher
    from min_llm.reporting import reporter
    from min_llm.train.config import RunConfig, check
    from min_llm.train.environment import commit

    if processes < 1:
        raise UserError(f"--processes is {processes}; it must be at least 1.")
    if slurm and kubernetes:
        raise UserError("--slurm and --kubernetes are two ways; give one of them.")
    cfg = check(config_lib.from_words(RunConfig, settings))
    each, size = gpus if slurm or kubernetes else devices_per_process, cfg.parallel.mesh.size
    if (each and each * processes != size) or (size % processes and not slurm and not kubernetes):
        raise UserError(
            f"parallel.mesh is for {size} devices, which {processes} processes of {each or 'equally many'} devices do "
            "not make. Change one of them."
        )
    folder = Path(cfg.out) / cfg.name
    job = launcher.Job(cfg.name, folder, processes, tuple(settings))
    if kubernetes:
        import yaml

        if not image:
            raise UserError("A JobSet runs a container: give --image NAME with min_llm in it.")
        sys.stdout.write(yaml.safe_dump(launcher.jobset(job, image, gpus, claim), sort_keys=False))
        return
    job = launcher.Job(cfg.name, folder, processes, tuple(settings), launcher.snapshot(folder, commit()))
    if slurm:
        options = dict(option.partition("=")[::2] for option in sbatch or [])
        submit(job, launcher.slurm(job, options, gpus, time))
        return
    ending = launcher.local(job, size // processes, reporter().info)
    if ending.rank is not None:
        sys.stderr.write(describe(job, ending))
    if ending.status:
        sys.exit(ending.status)


def submit(job: Job, script: str) -> None:
    """Write the script into the run folder and hand it to sbatch."""
    path = job.folder / "launch.sbatch"
    path.write_text(script, encoding="utf-8")
    if shutil.which("sbatch") is None:
        raise UserError(
            f"There is no sbatch on this machine. The script is {path}: submit it where there is."
        )
    done = subprocess.run(["sbatch", str(path)], text=True, capture_output=True)
    if done.returncode:
        raise UserError(f"sbatch refused {path}: {done.stderr.strip() or done.stdout.strip()}")
    print(done.stdout.strip())


def describe(job: Job, ending: Ending) -> str:
    """What happened, whose fault it was and how to go on."""
    from min_llm.train.checkpoints import Checkpoints

    latest = Checkpoints(job.folder / "checkpoints").latest()
    goes_on = (
        f"The last checkpoint is step {latest}; the"
        if latest is not None
        else "There is no checkpoint yet; the"
    )
    last = f"Its last lines:\n{ending.output}\n" if ending.output else ""
    return (
        f"{last}min-llm: process {ending.rank} of {job.processes} {ending.how}; the others ended within "
        f"{ending.seconds:.1f} s. {goes_on} same command resumes, with any number of processes.\n"
    )
