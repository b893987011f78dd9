"""W&B is used when it can be reached and never stands in the way; our own history survives a kill."""

import json
import logging
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import create_server
from threading import Thread

import lightning as L
import pytest
import yaml
from matplotlib.image import imsave

from pinn_odelora.errors import InputError
from pinn_odelora.lightning import tracking
from pinn_odelora.lightning.outside import in_time
from pinn_odelora.lightning.wandb_files import kept_steps
from pinn_odelora.runs.history import History
from pinn_odelora.runs.save import versions

ROOT = Path(__file__).parent.parent
KEY = "0123456789abcdef" * 3


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A user without an account, whose home is an empty folder; W&B starts afresh."""
    import wandb

    for name in list(os.environ):
        if name.startswith("WANDB_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    wandb.teardown()
    yield home
    wandb.teardown()


def start(folder, **more):
    (logger,) = tracking.make_loggers("wandb", folder, project="tests", **more)
    return logger


def inspect(*options):
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def parts(folder, run_id="*"):
    return sorted((folder / "wandb").glob(f"offline-run-*-{run_id}"))


def logged(folder):
    """The rows of one offline run, as W&B itself reads them."""
    records = map(json.loads, inspect(folder).splitlines())
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def synced(line, cwd):
    """What a sync line would upload."""
    command = [sys.executable, "-m", *shlex.split(line), "--dry-run"]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=cwd, timeout=60).stderr


# --- Weights & Biases ------------------------------------------------------------------------------------------------


def test_without_a_key_everything_is_in_the_offline_run(home, tmp_path, capfd):
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    config = {"lora": {"rank": 4}, "seed": 1}
    about = {"group": "burgers/odelora/rank4", "job_type": "adapt", "name": "first", "tags": ["a", "b"]}
    logger = start(folder, config=config, **about)
    for i in range(4):
        metrics = {
            "step": 10 * i,
            "loss": abs(i - 2) + 0.5,
            "error/rel_l2": abs(i - 1) + 0.25,
            "lora/balance": math.nan,
            "loss/pde": 1.0,
            "cost/gradient_evals": 4 * i,
            "cost/seconds": 0.5 * i,
            "stability/largest_rise": 3 - i,
            "gradient/norm": i,
        }
        logger.log_metrics(metrics, step=10 * i)
    imsave(tmp_path / "u.png", [[0.0, 1.0]])
    run = logger.experiment
    tracking.log_images(run, {"solution": tmp_path / "u.png"})
    tracking.log_final_table(run, ["x", "u"], [[0.5, 2.0], [0.25, 3.0]])
    tracking.log_summary(run, {"rel_l2": 0.125, "versions": {"torch": "2"}})
    tracking.finish(run)

    assert capfd.readouterr() == ("", "W&B is offline: there is no API key; `wandb login` stores one.\n")
    outside = {path for path in home.rglob("*") if path.is_file()}
    assert all(path.is_relative_to(home / ".cache/wandb/logs") for path in outside), "the run is in its folder"
    assert tracking.sync_line(run) == "wandb sync runs/one/wandb"
    (part,) = parts(folder, logger.version)
    kept = json.loads(inspect("--summary", part))
    assert (kept["state"], kept["project"], kept["name"], kept["tags"]) == ("finished", "tests", "first", ["a", "b"])
    assert kept["config"].items() >= config.items()
    summary = kept["summary"]
    assert (summary["loss"], summary["error/rel_l2"]) == ({"min": 0.5}, {"min": 0.25})
    assert (summary["stability/largest_rise"], summary["cost/gradient_evals"]) == ({"max": 3}, {"last": 12})
    assert (summary["gradient/norm"], summary["rel_l2"]) == (3, 0.125)
    table, image = (part / "files" / summary[name]["path"] for name in ("final/points", "figures/solution"))
    assert json.loads(table.read_text())["data"] == [[0.5, 2.0], [0.25, 3.0]]
    assert image.read_bytes() == (tmp_path / "u.png").read_bytes()

    records = [json.loads(line) for line in inspect(part).splitlines()]
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert [row["step"] for row in rows[:4]] == [0, 10, 20, 30]
    assert all("trainer/global_step" not in row for row in rows)
    axes = {m["metric"].get("name") or m["metric"]["glob_name"]: m["metric"] for m in records if m["type"] == "metric"}
    over = {name: metric["step_metric"] for name, metric in axes.items() if "step_metric" in metric}
    evaluations = {"loss", "loss/pde", "error/rel_l2", "stability/largest_rise"}
    assert {name for name, by in over.items() if by == "cost/gradient_evals"} == evaluations
    assert {name for name, by in over.items() if by == "cost/seconds"} == {"by_seconds/loss", "by_seconds/rel_l2"}
    assert {over[name] for name in ("lora/balance", "cost/gradient_evals", "cost/seconds", "gradient/norm")} == {"step"}
    assert [row["by_seconds/rel_l2"] for row in rows[:4]] == [1.25, 0.25, 1.25, 2.25]
    (described,) = (record["run"] for record in records if record["type"] == "run")
    assert (described["run_group"], described["job_type"]) == ("burgers/odelora/rank4", "adapt")


@pytest.fixture(params=["closed", "silent"])
def mute(request, home, monkeypatch):
    """A server that refuses connections, or accepts them and says nothing."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with create_server(("127.0.0.1", 0)) as socket:
        url = f"http://127.0.0.1:{socket.getsockname()[1]}"
        monkeypatch.setenv("WANDB_BASE_URL", url)
        if request.param == "closed":
            socket.close()
        yield url


