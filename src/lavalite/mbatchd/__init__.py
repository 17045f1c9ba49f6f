"""The scheduler service: runs on the leader alone and carries out what control decides.

The API, the agents' sessions, the commit pipeline. Not here: policy of any kind (control, placement).
"""
