"""The controller: turns a plan into jobs, follows them on many hosts, keeps every event, and compares."""
