"""All use the first release again, the next is kept, and what ran before all of it runs on."""

from collections.abc import Callable

from testinfra.host import Host


def test_the_first_is_used_and_the_next_is_kept(release_links: Callable[[], tuple[str, str]]) -> None:
    now, before = release_links()
    assert before == f"{now}.1"


def test_nothing_runs_out_of_another_release(host: Host) -> None:
    assert host.ansible("lavalite.cluster.release_info", check=False)["behind"] == []


def test_the_job_runs_on_as_the_same_process(host: Host, held_job: Callable[[], None]) -> None:
    held_job()
