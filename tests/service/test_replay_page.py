"""The commands of docs/replay.md, in order, at a real scheduler."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from api_calls import open_folder, wait_for
from test_back_pressure import cluster_with
from test_planning_page import Typist
from test_readme import commands

from lavalite.base.errors import LavaLiteError
from lavalite.placement.replay import replay

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

PAGE = Path(__file__).resolve().parents[2] / "docs/replay.md"


def test_the_page_on_replaying_is_true() -> None:
    with open_folder() as folder:
        store = {"kind": "sqlite", "path": str(folder / "store.db")}
        with cluster_with(folder, store) as (client, _):
            typist, kept = Typist(folder, client), folder / "record.json"
            told = []
            for command in commands(PAGE):
                text = command.text.replace('"$LAVALITE_RECORD"', str(kept))
                if text.startswith("sed"):
                    subprocess.run(text, shell=True, check=True)
                elif command.exit_code:
                    told.append(typist.refused(text, command.exit_code))
                else:
                    told.append(typist.type(text))
                if command.text.startswith("lavalite submit"):
                    wait_for(lambda: client.job(1).state == "running", 30, "it runs")
            _, whole, saved, again, unknown, altered = told
            assert whole == saved == again
            assert "job 1 task 1 to 3: best-fit at" in whole and "of 1 nodes and hosts" in whole
            assert "placed    n1:3" in whole and "replayed  n1:3" in whole
            assert "there is no job 2" in unknown and "the record was altered" in altered
            # What comes over the API is what is replayed, and what is not there is said to be so.
            record = client.decision(1, 3)
            assert [c.model_dump() for c in replay(record)] == [{"node": "n1", "tasks": 3}]
            with pytest.raises(LavaLiteError, match="no decision on task 9 of job 1 is known here"):
                client.decision(1, 9)
            other = record.model_copy(update={"chosen": [], "digest": ""})
            kept.write_text(other.model_copy(update={"digest": other.computed_digest()}).model_dump_json())
            assert "another place is chosen from the record" in typist.refused(f"lavalite replay --from {kept}", 1)
            kept.write_text("{}")
            refused = typist.refused(f"lavalite replay --from {kept}", 2)
            assert f"{kept} holds no record of a decision" in refused
            assert "either a job or a file has to be named" in typist.refused("lavalite replay", 2)
