"""Idempotency of single handlers, of whatever framework: `Route` decorates them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Final, Generic, ParamSpec, TypeVar, Unpack, cast

from idempo import Idempotency, IdempotencyError
from idempo.blocks import OperationBlock
from idempo.http.core import HttpIdempotency, HttpOptions, NotKeptError
from idempo.http.requests import Request, Response

P = ParamSpec("P")
R = TypeVar("R")
ResponseT = TypeVar("ResponseT")


class Route(Generic[ResponseT]):
    """Guards the handlers that it decorates, plain functions and coroutines.

    A handler that is cancelled because its client went away ends by policy, as every guarded function does; a
    middleware would carry it to its end.

    Args:
        guard: On any store; for plain handlers, on one that is not for coroutines.
        request: Makes a `Request`, with its body, of the arguments that the framework calls the handler with. For a
            coroutine function it may be one too.
        respond: Makes the framework's response of a `Response`.
        keep: Makes a `Response` of what the handler returned.
        **options: Those of `HttpIdempotency`. ``principal`` has no default.

    Attributes:
        idempotency: The `HttpIdempotency` that decides.

    Raises:
        TypeError: An option is of the wrong type, or unknown.
        ValueError: An option is out of its range.
    """

    def __init__(
        self,
        guard: Idempotency,
        *,
        request: Callable[..., Any],
        respond: Callable[[Response], ResponseT],
        keep: Callable[[ResponseT], Response],
        **options: Unpack[HttpOptions],
    ) -> None:
        for name, value in (("request", request), ("respond", respond), ("keep", keep)):
            if not callable(value):
                raise TypeError(f"{name} must be a callable, not {type(value).__name__}")
        self.idempotency: Final = HttpIdempotency(guard, **options)
        self._request = request
        self._respond = respond
        self._keep = keep

    def __call__(self, handler: Callable[P, R]) -> Callable[P, R]:
        """Return the handler guarded, with its signature."""
        if inspect.iscoroutinefunction(handler):

            @functools.wraps(handler)
            async def guarded_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                return await self._serve_async(cast("Any", handler), args, kwargs)

            return cast("Callable[P, R]", guarded_async)

        @functools.wraps(handler)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> Any:
            return self._serve(handler, args, kwargs)

        return guarded

    def _serve(self, handler: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        request = self._request(*args, **kwargs)
        block = self._asked(request)
        if block is None:
            return handler(*args, **kwargs)
        if isinstance(block, Response):
            return self._respond(block)
        try:
            operation = block.__enter__()
        except (NotKeptError, IdempotencyError) as error:
            return self._respond(self.idempotency.answer(error))
        if not operation.fresh:
            block.__exit__(None, None, None)
            return self._respond(self.idempotency.replayed(operation.result))
        try:
            answer = handler(*args, **kwargs)
            response = self._keep(answer)
        except BaseException as error:
            block.__exit__(type(error), error, error.__traceback__)
            raise
        try:
            operation.complete(self.idempotency.outcome(response))
        except Exception as error:  # noqa: BLE001 (a store's bug too; an event has told it)
            # Not kept, or not stored: it ran, and its client gets what the handler answered all the same.
            block.__exit__(type(error), error, error.__traceback__)
        else:
            block.__exit__(None, None, None)
        return answer

    async def _serve_async(self, handler: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        request = self._request(*args, **kwargs)
        if inspect.isawaitable(request):
            request = await request
        block = self._asked(request)
        if block is None:
            return await handler(*args, **kwargs)
        if isinstance(block, Response):
            return self._respond(block)
        try:
            operation = await block.__aenter__()
        except (NotKeptError, IdempotencyError) as error:
            return self._respond(self.idempotency.answer(error))
        if not operation.fresh:
            await block.__aexit__(None, None, None)
            return self._respond(self.idempotency.replayed(operation.result))
        try:
            answer = await handler(*args, **kwargs)
            response = self._keep(answer)
        except BaseException as error:
            await block.__aexit__(type(error), error, error.__traceback__)
            raise
        try:
            await operation.complete(self.idempotency.outcome(response))
        except Exception as error:  # noqa: BLE001 (a store's bug too; an event has told it)
            # Not kept, or not stored: it ran, and its client gets what the handler answered all the same.
            await block.__aexit__(type(error), error, error.__traceback__)
        else:
            await block.__aexit__(None, None, None)
        return answer

    def _asked(self, request: object) -> OperationBlock | Response | None:
        if not isinstance(request, Request):
            raise TypeError(f"request must give an idempo.http.Request, not {type(request).__name__}")
        key = self.idempotency.admit(request)
        if not isinstance(key, str):
            return key
        if len(request.body) > self.idempotency.max_body:
            return self.idempotency.problems.too_large(self.idempotency.max_body)
        return self.idempotency.operation(request, key)
