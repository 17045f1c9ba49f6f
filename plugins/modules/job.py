#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
module: job
short_description: A job, submitted once
version_added: "0.1.0"
description:
  - Submits a job unless one of the same O(name) and with the same options is live, or has succeeded.
    A job that failed, or was cancelled, is submitted again.
  - With O(state=cancelled), ends every live job of that name.
author: LavaLite authors (@lavalite)
options:
  name:
    description: The job's name, by which it is found again.
    type: str
    required: true
  state:
    description: Whether the job should be there, or be ended.
    type: str
    choices: [present, cancelled]
    default: present
  command:
    description:
      - The program and its arguments. Required with O(state=present).
      - No shell reads it. For one, write V([/bin/sh, -c, …]).
    type: list
    elements: str
  array:
    description: Task indices, as V(1-8), or V(0-100:10) for every tenth.
    type: str
  gang:
    description: All tasks start together or not at all, and end as one. An empty dictionary is a gang without wishes.
    type: dict
    suboptions:
      tasks_per_node:
        description: At most so many of them on one node.
        type: int
      nodes_least:
        description: On so many nodes at least.
        type: int
      nodes_most:
        description: On so many nodes at most.
        type: int
      within:
        description: A label of nodes, as V(rack), that is the same for all nodes on which they are.
        type: str
      prefer_within:
        description: A label of nodes, as V(switch), of which they have as few values as can be.
        type: str
  parts:
    description:
      - Sorts of tasks that ask for different things, from 2 to 16 of them. All tasks of all parts start together or
        not at all, and end as one, as those of O(gang).
      - Each part says what its tasks need, so O(array), O(cpu), O(gpu) and the like are not given beside it.
    type: list
    elements: dict
    suboptions:
      name:
        description: The name of the part, of letters, digits and V(_).
        type: str
        required: true
      tasks:
        description: How many tasks it has.
        type: int
        default: 1
      command:
        description: What its tasks run, where it is not O(command).
        type: list
        elements: str
      cpu:
        description: As O(cpu).
        type: str
      memory:
        description: As O(memory).
        type: str
      gpu:
        description: As O(gpu).
        type: str
      gpu_model:
        description: As O(gpu_model).
        type: str
      gpu_memory:
        description: As O(gpu_memory).
        type: str
      gpu_mig:
        description: As O(gpu_mig).
        type: str
      gpu_topology:
        description: As O(gpu_topology).
        type: str
        choices: [nvlink, pcie, numa]
      storage:
        description: As O(storage).
        type: str
      network:
        description: As O(network).
        type: str
      special:
        description: As O(special).
        type: dict
      floating:
        description: As O(floating).
        type: dict
      pools:
        description: As O(pools).
        type: dict
  queue:
    description: The queue. Without it, the default queue.
    type: str
  group:
    description: The group that the job counts for. Without it, the primary group of whoever submits it.
    type: str
  reservation:
    description: The reservation in which all of the job runs. Its tasks end with it.
    type: str
  host:
    description: The logical host on which all of the job runs.
    type: str
  cpu:
    description: Cores a task, as V(4) or V(0.5).
    type: str
  memory:
    description: Memory a task, as V(2GiB).
    type: str
  gpu:
    description: GPUs a task, as V(1) or V(0.5).
    type: str
  gpu_model:
    description: The model that the GPUs must be of.
    type: str
  gpu_memory:
    description: Memory that each GPU must have, as V(40GiB).
    type: str
  gpu_mig:
    description: A MIG profile, as V(1g.10gb). Then O(gpu) counts instances of it, and no whole GPUs.
    type: str
  gpu_topology:
    description: What all GPUs of a task must have in common. Without it they are as near to each other as can be.
    type: str
    choices: [nvlink, pcie, numa]
  storage:
    description: Storage a task, as V(100GiB).
    type: str
  network:
    description: Bandwidth a task, as V(10Gbit/s).
    type: str
  special:
    description: "How many devices of each special kind a task takes, as V({fpga: 1}). They are given out whole."
    type: dict
  floating:
    description: How many of each floating resource, such as licences, a task takes.
    type: dict
  pools:
    description: The pool for each kind, where it is not the default pool.
    type: dict
  exclusive:
    description:
      - Whether each task has a node for itself. It is only put where nobody holds anything, and nobody else is put
        there while it runs. It gets what it asks for. The rest of the node stays idle.
    type: bool
    default: false
  policy:
    description: The placement policy, where it is not the queue's.
    type: str
  affinity:
    description:
      - What its tasks are to be near to, or apart from. Each entry has one of O(affinity[].job),
        O(affinity[].name), O(affinity[].group) and O(affinity[].labels).
    type: list
    elements: dict
    suboptions:
      job:
        description: The number of a job, or V(0) for the job itself.
        type: int
      name:
        description: Jobs of this name.
        type: str
      group:
        description: Jobs that count for this group.
        type: str
      labels:
        description: Labels of nodes, each with a value or a list of values.
        type: dict
      anti:
        description: Whether it is to be apart from them, or on nodes that have not all of the labels.
        type: bool
        default: false
      within:
        description: A label of nodes, as V(rack). What has the same value of it is near. Without it, the same node.
        type: str
      weight:
        description: From 1 to 100, how much it is preferred. Without it, it is demanded.
        type: int
  priority:
    description: The priority among the jobs of the same queue.
    type: int
  walltime:
    description: For how long an attempt may run, as V(15m).
    type: str
  grace:
    description: How long a task that is told to end has until it is ended by force, as V(90s).
    type: str
  start_within:
    description: The job is cancelled when nothing of it was placed for so long, as V(10m).
    type: str
  retries:
    description: How often a task that failed is tried again. Without it, as often as the queue says.
    type: int
  retry_on:
    description:
      - Exit codes and signals, as V(75) or V(SIGKILL), that are worth another try. Any other end is the last one.
      - Without it, those that the queue says; with an empty list, all.
    type: list
    elements: str
  backoff:
    description: For how long a task that ended waits for its next try. What is not said is as the queue says.
    type: dict
    suboptions:
      first:
        description: The first time, as V(10s).
        type: str
      factor:
        description: How many times as long each time after that, as V(2).
        type: int
      most:
        description: The longest that it waits, as V(5m).
        type: str
  rerunnable:
    description: Whether a task may be started elsewhere once its node is lost.
    type: bool
  hold:
    description: Whether the job waits until it is released.
    type: bool
  depends:
    description: Jobs that must have ended before this one starts.
    type: list
    elements: dict
    suboptions:
      job:
        description: The number of the job.
        type: int
        required: true
      kind:
        description:
          - How it must have ended. V(done) is with success, V(exit) without, V(ended) either way.
            For V(started) it is enough that nothing of it waits any more.
        type: str
        choices: [done, exit, ended, started]
        default: done
      tasks:
        description: Only these tasks of it, as V(3) or V(1-8).
        type: str
      each:
        description: Whether each task waits for that of the same index alone.
        type: bool
        default: false
  cwd:
    description: The folder in which it runs, on the node.
    type: str
  environment:
    description: Variables of its environment.
    type: dict
  stdout_path:
    description: Where standard output goes, on the node. C(%J) is the job, C(%I) the task.
    type: str
  stderr_path:
    description: Where standard error goes, on the node.
    type: str
  wait:
    description: Whether to wait until the job has ended. The module fails if it did not succeed.
    type: bool
    default: false
  timeout:
    description: For how long to wait, in seconds.
    type: int
    default: 600
  output:
    description: Whether to return what the tasks wrote. At most 1,000 tasks are read.
    type: bool
    default: false
