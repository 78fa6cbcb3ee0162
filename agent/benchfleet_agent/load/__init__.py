"""The load process: sends a round's requests to a runtime and takes every timestamp.

It is a process of its own so that neither sampling nor gRPC nor fsync disturbs the timestamps
(``python -m benchfleet_agent.load``, see `benchfleet_agent.load.__main__` for its protocol). The agent's side
needs `benchfleet_agent.load.record` only, which imports no client library.

==================  ============================================================================================
``record``          `RequestRecord`: one request with all its moments; the words both sides share
``settings``        what ``open`` and ``round`` may say, validated
``feed``            pure: what a round sends next, and when
``accounting``      pure: chunks and stamps in, moments, token counts and a verdict out
``server_timings``  pure: what servers say of their own times, in one vocabulary
``http_errors``     pure: an HTTP status and its body → a reason
``kernel_clock``    pure: kernel receive stamps → the perf_counter clock
``counting``        a tokenizer in a process of its own, when the server does not count
``token_counter``   that process
``wire``            the socket: stamps, deadlines, connections made before they are needed
``http_body``       pure: a response body's framing
``held_back``       what is read faster than it can be parsed
``spooling``        what a round yields, also on disk, should the agent be gone
``transport``       the wire as an httpx2 transport
``client``          the only module that imports ``openai``
``requester``       one request: client, wire and accounting brought together
``process``         a round: workers, events, the garbage collector held still
==================  ============================================================================================
"""
