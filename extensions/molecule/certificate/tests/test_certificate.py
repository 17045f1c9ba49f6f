"""Keys that stay on their hosts, and certificates that name them and no other."""

from collections.abc import Callable

import pytest
from testinfra.host import Host

FOLDER = "/etc/lavalite/tls"


def asked(host: Host, question: str) -> str:
    return str(host.check_output(f"openssl x509 -in {FOLDER}/node.crt -noout {question}"))


def test_the_authority_vouches_for_it(host: Host) -> None:
    host.run_expect([0], f"openssl verify -purpose sslserver -CAfile {FOLDER}/ca.crt {FOLDER}/node.crt")
    host.run_expect([0], f"openssl verify -purpose sslclient -CAfile {FOLDER}/ca.crt {FOLDER}/node.crt")


def test_it_names_its_host_and_no_other(host: Host) -> None:
    variables = host.ansible.get_variables()
    assert "does match" in asked(host, f"-checkip {variables['ansible_host']}")
    for name in variables["groups"]["lavalite_nodes"]:
        matches = "does match certificate" in asked(host, f"-checkhost {name}")
        assert matches == (name == variables["inventory_hostname"])


def test_it_is_for_its_key(host: Host) -> None:
    assert asked(host, "-pubkey").strip() == host.check_output(f"openssl pkey -in {FOLDER}/node.key -pubout").strip()


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        (FOLDER, "root root 755"),
        (f"{FOLDER}/ca.crt", "root root 644"),
        (f"{FOLDER}/node.crt", "root root 644"),
        (f"{FOLDER}/node.key", "lavalite lavalite 600"),
    ],
)
def test_files_are_whose_they_should_be(owner_and_mode: Callable[[str], str], path: str, wanted: str) -> None:
    assert owner_and_mode(path) == wanted


def test_the_authoritys_key_is_on_one_host_alone_and_guarded(
    host: Host, owner_and_mode: Callable[[str], str]
) -> None:
    if "lavalite_candidates" in host.ansible.get_variables()["group_names"]:
        assert owner_and_mode("/etc/lavalite/authority") == "root root 700"
        assert owner_and_mode("/etc/lavalite/authority/ca.key") == "root root 600"
    else:
        assert not host.file("/etc/lavalite/authority").exists


def test_nothing_else_is_left(host: Host) -> None:
    assert host.check_output(f"ls -A {FOLDER}").split() == ["ca.crt", "node.crt", "node.key"]
