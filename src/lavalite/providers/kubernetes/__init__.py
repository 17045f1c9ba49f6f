"""A Kubernetes cluster as a provider: its API in our words (connection), and what its nodes offer (offers).

lightkube is imported here and nowhere else. Objects are plain dicts, as the API's documentation shows them.
"""
