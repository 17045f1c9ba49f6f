"""All use the next release, the one before is kept, and what ran before runs on."""

from collections.abc import Callable

from testinfra.host import Host


def test_it_is_used_and_the_one_before_is_kept(release_links: Callable[[], tuple[str, str]]) -> None:
    now, before = release_links()
    assert now == f"{before}.1"


def test_nothing_runs_out_of_another_release(host: Host) -> None:
    assert host.ansible("lavalite.cluster.release_info", check=False)["behind"] == []


def test_daemons_run_and_start_with_the_node(host: Host, is_candidate: bool) -> None:
    for unit in ("lavalite-lim.service", "lavalite-sbatchd.service"):
        assert host.service(unit).is_running and host.service(unit).is_enabled
    assert host.service("lavalite-mbatchd.service").is_running == is_candidate


def test_the_job_of_before_runs_on_as_the_same_process(host: Host, held_job: Callable[[], None]) -> None:
    held_job()
