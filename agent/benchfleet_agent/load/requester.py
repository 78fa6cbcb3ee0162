"""One request: sent, stamped, accounted for. Whatever happens to it becomes a `RequestRecord`."""

from __future__ import annotations

import json
import sys
from time import perf_counter_ns

from benchfleet.failures import Failure, Reason, WorkFailed
from benchfleet_agent.load.accounting import Answer, Counts, End, account, verdict
from benchfleet_agent.load.client import Client, ConnectionLost, ErrorObject, Garbled, Overdue, Refused
from benchfleet_agent.load.counting import CountTokens
from benchfleet_agent.load.http_errors import http_failure, stream_failure
from benchfleet_agent.load.record import RequestRecord, StampSource, Status
from benchfleet_agent.load.settings import NO_KEY, NS_PER_S, LoadSettings, RequestSpec
from benchfleet_agent.load.wire import NEVER_NS, Exchange

_SHORTEST_KEY = 8  # anything shorter is no secret and may be part of any word


class Requester:
    """One worker's way to the server."""

    def __init__(self, settings: LoadSettings, client: Client, count: CountTokens | None) -> None:
        self._settings = settings
        self._client = client
        self._count = count
        self._request_ns = _nanoseconds(settings.request_timeout_s)
        self._first_token_ns = _nanoseconds(settings.first_token_timeout_s)
        self._token_ns = _nanoseconds(settings.token_timeout_s)

    def connect(self) -> None:
        """Have a connection before the round begins. Raises `ConnectionLost`."""
        self._client.begin(Exchange())

    def perform(self, spec: RequestSpec) -> RequestRecord:
        """Send one request and see it to its end. Never raises for what a server does."""
        first_limit_ns = min(self._request_ns, self._first_token_ns) if self._settings.stream else self._request_ns
        exchange = Exchange(first_limit_ns, spec.scheduled_ns or 0)
        answer = Answer()
        failure: Failure | None
        try:
            self._client.begin(exchange)
            body = spec.body(self._settings)
            end = self._stream(body, exchange, answer) if self._settings.stream else self._ask(body, answer)
            failure = verdict(answer, end)
        except WorkFailed as error:
            failure = error.failure
        except ErrorObject as error:
            failure = stream_failure(str(error))
        except Refused as error:
            failure = http_failure(error.status, error.body, exchange.location)
        except Overdue:
            failure = self._overdue(exchange, answer)
        except ConnectionLost as error:
            failure = _lost(exchange, answer, error)
        except Garbled as error:
            failure = Failure(Reason.BAD_RESPONSE, f"the response cannot be read: {error}")
        except Exception as error:  # noqa: BLE001 (the next request goes on whatever this one met)
            failure = Failure(Reason.INTERNAL, f"{type(error).__name__}: {error}")
            sys.excepthook(type(error), error, error.__traceback__)
        end_ns = perf_counter_ns()
        return self._record(spec, exchange, answer, failure, end_ns)

    def _stream(self, body: dict[str, object], exchange: Exchange, answer: Answer) -> End:
        exchange.silence_limit_ns, exchange.total_limit_ns = self._token_ns, self._request_ns
        seen = False
        for chunk in self._client.stream(body):
            seen = True
            if answer.chunk(chunk, exchange.last_ns, exchange.last_read):
                exchange.move_on()
        if exchange.closed_early:
            return End.DONE
        if not seen and exchange.unparsed:
            # No event in it and not announced as an event stream: the server ignored ``stream``.
            try:
                answer.whole(json.loads(exchange.unparsed))
            except ValueError:
                raise Garbled(f"neither an event stream nor JSON ({exchange.content_type or 'no type'})") from None
        return End.BODY

    def _ask(self, body: dict[str, object], answer: Answer) -> End:
        answer.streamed = False
        answer.whole(self._client.ask(body))
        return End.BODY

    def _overdue(self, exchange: Exchange, answer: Answer) -> Failure:
        """Which of the three limits it was: the one the deadline had been set by."""
        settings = self._settings
        chunks = len(answer.stamps)
        if exchange.start_ns is None or exchange.deadline_ns - exchange.start_ns >= self._request_ns:
            message = f"no end of the answer within {settings.request_timeout_s:g} s ({chunks} chunks arrived)"
            return Failure(Reason.REQUEST_TIMEOUT, message)
        if not chunks:
            return Failure(Reason.FIRST_TOKEN_TIMEOUT, f"no token within {settings.first_token_timeout_s:g} s")
        message = f"nothing for {settings.token_timeout_s:g} s after {chunks} chunks"
        return Failure(Reason.TOKEN_TIMEOUT, message)

    def _without_key(self, message: str) -> str:
        """Some servers repeat the key they refuse; it must not end in an event."""
        key = self._settings.api_key
        return message.replace(key, "***") if len(key) >= _SHORTEST_KEY and key != NO_KEY else message

    def _account(self, answer: Answer, *, failed: bool) -> Counts:
        try:
            return account(answer, failed=failed, count=self._count)
        except WorkFailed as error:  # the tokenizer's process is gone: estimates from here on, which records say
            print(error.failure.message, file=sys.stderr)
            self._count = None
            return account(answer, failed=failed)

    def _record(
        self, spec: RequestSpec, exchange: Exchange, answer: Answer, failure: Failure | None, end_ns: int
    ) -> RequestRecord:
        counts = self._account(answer, failed=failure is not None)
        start_ns = exchange.start_ns or 0
        source = None
        if exchange.reads:
            source = StampSource.KERNEL if exchange.kernel_reads == exchange.reads else StampSource.SOCKET
        ended = failure is None or failure.reason is Reason.EMPTY_ANSWER or exchange.body_ended
        return RequestRecord(
            request_id=spec.request_id,
            prompt_id=spec.prompt_id,
            scheduled_ns=spec.scheduled_ns,
            position=spec.position,
            prompt_prefix=spec.prefix,
            status=Status.OK if failure is None else Status.FAILED,
            reason=None if failure is None else failure.reason,
            message=None if failure is None else self._without_key(failure.message),
            http_status=exchange.status,
            start_ns=exchange.start_ns,
            sent_ns=_earlier(exchange.sent_ns, exchange.headers_ns),
            headers_ns=exchange.headers_ns,
            first_byte_ns=exchange.first_byte_ns,
            role_ns=answer.role_ns,
            first_reasoning_ns=answer.first_reasoning_ns,
            first_content_ns=answer.first_content_ns,
            last_content_ns=answer.stamps[-1] if answer.stamps else None,
            finish_ns=answer.finish_ns,
            usage_ns=answer.usage_ns,
            done_ns=exchange.done_ns if ended else None,
            end_ns=end_ns,
            token_ns=tuple(stamp - start_ns for stamp in answer.stamps),
            piece_lengths=tuple(answer.piece_lengths),
            other_lengths=tuple(answer.other_lengths) if any(answer.other_lengths) else (),
            chunks=len(answer.stamps),
            coalesced_chunks=answer.coalesced_chunks,
            prompt_tokens=counts.prompt_tokens,
            cached_prompt_tokens=counts.cached_prompt_tokens,
            output_tokens=counts.output_tokens,
            visible_tokens=counts.visible_tokens,
            reasoning_tokens=counts.reasoning_tokens,
            hidden_tokens=counts.hidden_tokens,
            tokens_source=counts.tokens_source,
            accounting=counts.accounting,
            finish_reason=answer.finish_reason,
            text=answer.text,
            reasoning_text=answer.reasoning_text,
            stamp_source=source,
            server_prefill_s=answer.server_timings.prefill_s,
            server_decode_s=answer.server_timings.decode_s,
            server_prefill_tokens=answer.server_timings.prefill_tokens,
            server_decode_tokens=answer.server_timings.decode_tokens,
            connect_duration_ns=exchange.connect_duration_ns,
        )


def _lost(exchange: Exchange, answer: Answer, error: ConnectionLost) -> Failure | None:
    """A connection that broke: before the response, a failure of the connection; after it began, of the answer."""
    if exchange.status is not None:
        if answer.streamed:
            return verdict(answer, End.CUT)
        return Failure(Reason.STREAM_TRUNCATED, f"the connection was cut inside the answer: {error}")
    if exchange.reads:
        return Failure(Reason.BAD_RESPONSE, f"the response is no HTTP: {error}")
    return Failure(Reason.CONNECTION_FAILED, f"no response: {error}")


def _earlier(sent_ns: int | None, headers_ns: int | None) -> int | None:
    """The moment the request was with the system: a kernel stamp may show that it was before the write returned."""
    return sent_ns if sent_ns is None or headers_ns is None else min(sent_ns, headers_ns)


def _nanoseconds(seconds: float | None) -> int:
    return NEVER_NS if seconds is None else int(seconds * NS_PER_S)
