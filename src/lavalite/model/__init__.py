"""What exists: amounts, resources, requests, jobs, queues, logical hosts, and pools.yml in words.

Pure: no I/O, no clock. pydantic models for what is stored or typed by people, slots dataclasses for what the
scheduler holds by the thousand. Not here: where a thing is kept (store) or what should become of it (control).
"""
