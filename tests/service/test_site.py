"""playbooks/site.yml on hosts of their own: from nothing to a cluster that works, and that outlives its leader.

Three candidates and two workers, none with a way to the internet. The tests share one cluster and run in their order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
import yaml
from lab import Lab
from lab_site import CANDIDATES, PERSON, POOLS, ROOT, WORKERS, Site, until

VIP = "198.18.0.200"
LEASE_SECONDS = 5

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("site")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Lab([*CANDIDATES, *WORKERS]) as lab:
        variables = {"lim_vip": f"{VIP}/24", "lim_vip_interface": "host0"}
        site = Site(lab, tmp_path_factory.mktemp("site"), variables)
        pools = POOLS | {"logical_hosts": {"small": {"cpu": 1, "memory": "64MiB"}}}
        (site.folder / "pools.yml").write_text(yaml.safe_dump(pools))
        yield site


def test_a_cluster_comes_out_of_nothing(site: Site) -> None:
    site.play()
    for host in site.lab.hosts:
        assert site.lab.run(host, "systemctl is-active lavalite-lim lavalite-sbatchd").stdout == "active\nactive\n"
    assert len(site.leaders()) == 1


def test_a_second_run_changes_nothing(site: Site) -> None:
    assert changes(site.play()) == {}


def starts(site: Site) -> dict[tuple[str, str], str]:
    """When each daemon that runs was started, by host and unit."""
    units = ["etcd", "lavalite-lim", "lavalite-mbatchd", "lavalite-sbatchd"]
    line = f"systemctl show --property=ExecMainStartTimestampMonotonic --value {' '.join(units)}"
    found = {host: site.lab.run(host, line).stdout.split() for host in site.lab.hosts}
    return {(host, unit): at for host in found for unit, at in zip(units, found[host], strict=True)}


def test_who_has_not_read_what_an_interrupted_run_wrote_is_restarted_once_by_the_next(site: Site) -> None:
    """Such a run leaves files that are as they should be, and processes that began before."""
    (leader,) = site.leaders()
    other = next(name for name in CANDIDATES if name != leader)
    written = {(leader, "mbatchd"), (other, "lim"), ("n1", "sbatchd"), ("n2", "lim")}
    for host, daemon in written:
        path = f"/etc/lavalite/{daemon}.conf"
        site.lab.run(host, f"cp {path} /etc/lavalite/.new && mv /etc/lavalite/.new {path}")
    before = starts(site)
    changed = changes(site.play())
    after = starts(site)
    assert {key for key in before if before[key] != after[key]} == {
        (host, f"lavalite-{name}") for host, name in written
    }
    assert changed == {leader: 1, other: 1, "n1": 1, "n2": 1}
    assert changes(site.play()) == {}
    assert starts(site) == after


def changes(output: str) -> dict[str, int]:
    """How many tasks changed something, of the hosts on which any did."""
    recap = output.rpartition("PLAY RECAP")[2]
    return {host: int(count) for host, count in re.findall(r"^(\S+) .*changed=([1-9]\d*)", recap, re.M)}


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


def test_a_logical_host_can_be_entered_by_everybody_on_its_anchor(site: Site) -> None:
    program = "/var/lib/lavalite/sbatchd/hosts/small/enter"
    (anchor,) = [name for name in WORKERS if site.lab.run(name, f"test -x {program}", check=False).returncode == 0]
    inside = "echo $LAVALITE_HOST; ulimit -d"
    said = site.lab.run(anchor, ["runuser", "-u", PERSON, "--", program, "-c", inside]).stdout
    assert said.split() == ["small", str(64 * 1024)], "kibibytes of memory"


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
        addresses, chown_and_read = 1 << 12 | 1 << 13, 0b101
        wanted = {"lavalite-lim": addresses, "lavalite-mbatchd": 0, "lavalite-sbatchd": chown_and_read}
        assert int(status["CapBnd"], 16) == wanted[unit], unit


def held(site: Site) -> list[str]:
    """Who has the address that follows the leader, of the candidates that are on."""
    on = [name for name in CANDIDATES if site.lab.hosts[name].on]
    return [name for name in on if VIP in site.lab.run(name, "ip -o addr show host0").stdout]


def answers(site: Site) -> bool:
    """Whether the API answers at that address, to somebody else on the network."""
    look = f"""
