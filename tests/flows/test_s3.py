"""The whole project on an object store: the same bytes as on a disk, reused and verified there."""

import json
import uuid
from typing import Any

from tests.flows.small import STEPS, digests, sailyard


def test_a_workspace_on_s3_is_made_reused_and_verified(s3_bucket, unbroken):
    workspace = f"{s3_bucket}/{uuid.uuid4().hex}/small"
    made = last_line("run", unbroken, "--workspace", workspace, "--json")
    assert made["artifacts"] == {step: f"{workspace}/{step}" for step in STEPS}
    assert made["report"] == f"{workspace}/report/report.html"
    assert made["metrics"]["trained"]["segmentation"]["count"] > 0
    assert digests(workspace) == digests(unbroken.parent / "runs")

    again = sailyard("run", unbroken, "--workspace", workspace)
    assert again.returncode == 0
    assert [line.split(",")[0] for line in again.stderr.splitlines()] == [f"{step}: reused" for step in STEPS]
    audit = last_line("verify", workspace, "--json")
    assert audit["faults"] == {step: [] for step in STEPS}


def last_line(*args: Any) -> dict[str, Any]:
    done = sailyard(*args)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
