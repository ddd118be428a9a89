"""lm-eval 0.4.13, unmodified and offline, against our server over HTTP; our own class and evaluations on the same
requests give the same numbers."""

import contextlib
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from min_llm.evals.choices import Question, choices
from min_llm.evals.exact import Task, exact
from min_llm.evals.lm_eval import MinLLM
from min_llm.evals.perplexity import perplexity
from peers import client
from tests import toy_folder
from tests.toys import LLAMA

pytestmark = pytest.mark.peers

WORDS = "the theory, in all rest he said: a b test 東京 Größe 🙂".split()
MODEL_LEN = LLAMA.max_seq_len


def text(rng, low, high):
    return " ".join(rng.choice(WORDS, rng.integers(low, high)))


def questions(rng):
    return [
        {"context": text(rng, 1, 9), "choices": [text(rng, 1, 7) for _ in range(3)], "answer": i % 3}
        for i in range(24)
    ]


def documents(rng):
    """The longest is of several windows."""
    return [{"text": text(rng, n, 2 * n)} for n in (1, 4, 12, 30, 90)]


def prompts(rng):
    return [{"prompt": text(rng, 2, 8), "answer": "a"} for _ in range(6)]


COMMON = "dataset_path: json\ntest_split: test\n"
TASKS = {
    "toy_choices": (questions, "output_type: multiple_choice\ndoc_to_text: '{{context}}'\n"
        "doc_to_choice: '{{choices}}'\ndoc_to_target: answer\nmetric_list: [{metric: acc}, {metric: acc_bytes}]\n"),
    "toy_rolling": (documents, "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        "metric_list: [{metric: bits_per_byte}]\n"),
    "toy_generate": (prompts, "output_type: generate_until\ndoc_to_text: '{{prompt}}'\ndoc_to_target: '{{answer}}'\n"
        "generation_kwargs: {until: ['t', 'zz'], max_gen_toks: 12}\nmetric_list: [{metric: exact_match}]\n"),
}  # fmt: skip


@contextlib.contextmanager
def serving(folder, log):
    """The address of `min-llm serve folder` in a process of its own."""
    command = [sys.executable, "-m", "min_llm", "serve", str(folder), "--port", "0", "--drain", "0"]
    with (
        log.open("w") as said,
        subprocess.Popen(command, stdout=said, stderr=said, cwd=client.ROOT) as process,
    ):
        try:
            while not (found := re.search(r"http://[\w.]+:\d+", log.read_text())):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
                    pytest.fail(f"the server ended: {log.read_text()}")
            yield found[0]
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toy_folder.write(tmp_path_factory.mktemp("lm_eval") / "toy")


@pytest.fixture(scope="module")
def told(folder):
    """What lm-eval says: {task: (its metrics, [its samples])}."""
    if client.interpreter() is None:
        pytest.skip(client.MISSING)
    work, rng = folder.parent, np.random.default_rng(0)
    (work / "tasks").mkdir()
    for name, (rows, yaml) in TASKS.items():
        file = work / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows(rng)))
        head = f"task: {name}\n{COMMON}dataset_kwargs: {{data_files: {{test: {file}}}}}\n"
        (work / "tasks" / f"{name}.yaml").write_text(head + yaml)
    with serving(folder, work / "server.log") as url:
        model = (
            f"model=toy,base_url={url}/v1/completions,max_length={MODEL_LEN},num_concurrent=4,max_retries=1"
        )
        command = [
            client.interpreter(), "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", model,
            "--tasks", *TASKS, "--include_path", work / "tasks", "--log_samples", "--output_path", work / "out",
        ]  # fmt: skip
        offline = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hf")}
        env = {**os.environ, **offline}
        done = subprocess.run(
            list(map(str, command)), env=env, cwd=work, text=True, timeout=200, capture_output=True
        )
    assert done.returncode == 0, done.stdout + done.stderr + (work / "server.log").read_text()
    (results,) = (work / "out").rglob("results_*.json")
    metrics = json.loads(results.read_text())["results"]
    found = {}
    for name in TASKS:
        (samples,) = (work / "out").rglob(f"samples_{name}_*.jsonl")
        rows = [json.loads(line) for line in samples.read_text().splitlines()]
        found[name] = metrics[name], sorted(rows, key=lambda row: row["doc_id"])
    return found


@pytest.fixture(scope="module")
def lm(folder):
    return MinLLM(str(folder))


def requests(samples):
    """lm-eval's own requests, in order, as the class takes them."""
    made = [tuple(some.values()) for sample in samples for some in sample["arguments"].values()]
    return [SimpleNamespace(args=args) for args in made]


def responses(samples):
    return [some[0] for sample in samples for some in sample["resps"]]


def test_multiple_choice(told, lm):
    metrics, samples = told["toy_choices"]
    theirs = [(float(logprob), greedy in (True, "True")) for logprob, greedy in responses(samples)]
    ours = lm.loglikelihood(requests(samples))
    assert len(ours) == 72
    np.testing.assert_allclose([p for p, _ in ours], [p for p, _ in theirs], rtol=1e-6, atol=1e-6)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    asked = [Question(d["context"], tuple(d["choices"]), d["answer"]) for d in (s["doc"] for s in samples)]
    found = choices(lm.engine, asked)
    assert 0 < found.raw.correct < 24
    assert metrics["acc,none"] == found.raw.value and metrics["acc_bytes,none"] == found.per_byte.value


def test_rolling_log_likelihood(told, lm):
    metrics, samples = told["toy_rolling"]
    theirs, ours = [float(r) for r in responses(samples)], lm.loglikelihood_rolling(requests(samples))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    found = perplexity(lm.engine, [s["doc"]["text"] for s in samples])
    assert found.tokens > 2 * MODEL_LEN
    assert metrics["bits_per_byte,none"] == pytest.approx(found.bits_per_byte, rel=1e-6)


def test_generation(told, lm):
    metrics, samples = told["toy_generate"]
    assert lm.generate_until(requests(samples)) == responses(samples)
    assert len(set(responses(samples))) > 3 and not any("t" in said for said in responses(samples))
    encode = lm.loaded.tokenizer.encode
    tasks = [Task(s["doc"]["prompt"], (s["doc"]["answer"],)) for s in samples]
    found = exact(lm.engine, [encode(t.prompt) for t in tasks], tasks, max_tokens=12, stop=("t", "zz"))
    assert list(found.texts) == responses(samples)
    assert metrics["exact_match,none"] == found.strict.value


def test_the_class_in_lm_eval_itself(told, lm, folder):
    """Where lm_eval is installed beside JAX (min_llm[evals]): its evaluator takes the class."""
    lm_eval = pytest.importorskip(
        "lm_eval", reason="pip install 'min_llm[evals]' puts lm_eval beside min_llm"
    )
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_path=str(folder.parent / "tasks"), include_defaults=False)
    found = lm_eval.simple_evaluate(lm, tasks=list(TASKS), task_manager=tasks, bootstrap_iters=0)["results"]
    for name, (metrics, _) in told.items():
        for key in metrics.keys() - {"alias"}:
            if "stderr" not in key and isinstance(metrics[key], float):
                assert found[name][key] == pytest.approx(metrics[key], rel=1e-6), (name, key)