def given_up(url, folder, capfd, within):
    """The offline run of somebody whose server does not answer."""
    begun = time.monotonic()
    logger = start(folder, run_id="continued")
    assert time.monotonic() - begun < within
    logger.log_metrics({"loss": 1.0}, step=0)
    tracking.finish(logger.experiment)
    assert (logger.experiment.offline, logger.version) == (True, "continued")
    said = capfd.readouterr()
    assert said.err.startswith(f"W&B is offline: {url} started no run (")
    assert (said.err.count("\n"), said.out) == (1, "")
    assert logged(*parts(folder, "continued"))[0]["loss"] == 1.0


def test_a_server_that_does_not_answer_is_given_up_in_time(mute, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(tracking, "START", 1.0)
    given_up(mute, tmp_path, capfd, within=11)


@pytest.mark.slow
def test_a_run_waits_twenty_seconds_at_most(mute, tmp_path, capfd):
    given_up(mute, tmp_path, capfd, within=20)


@pytest.mark.parametrize(("key", "reason"), [("short", "API key must have 40+ characters"), (None, "no API key")])
def test_online_on_demand_without_a_usable_key_asks_nothing(home, tmp_path, monkeypatch, capfd, key, reason):
    monkeypatch.setenv("WANDB_MODE", "online")
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    tracking.finish(start(tmp_path).experiment)
    said = capfd.readouterr()
    assert reason in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_offline_and_disabled_on_demand_say_nothing(home, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = start(tmp_path).experiment
    tracking.finish(run)
    assert run.offline
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert tracking.make_loggers("wandb", tmp_path / "other", project="tests") == []
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "other").exists()


def test_a_run_that_was_left_open_does_not_swallow_the_next(home, tmp_path):
    first, second = start(tmp_path / "a"), start(tmp_path / "b")
    second.log_metrics({"loss": 2.0}, step=0)
    first.log_metrics({"loss": 1.0}, step=0)
    assert first.version != second.version
    for logger, folder, loss in ((first, "a", 1.0), (second, "b", 2.0)):
        tracking.finish(logger.experiment)
        assert [row["loss"] for row in logged(*parts(tmp_path / folder))] == [loss]


def test_a_resumed_run_keeps_its_id_and_one_line_uploads_all_parts(home, tmp_path):
    folder = tmp_path / "a run"
    for step in (0, 10):
        logger = start(folder, run_id="abc")
        logger.log_metrics({"loss": 1.0}, step=step)
        tracking.finish(logger.experiment)
        # The names of W&B's folders count in seconds.
        time.sleep(1.1)
    assert logger.version == "abc"
    assert [[row["step"] for row in logged(part)] for part in parts(folder, "abc")] == [[0], [10]]
    line = tracking.sync_line(logger.experiment)
    assert line == "wandb sync 'a run/wandb'"
    assert "Would sync 2 run(s)" in synced(line, tmp_path)


def test_rows_that_wandb_has_are_not_sent_again_by_a_continued_run(home, tmp_path, capfd):
    """The first part went on to step 30; its last saved state is that of step 20."""
    for steps in ((0, 10, 20, 30), (20, 30, 40)):
        logger = start(tmp_path, run_id="abc", start=steps[0])
        for step in steps:
            logger.log_metrics({"loss": 1.0 / (1 + step)}, step=step)
        tracking.finish(logger.experiment)
        # The names of W&B's folders count in seconds.
        time.sleep(1.1)
    assert [[row["step"] for row in logged(part)] for part in parts(tmp_path, "abc")] == [[0, 10, 20, 30], [40]]
    assert capfd.readouterr().err == 2 * "W&B is offline: there is no API key; `wandb login` stores one.\n"


def test_a_part_that_cannot_be_read_is_named_and_its_rows_come_again(home, tmp_path, capfd):
    part = tmp_path / "wandb" / "offline-run-20260101_000000-abc" / "run-abc.wandb"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"no record")
    assert kept_steps(tmp_path, "abc") == frozenset()
    said = capfd.readouterr().err
    assert said.startswith("run-abc.wandb of W&B cannot be read (")
    assert said.count("\n") == 1


