"""The one exception tree: what can go wrong, and what each failure looks like to a client.

Data flow: any layer raises one of these -> `ingress.errors` turns it into OpenAI's error body. A
class carries its whole HTTP mapping, so no handler decides anything. Imports nothing of this
package.

    AppError                      500 server_error
    ├── RequestError              400 invalid_request_error
    │   ├── MalformedBody         400
    │   ├── MissingParameter      400 missing_required_parameter
    │   ├── InvalidType           400 invalid_type
    │   ├── InvalidValue          400 invalid_value
    │   ├── UnsupportedValue      400 unsupported_value
    │   ├── MissingKey            401
    │   ├── InvalidKey            401 invalid_api_key
    │   ├── InsufficientQuota     402 credit_balance_exhausted
    │   ├── InsufficientScope     403 insufficient_scope
    │   ├── BadSignature          403 invalid_signature
    │   ├── ModelNotAllowed       403 model_not_allowed
    │   ├── ModelNotFound         404 model_not_found
    │   ├── ImageNotFound         404 image_not_found
    │   ├── AccountNotFound       404 account_not_found
    │   ├── KeyNotFound           404 key_not_found
    │   ├── UnknownRoute          404 unknown_url
    │   ├── MethodNotAllowed      405 method_not_allowed
    │   ├── BodyTimeout           408 request_timeout
    │   ├── IdempotencyKeyReused  409 idempotency_key_reused
    │   ├── IdempotencyKeyInUse   409 idempotency_key_in_use
    │   ├── StreamIncomplete      409 stream_incomplete
    │   ├── ImageExpired          410 image_expired
    │   ├── BodyTooLarge          413 body_too_large
    │   ├── UnsupportedMediaType  415 unsupported_media_type
    │   ├── RateLimitExceeded     429 rate_limit_exceeded
    │   └── BudgetExceeded        429 budget_exceeded
    ├── GenerationFailed          500 generation_failed
    ├── Unavailable               503 service_unavailable
    │   ├── Overloaded            503 server_is_overloaded
    │   ├── LedgerUnavailable     503 ledger_unavailable
    │   ├── StoreUnavailable      503 store_unavailable
    │   └── Draining              503 server_is_draining
    └── DeadlineExceeded          504 timeout

Every class takes exactly one string, because an exception crosses a Ray handle by pickle and
anything else arrives as an unserialisable error (a blind 500). Details are attributes, which do
survive.
"""

from typing import ClassVar, Self


class AppError(Exception):
    """A failure that a client may be told about. `message` is safe to show; `str(exc)` is not."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = "internal_error"
    retryable: ClassVar[bool] = True
    """Whether the same request may succeed later; answered as `x-should-retry`."""

    param: str | None = None
    """The request field at fault, as the client spelled it."""
    retry_after_s: int | None = None
    """Whole seconds for `Retry-After`; clients ignore the reply's hint above 120."""
    allow: str | None = None
    """Methods for the `Allow` header of a 405."""

    def __init__(self, message: str = "The server had an error.") -> None:
        super().__init__(message)

    @property
    def message(self) -> str:
        """The text for the client."""
        return str(self.args[0])

    def at(self, param: str) -> Self:
        """Name the request field at fault."""
        self.param = param
        return self

    def after(self, seconds: int) -> Self:
        """Tell the client when to come back."""
        self.retry_after_s = seconds
        return self


class RequestError(AppError):
    status = 400
    type = "invalid_request_error"
    code: ClassVar[str | None] = None
    retryable = False


class MalformedBody(RequestError):
    """Not JSON, or not an object."""


class MissingParameter(RequestError):
    code = "missing_required_parameter"


class InvalidType(RequestError):
    code = "invalid_type"


class InvalidValue(RequestError):
    code = "invalid_value"


class UnsupportedValue(RequestError):
    """A value that the API defines and this server does not offer."""

    code = "unsupported_value"


class MissingKey(RequestError):
    status = 401


class InvalidKey(RequestError):
    """Unknown, revoked or expired: the client is not told which."""

    status = 401
    code = "invalid_api_key"


class InsufficientQuota(RequestError):
    """402 and not 429, so that no client retries what only a grant can mend."""

    status = 402
    type = "insufficient_quota"
    code = "credit_balance_exhausted"


class InsufficientScope(RequestError):
    """A good key that was not made for this endpoint."""

    status = 403
    code = "insufficient_scope"


class BadSignature(RequestError):
    status = 403
    code = "invalid_signature"


class ModelNotAllowed(RequestError):
    """A good key that was made for other models."""

    status = 403
    code = "model_not_allowed"


class ModelNotFound(RequestError):
    status = 404
    code = "model_not_found"


class ImageNotFound(RequestError):
    status = 404
    code = "image_not_found"


class AccountNotFound(RequestError):
    """An operator named an account that the ledger does not have."""

    status = 404
    code = "account_not_found"


class KeyNotFound(RequestError):
    """An operator named an API key that the ledger does not have."""

    status = 404
    code = "key_not_found"


class UnknownRoute(RequestError):
    status = 404
    code = "unknown_url"


class MethodNotAllowed(RequestError):
    status = 405
    code = "method_not_allowed"


class BodyTimeout(RequestError):
    """The client took too long to send its body."""

    status = 408
    code = "request_timeout"
    retryable = True


class IdempotencyKeyReused(RequestError):
    status = 409
    code = "idempotency_key_reused"


class IdempotencyKeyInUse(RequestError):
    """The first request with this key is still running, after a whole deadline."""

    status = 409
    code = "idempotency_key_in_use"
    retryable = True


class StreamIncomplete(RequestError):
    """Ends the replay of a stream that ended early; a stream's error, never a status."""

    status = 409
    code = "stream_incomplete"


class ImageExpired(RequestError):
    status = 410
    code = "image_expired"


class BodyTooLarge(RequestError):
    status = 413
    code = "body_too_large"


class UnsupportedMediaType(RequestError):
    status = 415
    code = "unsupported_media_type"


class RateLimitExceeded(RequestError):
    """Too many requests a minute, or images at once, with one key."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    retryable = True

    rate: object = None
    """Where the key stands: `metering.limits.Rate`, of one with a request limit."""


class BudgetExceeded(RequestError):
    """The account's day or month is spent: no use to retry before the next one."""

    status = 429
    type = "insufficient_quota"
    code = "budget_exceeded"


class GenerationFailed(AppError):
    """The model replica failed or died; nothing was charged."""

    code = "generation_failed"


class Unavailable(AppError):
    status = 503
    type = "service_unavailable_error"
    code = "service_unavailable"
    retry_after_s = 5  # long enough for a replica to be replaced, short enough for a person to wait


class Overloaded(Unavailable):
    code = "server_is_overloaded"


class LedgerUnavailable(Unavailable):
    code = "ledger_unavailable"

    in_doubt: bool = False
    """Whether what was asked may have been done: the database broke off at the commit."""


class StoreUnavailable(Unavailable):
    code = "store_unavailable"


class Draining(Unavailable):
    code = "server_is_draining"


class DeadlineExceeded(AppError):
    status = 504
    code = "timeout"


class ConfigError(Exception):
    """A configuration that cannot be served; raised at start and by `check-config` only."""


def all_error_classes() -> list[type[AppError]]:
    """Every class of the tree, root first; the docs and tests walk it.

    Ray derives classes of its own from them when one crosses a handle: those are left out.
    """
    found: list[type[AppError]] = [AppError]
    for cls in found:
        found.extend(cls.__subclasses__())
    return [cls for cls in found if cls.__module__ == __name__]
