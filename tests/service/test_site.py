"""playbooks/site.yml on hosts of their own: from nothing to a cluster that works, and that outlives its leader.

Three candidates and two workers, none with a way to the internet. The tests share one cluster and run in their order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from lab import Lab
from lab_site import CANDIDATES, PERSON, WORKERS, Site, until

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("site")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Lab([*CANDIDATES, *WORKERS]) as lab:
        yield Site(lab, tmp_path_factory.mktemp("site"))


def test_a_cluster_comes_out_of_nothing(site: Site) -> None:
    site.play()
    for host in site.lab.hosts:
        assert site.lab.run(host, "systemctl is-active lavalite-lim lavalite-sbatchd").stdout == "active\nactive\n"
    assert len(site.leaders()) == 1


def test_a_second_run_changes_nothing(site: Site) -> None:
    recap = site.play().rpartition("PLAY RECAP")[2]
    assert re.findall(r"changed=([1-9]\d*)", recap) == [], recap


def test_private_keys_stay_where_they_are_and_are_guarded(site: Site) -> None:
    bundles = set()
    for host in site.lab.hosts:
        said = site.lab.run(host, "stat -c '%U %a' /var/lib/lavalite/lim/node.key; cat /etc/lavalite/trust.json")
        first, _, bundle = said.stdout.partition("\n")
        assert first == "lavalite 600"
        bundles.add(bundle)
    (bundle,) = bundles
    assert "secret" not in bundle
    roles = {name: entry["role"] for name, entry in json.loads(bundle).items()}
    assert roles == dict.fromkeys(CANDIDATES, "candidate") | dict.fromkeys(WORKERS, "worker")


def test_workers_have_nothing_of_the_control_plane(site: Site) -> None:
    said = site.lab.run("n1", "ls /opt/lavalite/current/lib /opt/lavalite/current/bin /usr/sbin").stdout.split()
    assert "lavalite-lim" in said and not {"numpy", "fastapi", "grpc", "lavalite-mbatchd"} & set(said)


# What an attempt sees of itself; under systemd 252 its unit is what its cgroup is called.
LOOK = """
id -un
unit=$(sed -n 's|.*/||;$p' /proc/self/cgroup)
systemctl show --property=Id,Slice,User,NoNewPrivileges,KillMode "$unit"
echo "attempt=$LAVALITE_ATTEMPT_ID"
grep NoNewPrivs /proc/self/status
"""


def test_a_job_of_an_unprivileged_user_is_a_unit_of_its_own_and_its_output_comes_back(site: Site) -> None:
    result = site.job("ctl1", PERSON, name="who", command=["sh", "-c", LOOK], wait=True, output=True, timeout=60)
    (node,) = result["job"]["nodes"]
    person, *lines = result["stdout"].splitlines()
    said = dict(line.replace(":\t", "=").split("=", 1) for line in lines)
    assert node in WORKERS and person == PERSON
    assert said == {
        "Id": f"lavalite-{said['attempt']}.service",
        "Slice": "lavalite-work.slice",
        "User": site.lab.run(node, f"id -u {PERSON}").stdout.strip(),
        "NoNewPrivileges": "yes",
        "KillMode": "control-group",
        "attempt": f"{result['id']}.0.1",
        "NoNewPrivs": "1",
    }


def test_output_is_read_wherever_the_user_may_write(site: Site) -> None:
    for path in (f"/home/{PERSON}/kept/out.txt", f"/tmp/{PERSON}.txt"):
        site.lab.run("n1", f"install -d -o {PERSON} -m 0700 /home/{PERSON}/kept")
        site.lab.run("n2", f"install -d -o {PERSON} -m 0700 /home/{PERSON}/kept")
        wanted = {"command": ["echo", path], "stdout_path": path, "wait": True, "output": True, "timeout": 60}
        assert site.job("ctl1", PERSON, name="kept", **wanted)["stdout"] == f"{path}\n"


def test_daemons_may_do_no_more_than_their_units_say(site: Site) -> None:
    """That what the units ask for is in force there, and not only written down."""
    (leader,) = site.leaders()
    for unit in ("lavalite-lim", "lavalite-mbatchd", "lavalite-sbatchd"):
        line = f"cat /proc/$(systemctl show --property=MainPID --value {unit})/status"
        status = dict(each.split(":\t", 1) for each in site.lab.run(leader, line).stdout.splitlines())
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2"), unit
        chown_and_read = 0b101
        assert int(status["CapBnd"], 16) == (chown_and_read if unit == "lavalite-sbatchd" else 0), unit


def test_the_cluster_outlives_its_leader(site: Site) -> None:
    (first,) = site.leaders()
    before = until(lambda: site.status(first), "the scheduler answers")["epoch"]
    site.lab.power_off(first)
    try:
        (second,) = until(lambda: site.leaders(), "another candidate leads")
        status = until(lambda: site.status(second), "its scheduler answers")
        assert status["epoch"] > before
        result = site.job(second, PERSON, name="after", command=["hostname"], wait=True, output=True, timeout=90)
        assert result["stdout"].strip() in WORKERS
    finally:
        site.lab.power_on(first)
    until(lambda: site.lab.run(first, "systemctl is-active lavalite-lim", check=False).returncode == 0, "LIM is back")
    until(lambda: site.status(first), "who came back knows who leads")
    assert site.leaders() == [second]
