"""A job's log as a person wants it."""

from services.joblog import JobLog

LOG = (
    "INFO job_manager.py:581 -- Runtime env is setting up.\n"
    "\x1b[36m(RayTrainWorker pid=12)\x1b[0m <fox> step 10/20  loss 0.5\n"
    "2026-11-23 01:03:13 INFO palimpsest.job deleted 6 concept images\n"
    '{"lineage": "pets", "version": 3, "live": true}\n'
)


def test_only_the_jobs_own_lines_are_said_however_the_log_is_cut() -> None:
    for size in (1, 7, len(LOG)):
        said: list[str] = []
        log = JobLog("fox", said.append)
        for start in range(0, len(LOG), size):
            log.take(LOG[start : start + size])
        assert said == [
            "<fox> step 10/20  loss 0.5",
            "2026-11-23 01:03:13 INFO palimpsest.job deleted 6 concept images",
        ]
        assert (log.model, log.error) == ("pets@3", "")


def test_a_candidate_is_called_one() -> None:
    log = JobLog("fox", print)
    log.take('{"lineage": "pets", "version": 4, "live": false}\n')
    assert log.model == "pets@4 (a candidate)"


def test_the_jobs_error_is_kept() -> None:
    log = JobLog("fox", print)
    log.take("error: method: there is no 'magic'.\n")
    assert log.error == "method: there is no 'magic'."
