"""The agent: runs benchmark jobs on one host and tells the truth about them.

It promises that what it reported is on disk first, that one job runs at a time, that a crash of the
runtime or the load process is a recorded failure and never the agent's own, and that a killed agent
loses nothing that had finished. It imports no model library: models run in child processes.
"""
