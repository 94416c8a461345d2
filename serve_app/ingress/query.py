"""What stands in a URL: parameters of listings, and whether a file is wanted.

Data flow: Starlette request -> a wire model of `adminschema`, or the `RequestError` that names the
parameter at fault.
"""

from typing import TypeVar

from pydantic import BaseModel
from starlette.requests import Request

from serve_app.errors import InvalidValue
from serve_app.schema import parse_request

Query = TypeVar("Query", bound=BaseModel)


def parse_query(model: type[Query], request: Request) -> Query:
    """The parameters; one that occurs twice is refused, as nobody could say which one counts."""
    query = request.query_params
    for name in query:
        if len(query.getlist(name)) > 1:
            raise InvalidValue(f"The URL names {name[:64]!a} twice.").at(name[:64])
    return parse_request(model, dict(query))


def wants_csv(request: Request, chosen: str | None) -> bool:
    """Whether a listing is to be a file: by `format`, else by the `accept` header."""
    if chosen is not None:
        return chosen == "csv"
    accepted = request.headers.get("accept", "").lower().split(",")
    return any(one.partition(";")[0].strip() == "text/csv" for one in accepted)