class Server(BaseHTTPRequestHandler):
    """As much of a W&B server as a run needs."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.seen.append((self.path, body.decode(errors="replace")))
        answer = self.graphql(json.loads(body)) if self.path == "/graphql" else {}
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_PUT = do_POST  # noqa: N815

    def graphql(self, query):
        given = query.get("variables") or {}
        data = {"model": None, "project": None}
        if query.get("operationName") == "Viewer":
            nobody = {"email": "", "flags": "{}", "teams": {"edges": []}}
            data = {"viewer": {"id": "u", "entity": "me", "username": "me", **nobody}}
        if query.get("operationName") == "UpsertBucket":
            project = {"id": "p", "name": given["project"], "entity": {"id": "e", "name": "me"}}
            data = {"upsertBucket": {"bucket": {"id": "x", "name": given["name"], "project": project}}}
        if query.get("operationName") == "CreateRunFiles":
            url = f"http://127.0.0.1:{self.server.server_port}/file"
            files = [{"name": name, "uploadUrl": url} for name in given["files"]]
            data = {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files}}
        if query.get("operationName") == "CreateArtifact":
            sequence = {"id": "s", "latestArtifact": None}
            data = {"createArtifact": {"artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": sequence}}}
        return {"data": data}

    def log_message(self, *_):
        pass


@pytest.fixture
def server(home, monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.seen = []
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()


def test_with_a_key_and_a_server_the_run_is_online(server, home, tmp_path, capfd):
    logger = start(tmp_path, run_id="live", group="g")
    logger.log_metrics({"loss": 0.75}, step=20)
    run = logger.experiment
    imsave(tmp_path / "u.png", [[0.0, 1.0]])
    tracking.log_images(run, {"solution": tmp_path / "u.png"})
    tracking.log_final_table(run, ["x"], [[0.5]])
    tracking.finish(run)
    assert not run.offline
    assert tracking.sync_line(run) == f"http://127.0.0.1:{server.server_port}/me/tests/runs/live"
    streamed = "".join(body for path, body in server.seen if path == "/files/me/tests/live/file_stream")
    assert '\\"step\\":20' in streamed
    assert '\\"loss\\":0.75' in streamed
    assert any("media/table/final/points" in body for _, body in server.seen)
    assert capfd.readouterr() == ("", "")
    assert not (home / ".netrc").exists()
    assert any("RunResumeStatus" in body for _, body in server.seen), "an existing run of that id is continued"


def test_a_server_that_goes_away_costs_a_bounded_time_and_one_line(server, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(tracking, "FINISH", 2.0)
    logger = start(tmp_path, run_id="live")
    server.shutdown()
    server.server_close()
    begun = time.monotonic()
    logger.log_metrics({"loss": 0.75}, step=0)
    tracking.finish(logger.experiment)
    assert time.monotonic() - begun < 15
    said = capfd.readouterr().err
    assert said.startswith("W&B did not take everything; for the rest: wandb sync --include-online wandb")
    assert said.count("\n") == 1
    assert "/run-" in synced(said.rpartition(": ")[2], tmp_path)


@pytest.mark.parametrize("n", [3, pytest.param(200, marks=pytest.mark.slow)])
def test_all_runs_of_a_sweep_are_uploaded_by_one_line_and_each_by_its_own(n, home, tmp_path):
    lines = []
    for number in range(n):
        folder = tmp_path / f"runs/sweep/{number}"
        folder.mkdir(parents=True)
        for run_id in [f"id{number}"] * (2 if number == 0 else 1):  # the first one was interrupted and resumed
            logger = start(folder, run_id=run_id)
            logger.log_metrics({"loss": 1.0}, step=number)
            lines.append(logger.end())
    assert lines[-1] == f"W&B: wandb sync runs/sweep/{n - 1}/wandb"
    assert len(parts(tmp_path / "runs/sweep/0")) == 2
    assert "Would sync 2 run(s)" in synced(lines[0].removeprefix("W&B: "), tmp_path)
    every = synced("wandb sync --verbose " + " ".join(f"runs/sweep/{number}/wandb" for number in range(n)), tmp_path)
    assert f"Would sync {n + 1} run(s)" in every
    listed = every.partition("Would sync")[2].split()
    found = [sum(word.endswith(f"/run-id{number}.wandb") for word in listed) for number in range(n)]
    assert found == [2] + [1] * (n - 1), every


def test_training_goes_on_when_wandb_breaks(capsys):
    class Broken:
        calls = 0

        def define_metric(self, *_, **__):
            pass

        def log(self, _):
            self.calls += 1
            raise ConnectionResetError("Connection lost")

    broken = Broken()
    logger = tracking.RunLogger(experiment=broken)
    for step in range(5):
        logger.log_metrics({"loss": 1.0}, step=step)
    assert broken.calls == 1
    assert capsys.readouterr().err == "W&B did not take metrics any more (ConnectionResetError: Connection lost).\n"


def test_csv_never_imports_wandb():
    code = (
        "import sys\n"
        "from pinn_odelora.lightning.tracking import make_loggers\n"
        "assert make_loggers('csv', '.', project='p') == []\n"
        "assert 'wandb' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


def test_an_unknown_logger_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"'wandbb' .did you mean 'wandb'.*allowed: csv, mlflow, tensorboard, wandb"):
        tracking.make_loggers("wandbb", tmp_path, project="p")


@pytest.mark.filterwarnings("ignore")
def test_lightning_recommends_nothing(tmp_path, caplog):
    tracking.make_loggers("csv", tmp_path, project="p")
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        L.Trainer(accelerator="cpu", logger=[], default_root_dir=tmp_path)
    assert caplog.text, "Lightning says something"
    assert "litlogger" not in caplog.text
    assert "litmodels" not in caplog.text


# --- TensorBoard and MLflow -------------------------------------------------------------------------------------------

ROWS = [{"step": 10.0 * i, "loss": 0.5**i, "lora/balance": math.nan, "cost/seconds": 0.25 * i} for i in range(3)]
CONFIG = {"lora": {"rank": 4}, "budget": {"steps": 3}}


def ended(kind, folder, run_id="one", rows=ROWS, config=CONFIG):
    """A run from its start to its end; the line that it ends with."""
    (tracker,) = tracking.make_loggers(kind, folder, project="p", group="g", name="n", config=config, run_id=run_id)
    for row in rows:
        tracker.log_metrics(row, step=int(row["step"]))
    imsave(folder / "u.png", [[0.0, 1.0]])
    tracker.publish(
        {"rel_l2": 0.125, "failure": "", "ranks": None}, {"solution": folder / "u.png"}, ["x", "u"], [[0.5, 2.0]]
    )
    return tracker.end()


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_has_the_rows_the_outcome_and_the_line_that_shows_them(tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    assert ended("tensorboard", tmp_path / "run") == "TensorBoard: tensorboard --logdir run"
    assert not (tmp_path / "run/tensorboard/hparams.yaml").exists()
    events = accumulator.EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(0, 1.0), (10, 0.5), (20, 0.25)]
    assert {"cost/seconds", "lora/balance"} <= {*events.Tags()["scalars"]}
    assert events.Tags()["images"] == ["figures/solution"]
    said = {tag: events.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0] for tag in ("summary", "config")}
    assert b"rel_l2: 0.125" in said["summary"]
    assert b"rank: 4" in said["config"]


@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_the_rows_and_the_outcome_and_a_continued_run_is_the_same(tmp_path, capfd, monkeypatch):
    client = pytest.importorskip("mlflow.tracking").MlflowClient
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "run"
    folder.mkdir()
    store = f"sqlite:///{folder / 'mlflow/mlflow.db'}"
    assert ended("mlflow", folder, rows=ROWS[:2]) == f"MLflow: mlflow ui --backend-store-uri {store}"
    # From a state that was saved before the second row: it is made again, and is there once.
    ended("mlflow", folder, rows=ROWS[1:], config={"lora": {"rank": 4}, "budget": {"steps": 9}})
    assert capfd.readouterr() == ("", "")
    seen = client(store)
    (run,) = seen.search_runs([seen.get_experiment_by_name("p").experiment_id])
    assert (run.info.run_name, run.info.status, run.data.tags["group"]) == ("n", "FINISHED", "g")
    assert run.data.params == {"lora.rank": "4"}
    assert run.data.metrics["summary/rel_l2"] == 0.125
    history = seen.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(0, 1.0), (10, 0.5), (20, 0.25)]
    kept = {path.name for path in (folder / "mlflow/artifacts").rglob("*") if path.is_file()}
    assert kept == {"u.png", "points.json"}


def test_the_versions_in_a_summary_are_plain_words():
    """TensorBoard shows a summary as YAML, which has no word for torch's own class of a version."""
    assert yaml.safe_load(yaml.safe_dump(versions())) == versions()


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_shows_rows_that_a_continued_run_makes_again_once(tmp_path):
    """Killed with 20 in the log, and continued from a state saved at 10; and again where that has ended."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    begin = lambda **more: tracking.make_loggers("tensorboard", tmp_path, project="p", config=CONFIG, **more)[0]
    killed = begin()
    for row in ROWS:
        killed.log_metrics(row, step=int(row["step"]))
    killed.save()
    imsave(tmp_path / "u.png", [[0.0, 1.0]])
    for start, steps in ((10, 40), (40, 50)):
        continued = begin(start=start)
        for step in range(start, steps + 1, 10):
            continued.log_metrics({"loss": 0.5 ** (step / 10)}, step=step)
        continued.publish({"steps": steps}, {"solution": tmp_path / "u.png"}, ["x", "u"], [[0.5, 2.0]])
        continued.end()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(10 * k, 0.5**k) for k in range(6)]
    assert [e.step for e in events.Images("figures/solution")] == [50]


@pytest.mark.filterwarnings("ignore")
def test_a_store_of_mlflow_that_fails_ends_no_run_and_one_that_does_not_exist_is_refused(tmp_path, monkeypatch, capsys):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/shared.db")
    (tracker,) = tracking.make_loggers("mlflow", tmp_path / "run", project="p")
    assert (tmp_path / "shared.db").exists()
    assert not (tmp_path / "run").exists()

    limits = []

    def fails(*_, **__):
        limits.append(os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT"))
        raise ConnectionResetError("Connection lost")

    for name in ("log_batch", "log_dict", "set_terminated"):
        monkeypatch.setattr(tracker.experiment, name, fails)
    for row in ROWS:
        tracker.log_metrics(row, step=int(row["step"]))
    assert capsys.readouterr().err == "MLflow did not take metrics any more (ConnectionResetError: Connection lost).\n"
    tracker.publish({"loss": 1.0}, {}, ["x"], [[0.0]])
    tracker.end()
    assert limits == ["20"] * 3, "it is not waited for at any of these"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "unheard-of:///place")
    with pytest.raises(InputError, match=r"MLflow's store unheard-of:///place cannot be used: "):
        tracking.make_loggers("mlflow", tmp_path, project="p")


def test_what_takes_too_long_is_left_behind():
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match=r"not answered within 0\.1 s"):
        in_time(0.1, lambda: time.sleep(30))
    assert time.monotonic() - begun < 20
    assert in_time(20, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        in_time(20, lambda: 1 / 0)


def test_a_service_of_wandb_that_has_died_is_forgotten(monkeypatch, capsys):
    import wandb

    class Run:
        def __init__(self, error):
            self.error = error

        def finish(self, exit_code):
            raise self.error

    torn_down = []
    monkeypatch.setattr(wandb, "teardown", lambda: torn_down.append(1) or 1 / 0)
    tracking.finish(Run(ConnectionResetError("Connection lost")))
    assert torn_down == [1]
    assert capsys.readouterr().err == "W&B did not take the end of the run (ConnectionResetError: Connection lost).\n"
    tracking.finish(Run(wandb.Error("No")))
    assert torn_down == [1], "it runs, and may have other runs"


@pytest.mark.filterwarnings("ignore")
def test_a_server_of_mlflow_that_does_not_answer_is_not_waited_for(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from pinn_odelora.lightning import mlflow

    limits = [name for name in os.environ if name.startswith("MLFLOW_HTTP")]
    for name in limits:
        monkeypatch.delenv(name)
    monkeypatch.setitem(mlflow.LIMITS, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the user's own choice stays
    with create_server(("127.0.0.1", 0)) as mute:
        address = f"http://127.0.0.1:{mute.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        begun = time.monotonic()
        with pytest.raises(InputError, match=rf"MLflow's store {address} cannot be used: .*timed out"):
            tracking.make_loggers("mlflow", tmp_path, project="p")
        monkeypatch.setitem(mlflow.LIMITS, "MLFLOW_HTTP_REQUEST_TIMEOUT", "100")  # between two bytes of an answer
        monkeypatch.setattr(mlflow, "LONGEST", 0.5)
        with pytest.raises(InputError, match=rf"{address} cannot be used: it has not answered within 0\.5 s\."):
            tracking.make_loggers("mlflow", tmp_path, project="p")
    assert time.monotonic() - begun < 60
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


@pytest.mark.filterwarnings("ignore")
def test_a_board_that_fails_ends_no_run_and_its_folder_is_quoted(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my run"
    folder.mkdir()
    (tracker,) = tracking.make_loggers("tensorboard", folder, project="p")

    def fails(*_, **__):
        raise OSError("No space left on device")

    for name in ("add_scalar", "add_text"):
        monkeypatch.setattr(tracker.experiment, name, fails)
    for row in ROWS:
        tracker.log_metrics(row, step=int(row["step"]))
    tracker.publish({"rel_l2": 0.1}, {}, ["x"], [])
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"TensorBoard did not take metrics any more \(ValueError: .+\)\.", first)
    assert second == "TensorBoard did not take the outcome (OSError: No space left on device)."
    assert tracker.end() == "TensorBoard: tensorboard --logdir 'my run'"


@pytest.mark.parametrize(
    ("store", "line"),
    [
        ("https://me:secret@host/x", "https://me:***@host/x"),
        ("postgresql://me:secret@host/x", "mlflow ui --backend-store-uri 'postgresql://me:***@host/x'"),
        ("sqlite:////my runs/mlflow.db", "mlflow ui --backend-store-uri 'sqlite:////my runs/mlflow.db'"),
    ],
)
def test_the_last_line_of_mlflow_names_the_server_or_a_command_and_no_password(store, line):
    pytest.importorskip("mlflow")
    from pinn_odelora.lightning.mlflow import Tracked

    tracker = Tracked.__new__(Tracked)
    tracker.store, tracker.finalize = store, lambda _: None
    assert tracker.end() == f"MLflow: {line}"


@pytest.mark.parametrize("kind", tracking.PACKAGES)
def test_a_logger_whose_package_is_missing_is_refused_with_the_command_that_installs_it(kind, monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InputError, match=rf"logger={kind} needs {kind}: pip install 'pinn-odelora\[{kind}\]'\."):
        tracking.make_loggers(kind, tmp_path, project="p")


# --- Configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", tracking.KINDS)
def test_loggers_take_the_same_keys(compose, kind):
    cfg = compose(f"logger={kind}", "logger.project=mine", "logger.tags=[a]")
    assert (cfg.logger.kind, cfg.logger.project, list(cfg.logger.tags)) == (kind, "mine", ["a"])


def sweep():
    return yaml.safe_load((ROOT / "configs/sweep.yaml").read_text())


def test_every_value_of_the_sweep_is_a_run(compose, tmp_path):
    parameters = sweep()["parameters"]
    values = {key: p.get("values", [p["value"]] if "value" in p else None) for key, p in parameters.items()}
    assert {"integrator.h", "lora.rank", "seed"} <= {key for key, v in values.items() if len(v) > 1}
    first = {key: v[0] for key, v in values.items()}
    for key, choices in values.items():
        for i, value in enumerate(choices):
            run = first | {key: value}
            cfg = compose(*(f"{k}={v}" for k, v in run.items()), f"output_dir={tmp_path / f'{key}{i}'}")
            assert cfg.integrator.h == run["integrator.h"]


def test_the_sweep_runs_train_with_hydra_arguments():
    plan = sweep()
    assert plan["command"] == ["${env}", "python", plan["program"], "${args_no_hyphens}"]
    assert (ROOT / plan["program"]).exists()
    assert plan["metric"] == {"name": "error/rel_l2", "goal": "minimize"}


# --- History ---------------------------------------------------------------------------------------------------------

AWKWARD = [0.1 + 0.2, 1e-320, -1.5e300, math.pi, 10.0, 1e22, 0.0]


def test_history_gives_back_the_same_floats(tmp_path):
    path = tmp_path / "history.csv"
    history = History(path)
    for step, value in enumerate(AWKWARD):
        history.append({"step": step, "loss": value})
    history.append({"step": 7, "loss": math.inf})
    history.append({"step": 8, "loss": math.nan})
    again = History(path).rows
    assert again[:-1] == history.rows[:-1]
    assert [row["loss"] for row in again[:7]] == AWKWARD
    assert math.isnan(again[-1]["loss"])
    assert path.read_text().splitlines()[:2] == ["step,loss", "0,0.30000000000000004"]


def test_history_grows_columns_and_leaves_missing_cells_empty(tmp_path):
    path = tmp_path / "history.csv"
    history = History(path)
    rows = [{"step": 0.0}, {"step": 10.0, "loss": 2.5}, {"loss": 1.5}, {"step": 20.0, "a,b": 1.0}]
    for row in rows:
        history.append(row)
    assert path.read_text() == 'step,loss,"a,b"\n0,,\n10,2.5,\n,1.5,\n20,,1\n'
    assert History(path).rows == rows


def test_every_row_is_on_disk_when_append_returns(tmp_path):
    history = History(tmp_path / "history.csv")
    for step in range(3):
        history.append({"step": step})
        assert len((tmp_path / "history.csv").read_text().splitlines()) == step + 2


def test_a_torn_last_line_is_dropped_wherever_it_was_torn(tmp_path):
    path = tmp_path / "history.csv"
    history = History(path)
    for step in range(3):
        history.append({"step": step, "loss": 0.125 * step})
    text = path.read_text()
    for length in range(len(text)):
        path.write_text(text[:length])
        whole = max(text[:length].count("\n") - 1, 0)
        torn = History(path)
        assert torn.rows == history.rows[:whole]
        torn.append({"step": 9, "loss": 1.0})
        assert History(path).rows == [*history.rows[:whole], {"step": 9.0, "loss": 1.0}]


def test_a_resumed_history_forgets_what_will_be_written_again(tmp_path):
    path = tmp_path / "history.csv"
    for step in (0, 10, 20, 30):
        History(path).append({"step": step, "loss": 1.0})
    history = History(path, up_to_step=15)
    assert [row["step"] for row in history.rows] == [0, 10]
    assert path.read_text() == "step,loss\n0,1\n10,1\n"
    history.append({"step": 20, "loss": 2.0})
    assert [row["loss"] for row in History(path).rows] == [1.0, 1.0, 2.0]


@pytest.mark.parametrize("text", ["step,loss\n0,1\n1,high\n", "step,loss\n0,1\n1\n", "a letter\nto somebody\n"])
def test_a_file_that_is_no_history_is_refused_and_left_alone(tmp_path, text):
    path = tmp_path / "history.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=r"Line [23] of .*history.csv"):
        History(path)
    assert path.read_text() == text


def test_history_survives_a_kill(tmp_path):
    path = tmp_path / "history.csv"
    code = (
        "import itertools, sys\n"
        "from pinn_odelora.runs.history import History\n"
        "history = History(sys.argv[1])\n"
        "for i in itertools.count():\n"
        "    history.append({'step': i, 'loss': 1 / (i + 1)} | {f'new{j}': j for j in range(i // 50)})\n"
    )
    for _ in range(3):
        path.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT)
        while not path.exists():
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
        rows = History(path).rows
        assert len(rows) > 10
        assert [row["step"] for row in rows] == list(range(len(rows)))
        assert all(row["loss"] == 1 / (row["step"] + 1) for row in rows)
