"""The instrument's own error: the load process held against a server that knows when it sent what.

===================  ===========================================================================================
``certificate``      pure: the load process's records and the server's stamps in, a `Certificate` out
``loopback_server``  a process of its own that streams on an absolute schedule and stamps every send
``measurement``      starts the server and a load process, runs the requests, ends both
===================  ===========================================================================================
"""

from benchfleet_agent.instrument.certificate import Certificate
from benchfleet_agent.instrument.measurement import measure

__all__ = ["Certificate", "measure"]
