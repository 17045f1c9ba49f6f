"""The models of the HTTP interface /v1 and its client.

Both sides import these; the server itself is in mbatchd. Not here: anything that needs FastAPI.
"""
