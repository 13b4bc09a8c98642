"""Several writers of one lineage, and workers that die."""

import json
import os
import re
import signal

from tests.house import House, finished, learning, reading_until


def test_two_concepts_at_once_end_as_a_chain(house: House) -> None:
    jobs = [house.start_job(*learning("crowd", concept)) for concept in ("robot", "fox")]
    outcomes = sorted((finished(job).outcome for job in jobs), key=lambda outcome: str(outcome["version"]))
    assert [(o["version"], o["parent"], o["live"]) for o in outcomes] == [(1, None, True), (2, 1, True)]
    assert set(house.registry.version("crowd", 2).concepts) == {"robot", "fox"}


def test_the_same_concept_submitted_twice_at_once_is_one_version(house: House) -> None:
    jobs = [house.start_job(*learning("twins", "fox")) for _ in range(2)]
    first, second = (finished(job).outcome for job in jobs)
    assert first == second
    assert [version.number for version in house.registry.versions("twins")] == [1]


def test_a_killed_worker_resumes_and_learns_the_very_same_weights(house: House) -> None:
    steps = ("--steps", "60")
    calm = house.run("python", "-m", "cp_train", *learning("calm", "robot"), *steps)
    assert calm.returncode == 0, calm.stderr
    assert json.loads(calm.stdout.splitlines()[-1])["version"] == 1

    job = house.start_job(*learning("storm", "robot"), *steps)
    log = reading_until(job, r"step 20/60")
    worker = int(re.findall(r"RayTrainWorker pid=(\d+)\)", log)[-1])
    os.kill(worker, signal.SIGKILL)
    rest = finished(job)
    assert rest.outcome["version"] == 1
    assert re.search(rf"pid=(?!{worker}\b)\d+\).*step \d+/60", rest.log), "no other worker took over"
    assert "step 10/60" not in rest.log, "it began anew instead of resuming from its checkpoint"

    weights = [house.registry.manifest(lineage, 1).content.files for lineage in ("calm", "storm")]
    assert weights[0] == weights[1]


def test_a_stopped_job_leaves_nothing_and_frees_the_lineage(house: House) -> None:
    job = house.start_job(*learning("stopped", "robot"), "--steps", "10000")
    log = reading_until(job, r"step 20/10000")
    job_id = re.search(r"raysubmit_\w+", log)
    assert job_id is not None
    assert house.run("ray", "job", "stop", "--address", house.settings.jobs, job_id[0]).returncode == 0
    finished(job)
    whole = house.run("ray", "job", "logs", "--address", house.settings.jobs, job_id[0])
    assert "The job was stopped; nothing was published." in whole.stdout
    assert list(house.store.list("intake/")) == []
    assert "stopped" not in house.registry.lineages()
    assert house.learn("stopped", "fox").outcome["version"] == 1
    assert list(house.store.list("training/")) == []