import ssl
from urllib.request import urlopen
urlopen("https://{VIP}:6880/status", timeout=2, context=ssl.create_default_context(cafile="/etc/lavalite/tls/ca.crt"))
"""
    return site.lab.run("n1", ["python3", "-c", look], check=False).returncode == 0


def test_an_address_follows_the_leader_and_no_frozen_one_keeps_it(site: Site) -> None:
    (first,) = site.leaders()
    until(lambda: held(site) == [first] and answers(site), "the API answers at the leader's address")
    site.lab.run(first, "systemctl kill --signal=STOP lavalite-lim")
    try:
        until(lambda: first not in held(site), "the kernel takes it from a LIM that is frozen", 3 * LEASE_SECONDS)
        (second,) = until(lambda: held(site), "another candidate has it")
        until(lambda: answers(site), "the API answers there")
    finally:
        site.lab.run(first, "systemctl kill --signal=CONT lavalite-lim")
    until(lambda: site.leaders() == [second], "who was frozen leads no more")
    assert held(site) == [second]


def test_the_cluster_outlives_its_leader(site: Site) -> None:
    (first,) = site.leaders()
    before = until(lambda: site.status(first), "the scheduler answers")["epoch"]
    site.lab.power_off(first)
    try:
        (second,) = until(lambda: held(site), "another candidate has the address", 3 * LEASE_SECONDS)
        until(lambda: site.leaders() == [second], "it leads")
        status = until(lambda: site.status(second), "its scheduler answers")
        assert status["epoch"] > before and answers(site)
        result = site.job(second, PERSON, name="after", command=["hostname"], wait=True, output=True, timeout=90)
        assert result["stdout"].strip() in WORKERS
    finally:
        site.lab.power_on(first)
    until(lambda: site.lab.run(first, "systemctl is-active lavalite-lim", check=False).returncode == 0, "LIM is back")
    until(lambda: site.status(first), "who came back knows who leads")
    assert site.leaders() == [second]


def operating_commands() -> list[str]:
    """Those of docs/operating.md on units, in their order."""
    page = (ROOT / "docs/operating.md").read_text()
    section = page[page.index("## Units") : page.index("## An address")]
    return re.findall(r"^\$ (.*)$", section, re.MULTILINE)


def test_what_the_page_on_operating_tells_to_type_does_what_it_says(site: Site) -> None:
    (leader,) = site.leaders()
    for line in operating_commands():
        if line.startswith("ansible-playbook"):
            continue  # the next test
        if line == "lavalite resign":
            line = "/opt/lavalite/current/bin/lavalite resign"
        said = site.lab.run(leader, f"SYSTEMD_COLORS=0 SYSTEMD_PAGER=cat {line}").stdout
        assert said, line
    until(lambda: handed_over(site, leader), "another candidate leads")


def handed_over(site: Site, earlier: str) -> bool:
    found = site.leaders()
    return len(found) == 1 and found != [earlier]


def lead(site: Site, wanted: str) -> None:
    """Let others resign until it leads."""

    def led() -> bool:
        found = site.leaders()
        if found and found != [wanted] and site.status(found[0]):
            site.lab.run(found[0], "/opt/lavalite/current/bin/lavalite resign", check=False)
        return found == [wanted]

    until(led, f"{wanted} leads", 120)


def test_where_the_lim_does_not_supervise_the_lock_starts_and_stops_the_scheduler(site: Site) -> None:
    (play,) = [line.split() for line in operating_commands() if line.startswith("ansible-playbook")]
    assert play[:4] == ["ansible-playbook", "-i", "inventories/rack", "playbooks/site.yml"]
    rule = "test -e /etc/polkit-1/rules.d/50-lavalite.rules"
    own = site.folder / "host_vars/ctl1.yml"
    own.parent.mkdir()
    own.write_text(yaml.safe_dump({"lim_supervises_mbatchd": False}))
    site.play(*play[4:])
    assert site.lab.run("ctl1", rule, check=False).returncode == 1
    lead(site, "ctl1")
    pid = "systemctl show --property=MainPID --value lavalite-mbatchd"
    before = site.lab.run("ctl1", pid).stdout
    site.lab.run("ctl1", "systemctl kill --signal=KILL lavalite-mbatchd")
    until(lambda: site.lab.run("ctl1", pid).stdout not in ("0\n", before), "systemd starts it again")
    until(lambda: site.status("ctl1"), "it answers")
    # One that hangs is stopped as well.
    site.lab.run("ctl1", "systemctl kill --signal=STOP lavalite-mbatchd; /opt/lavalite/current/bin/lavalite resign")
    until(lambda: handed_over(site, "ctl1"), "another candidate leads, and ctl1's scheduler is gone")
    assert not site.lab.run("ctl1", "cat /run/lavalite/master.lock", check=False).stdout

    own.unlink()
    site.play(*play[4:])
    units = "systemctl list-unit-files --no-legend 'lavalite-mbatchd*'"
    assert site.lab.run("ctl1", units).stdout.split()[::3] == ["lavalite-mbatchd.service"]
    assert site.lab.run("ctl1", rule, check=False).returncode == 0


def test_stop_ends_the_daemons_and_the_work_too_if_that_is_wanted(site: Site) -> None:
    asked = until(lambda: next((name for name in site.leaders() if site.status(name)), ""), "a scheduler answers")
    job = site.job(asked, PERSON, name="long", command=["sleep", "600"])
    running = "systemctl is-active --quiet lavalite-{}.0.1.service"

    def working() -> list[str]:
        line = running.format(job["id"])
        return [name for name in WORKERS if site.lab.run(name, line, check=False).returncode == 0]

    (node,) = until(working, "the job runs")
    site.play(playbook="playbooks/stop.yml")
    assert working() == [node]
    site.play("-e", "sbatchd_end_attempts=true", playbook="playbooks/stop.yml")
    for name in site.lab.hosts:
        left = "systemctl list-units --state=active --plain --no-legend 'lavalite-*.service' | grep -v etcd"
        assert site.lab.run(name, left, check=False).stdout == "", name
