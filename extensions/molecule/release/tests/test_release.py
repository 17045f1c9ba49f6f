"""What a release is on a node: whole, root's, and no more than the node's part."""

from testinfra.host import Host

NODE = {"lavalite-end-attempts", "lavalite-host", "lavalite-lim", "lavalite-node-key", "lavalite-sbatchd"}
CONTROL = NODE | {"lavalite", "lavalite-mbatchd"}


def test_one_release_is_there_and_is_used(host: Host, is_candidate: bool) -> None:
    # Beside a lock file, whose holder alone may change anything here.
    lock, release = host.check_output("ls -A /opt/lavalite/releases").split()
    assert lock == ".lock"
    assert f"-{'control' if is_candidate else 'node'}-py3" in release
    assert host.file("/opt/lavalite/current").linked_to == f"/opt/lavalite/releases/{release}"
    assert host.check_output("readlink /opt/lavalite/current") == f"releases/{release}"  # also where /opt is moved


def test_there_is_no_way_back_yet(host: Host) -> None:
    assert not host.file("/opt/lavalite/previous").exists


def test_its_programs_are_those_of_the_nodes_part(host: Host, is_candidate: bool) -> None:
    found = set(host.check_output("ls /opt/lavalite/current/bin").split())
    assert found == (CONTROL if is_candidate else NODE)


def test_they_start_with_nothing_but_the_release(host: Host) -> None:
    for program in host.check_output("ls /opt/lavalite/current/bin").split():
        as_nobody = "cd / && env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin runuser -u nobody --"
        asked = host.run(f"{as_nobody} /opt/lavalite/current/bin/{program} --help")
        assert asked.rc == 0, asked.stdout + asked.stderr


def test_a_worker_has_no_library_of_the_control_plane(host: Host, is_candidate: bool) -> None:
    libraries = set(host.check_output("ls /opt/lavalite/current/lib").split())
    assert bool(libraries & {"numpy", "fastapi"}) == is_candidate


def test_it_is_roots_and_others_may_read_and_not_write(host: Host) -> None:
    odd = r"find /opt/lavalite ! -type l \( ! -user root -o ! -group root -o -perm /022 -o ! -perm -444 \)"
    assert host.check_output(odd) == ""
    assert host.check_output("stat -c '%%U %%a' %s", "/opt/lavalite/releases") == "root 755"