extends_documentation_fragment:
  - lavalite.cluster.connection
  - lavalite.cluster.connection.changes
"""

EXAMPLES = r"""
- name: Eight tasks on one logical host
  lavalite.cluster.job:
    name: nightly
    command: [/usr/bin/python3, /srv/nightly.py, "%I"]
    array: 1-8
    host: analytics
    cpu: 1
    memory: 1GiB
    wait: true
    output: true
    unix_socket: /run/lavalite/api.sock
  register: nightly

- name: A server and four workers that start together
  lavalite.cluster.job:
    name: training
    command: [/srv/train]
    parts:
      - {name: ps, cpu: 4, memory: 8GiB}
      - {name: worker, tasks: 4, cpu: 8, gpu: 1}
    gang: {within: rack}
    unix_socket: /run/lavalite/api.sock

- name: No such job any more
  lavalite.cluster.job:
    name: nightly
    state: cancelled
    unix_socket: /run/lavalite/api.sock
"""

RETURN = r"""
id:
  description: The number of the job. Absent in check mode where it would be submitted.
  returned: with O(state=present)
  type: int
  sample: 4711
job:
  description: The job, as it was seen last.
  returned: with O(state=present)
  type: dict
cancelled:
  description: The numbers of the jobs that were ended.
  returned: with O(state=cancelled)
  type: list
  elements: int
