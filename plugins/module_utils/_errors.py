# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What can be wrong, as the API says it and as a person reads it.

ApiError               the API answered, and said no: `status` and one or many Faults
└── UnreachableError   nobody answered
"""

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

import json

MAX_TEXT = 2000


class Fault:
    """One thing wrong. `sentence()` is `file:line: field: what is wrong. What to do.` with what is known of it."""

    def __init__(self, code, message, field="", hint="", file="", line=0):
        self.code = code
        self.message = message
        self.field = field
        self.hint = hint
        self.file = file
        self.line = line

    def sentence(self):
        where = "%s:%s: " % (self.file, self.line) if self.file and self.line else ""
        if self.file and not self.line:
            where = "%s: " % self.file
        name = "%s: " % self.field if self.field else ""
        text = self.message if self.message.endswith((".", "?", "!")) else self.message + "."
        return "%s%s%s%s" % (where, name, text, " " + self.hint if self.hint else "")

    def as_dict(self):
        return dict(
            code=self.code, message=self.message, field=self.field, hint=self.hint, file=self.file, line=self.line
        )


class ApiError(Exception):
    """`str()` of it is fit for a terminal: a line for each fault."""

    def __init__(self, status, faults):
        self.status = status
        self.faults = faults
        super(ApiError, self).__init__("\n".join(fault.sentence() for fault in faults))

    @property
    def code(self):
        return self.faults[0].code


class UnreachableError(ApiError):
    """`refusals` is a sentence for each endpoint that was tried."""

    def __init__(self, refusals):
        tried = "; ".join(refusals) or "no address was given"
        hint = "Set unix_socket, lim_socket or api to where mbatchd listens, and see that it runs (lavalite status)."
        super(UnreachableError, self).__init__(0, [Fault("unreachable", "no API answers: %s" % tried, hint=hint)])


def faults_of(answer):
    """The faults in an error's body. What is no error of ours is told by its status."""
    try:
        body = json.loads(answer.raw.decode("utf-8"))
    except ValueError:
        body = None
    listed = body.get("errors") if isinstance(body, dict) else None
    faults = [_fault(item) for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    return faults or [Fault("http_%d" % answer.status, "the API answered with status %d" % answer.status)]


def _fault(item):
    line = item.get("line")
    return Fault(
        _text(item.get("code")) or "failed",
        _text(item.get("message")) or "no reason given",
        _text(item.get("field")),
        _text(item.get("hint")),
        _text(item.get("file")),
        line if isinstance(line, int) else 0,
    )


def _text(value):
    return str(value)[:MAX_TEXT] if value else ""
