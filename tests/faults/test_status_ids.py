"""The ids by which subscribers drop the copies of an event."""

import pytest

from worker_process import eventually


@pytest.mark.long
def test_each_event_has_id_of_its_own(trial):
    """A job that ends PARTIAL, is sent again, and ends PARTIAL again."""
    model = trial.model(always={5: 400})
    request = trial.request(model, "small")
    job_id = trial.submit(request, ends="PARTIAL")
    with trial.fleet.worker():
        trial.wait()
        trial.check()
        trial.site.submit(request)
        eventually(lambda: trial.site.statuses(job_id).count("PARTIAL") >= 2)
    texts = {}
    for event in trial.site.events:
        if event.attributes.get("job_id") == job_id:
            texts.setdefault(str(event.status), {}).setdefault(event.attributes["status_id"], set()).add(event.message)
    assert len(texts["PARTIAL"]) == 2
    # Four regions ended: the first generation's, one after the other.
    assert len(texts["IN_PROGRESS"]) >= 4