outputs:
  description: What each task wrote to standard output.
  returned: with O(output=true)
  type: list
  elements: dict
  sample: [{task: 1, stdout: "done\n"}]
stdout:
  description: The same, one after the other.
  returned: with O(output=true)
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.lavalite.cluster.plugins.module_utils._arguments import run, with_connection
from ansible_collections.lavalite.cluster.plugins.module_utils._client import path_of
from ansible_collections.lavalite.cluster.plugins.module_utils._errors import ApiError, Fault
from ansible_collections.lavalite.cluster.plugins.module_utils._jobspec import key_prefix, spec_of
from ansible_collections.lavalite.cluster.plugins.module_utils._waiting import until

ENDED_BADLY = ("failed", "cancelled")
ENDED = ENDED_BADLY + ("succeeded",)
MAX_TASKS_READ = 1000


def jobs_named(client, name):
    return [job for job in client.items("/v1/jobs", dict(name=name)) if job.get("name") == name]


def present(client, params, check_mode):
    try:
        spec = spec_of(params)
    except ValueError as error:
        raise ApiError(0, [Fault("bad_input", str(error))]) from None
    prefix = key_prefix(spec)
    same = [job for job in jobs_named(client, params["name"]) if str(job.get("key")).startswith(prefix)]
    good = [job for job in same if job.get("state") not in ENDED_BADLY]
    if good:
        job, changed = max(good, key=lambda one: one["id"]), False
    else:
        job, changed = submit(client, spec, prefix, same, check_mode), True
    result = dict(changed=changed, diff=dict(before={}, after=spec) if changed else dict(before=spec, after=spec))
    if job is None:
        return result
    if params["wait"] and not check_mode:
        job = wait_for(client, job, params["timeout"])
    result.update(id=job["id"], job=job)
    if params["output"]:
        result.update(read_output(client, job))
    return result


def submit(client, spec, prefix, earlier, check_mode):
    """The new job, or None in check mode. The key counts on from the last try, so two at once make one job."""
    last = max([job["id"] for job in earlier] or [0])
    batch = dict(jobs=[dict(spec=spec, key="%s%d" % (prefix, last))])
    answer = client.post("/v1/jobs", batch, dict(dry_run="true") if check_mode else None).body
    return None if check_mode else client.get(path_of("jobs", answer["ids"][0])).body


def wait_for(client, job, timeout_seconds):
    """The job once it has ended well. Raises ApiError where it has not, with the reason of the first bad task."""

    def poll():
        seen = client.get(path_of("jobs", job["id"])).body
        return seen if seen["state"] in ENDED else None

    ended = until(poll, timeout_seconds)
    if ended is None:
        why = client.get(path_of("jobs", job["id"])).body
        text = "job %d is %s after %d s" % (job["id"], why["state"], timeout_seconds)
        hint = why.get("why") or "Raise timeout, or see `lavalite explain %d`." % job["id"]
        raise ApiError(0, [Fault("timeout", text, hint=hint)])
    if ended["state"] in ENDED_BADLY:
        raise ApiError(0, [Fault("job_" + ended["state"], bad_end_sentence(client, ended))])
    return ended


def bad_end_sentence(client, job):
    tasks = client.items(path_of("jobs", job["id"], "tasks"), dict(state=job["state"]))
    first = next(iter(tasks), None) or {}
    text = "job %d %s: task %s, exit code %s" % (job["id"], job["state"], first.get("index"), first.get("exit_code"))
    reason = first.get("reason")
    stderr = read_stream(client, job["id"], first.get("index"), "stderr")[-2000:].strip()
    return text + (", " + reason if reason else "") + (". It wrote: " + stderr if stderr else "")


def read_output(client, job):
    outputs = []
    for task in client.items(path_of("jobs", job["id"], "tasks")):
        if len(outputs) >= MAX_TASKS_READ:
            break
        outputs.append(dict(task=task["index"], stdout=read_stream(client, job["id"], task["index"], "stdout")))
    return dict(outputs=outputs, stdout="".join(one["stdout"] for one in outputs))


def read_stream(client, job_id, task, stream):
    """What a task wrote; nothing where it wrote nothing or never ran."""
    if task is None:
        return ""
    try:
        raw = client.get(path_of("jobs", job_id, "output"), dict(task=task, stream=stream)).raw
    except ApiError as error:
        if error.status == 404:
            return ""
        raise
    return raw.decode("utf-8", "replace")


def cancelled(client, params, check_mode):
    live = [job for job in jobs_named(client, params["name"]) if job.get("state") not in ENDED]
    if not check_mode:
        for job in live:
            client.post(path_of("jobs", job["id"], "cancel"), {})
    states = dict((str(job["id"]), job["state"]) for job in live)
    after = dict((number, "cancelled") for number in states)
    return dict(changed=bool(live), cancelled=[job["id"] for job in live], diff=dict(before=states, after=after))


def arguments():
    texts = (
        "array",
        "queue",
        "host",
        "reservation",
        "group",
        "cpu",
        "memory",
        "gpu",
        "gpu_model",
        "gpu_memory",
        "gpu_mig",
        "storage",
        "network",
    )
    texts += ("policy", "walltime", "grace", "start_within", "cwd", "stdout_path", "stderr_path")
    options = dict((name, dict(type="str")) for name in texts)
    options.update((name, dict(type="dict")) for name in ("special", "floating", "pools", "environment"))
    options.update((name, dict(type="int")) for name in ("priority", "retries"))
    options.update((name, dict(type="bool")) for name in ("rerunnable", "hold"))
    kinds = dict(type="str", choices=["done", "exit", "ended", "started"], default="done")
    depends = dict(job=dict(type="int", required=True), kind=kinds, tasks=dict(type="str"))
    depends.update(each=dict(type="bool", default=False))
    gang = dict((name, dict(type="int")) for name in ("tasks_per_node", "nodes_least", "nodes_most"))
    gang.update(within=dict(type="str"), prefer_within=dict(type="str"))
    affinity = dict((name, dict(type="str")) for name in ("name", "group", "within"))
    affinity.update((name, dict(type="int")) for name in ("job", "weight"))
    affinity.update(labels=dict(type="dict"), anti=dict(type="bool", default=False))
    part = dict((name, dict(type="str")) for name in ("cpu", "memory", "gpu", "gpu_model", "gpu_memory", "gpu_mig"))
    part.update((name, dict(type="str")) for name in ("storage", "network"))
    part.update((name, dict(type="dict")) for name in ("special", "floating", "pools"))
    part.update(name=dict(type="str", required=True), tasks=dict(type="int", default=1))
    part.update(command=dict(type="list", elements="str"))
    part.update(gpu_topology=dict(type="str", choices=["nvlink", "pcie", "numa"]))
    backoff = dict(first=dict(type="str"), factor=dict(type="int"), most=dict(type="str"))
    return with_connection(
        name=dict(type="str", required=True),
        state=dict(type="str", choices=["present", "cancelled"], default="present"),
        command=dict(type="list", elements="str"),
        gpu_topology=dict(type="str", choices=["nvlink", "pcie", "numa"]),
        exclusive=dict(type="bool", default=False),
        gang=dict(type="dict", options=gang),
        parts=dict(type="list", elements="dict", options=part),
        affinity=dict(type="list", elements="dict", options=affinity),
        retry_on=dict(type="list", elements="str"),
        backoff=dict(type="dict", options=backoff),
        depends=dict(type="list", elements="dict", options=depends),
        wait=dict(type="bool", default=False),
        timeout=dict(type="int", default=600),
        output=dict(type="bool", default=False),
        **options,
    )


def main():
    module = AnsibleModule(
        argument_spec=arguments(),
        supports_check_mode=True,
        required_if=[("state", "present", ("command",))],
    )
    work = present if module.params["state"] == "present" else cancelled
    run(module, lambda client: work(client, module.params, module.check_mode))


if __name__ == "__main__":
    main()
