"""`toque webhooks`: where the project's events are sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, cast
from urllib.parse import quote

import typer

from app.cli.client import (
    DEFAULT_BASE_URL,
    BaseUrl,
    connect,
    given,
    idempotency_key,
    not_empty,
    post_object,
)
from app.cli.output import AsJson, fail, moment, print_fields, print_json, print_table, stderr

if TYPE_CHECKING:
    from openai.types.webhooks import WebhookEndpoint, WebhookEndpointWithSecret

app = typer.Typer(no_args_is_help=True, help="Where the project's events are sent.")

EndpointId = Annotated[str, typer.Argument(metavar="ENDPOINT_ID", show_default=False, callback=not_empty)]
Events = Annotated[
    list[str] | None, typer.Option("--event", show_default=False, help="An event to be told of; repeat it.")
]


@app.command()
def create(
    url: Annotated[str, typer.Argument(show_default=False, help="Where to send events.")],
    events: Events = None,
    name: Annotated[str, typer.Option(help="What the endpoint is for.")] = "webhook",
    base_url: BaseUrl = DEFAULT_BASE_URL,
    as_json: AsJson = False,
) -> None:
    """Add an endpoint, and show its secret this once. Without --event it is told of all events.

    Example: toque webhooks create https://ci.example.com/toque --event comparison.completed
    """
    with connect(base_url) as client:
        chosen: Any = events or client.webhooks.event_types.list().data  # checked by the service
        endpoint = client.webhooks.create(
            name=name, url=url, event_types=chosen, extra_headers=idempotency_key()
        )
    _print_secret(endpoint, as_json)


@app.command("list")
def list_endpoints(base_url: BaseUrl = DEFAULT_BASE_URL, as_json: AsJson = False) -> None:
    """List endpoints, newest first.

    Example: toque webhooks list
    """
    with connect(base_url) as client:
        endpoints = list(client.webhooks.list(limit=100))
    if as_json:
        print_json(endpoints)
        return
    rows = [(each.id, each.name, each.url, _state(each), moment(each.created_at)) for each in endpoints]
    print_table(("ID", "NAME", "URL", "STATE", "CREATED"), rows)


@app.command()
def get(endpoint_id: EndpointId, base_url: BaseUrl = DEFAULT_BASE_URL, as_json: AsJson = False) -> None:
    """Show one endpoint.

    Example: toque webhooks get whe_abc123
    """
    with connect(base_url) as client:
        endpoint = client.webhooks.retrieve(endpoint_id)
    _print_endpoint(endpoint, as_json)


@app.command()
def update(
    endpoint_id: EndpointId,
    url: Annotated[str | None, typer.Option(show_default=False, help="Where to send events.")] = None,
    events: Events = None,
    name: Annotated[str | None, typer.Option(show_default=False, help="What it is for.")] = None,
    enabled: Annotated[
        bool | None,
        typer.Option("--enable/--disable", show_default=False, help="Whether events are delivered."),
    ] = None,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    as_json: AsJson = False,
) -> None:
    """Change an endpoint. What waits for it is then tried at once.

    Example: toque webhooks update whe_abc123 --enable
    """
    changes = given(url=url, event_types=events or None, name=name, enabled=enabled)
    if not changes:
        fail("Say what to change: --url, --event, --name, --enable or --disable.", 2)
    with connect(base_url) as client:
        endpoint = client.webhooks.update(endpoint_id, extra_body=changes)
    _print_endpoint(endpoint, as_json)


@app.command()
def delete(endpoint_id: EndpointId, base_url: BaseUrl = DEFAULT_BASE_URL) -> None:
    """Delete an endpoint and its deliveries.

    Example: toque webhooks delete whe_abc123
    """
    with connect(base_url) as client:
        deleted = client.webhooks.delete(endpoint_id)
    print_fields({"id": deleted.id, "deleted": "yes"})


@app.command()
def rotate(
    endpoint_id: EndpointId,
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="Sign with the old secret, too, for 24 hours.")
    ] = False,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    as_json: AsJson = False,
) -> None:
    """Give an endpoint a new secret, and show it this once.

    Example: toque webhooks rotate whe_abc123 --keep-old
    """
    with connect(base_url) as client:
        endpoint = client.webhooks.rotate_secret(
            endpoint_id, keep_old_secret_active_for_24_hours=keep_old, extra_headers=idempotency_key()
        )
    _print_secret(endpoint, as_json)


@app.command()
def test(
    endpoint_id: EndpointId,
    event: Annotated[str, typer.Option(help="The event to send a sample of.")] = "fine_tuning.job.succeeded",
    base_url: BaseUrl = DEFAULT_BASE_URL,
    as_json: AsJson = False,
) -> None:
    """Send a sample event at once. The exit code is 1 unless the answer's status is 2xx.

    Example: toque webhooks test whe_abc123
    """
    with connect(base_url) as client:
        chosen: Any = event
        result = client.webhooks.test(endpoint_id, event_type=chosen)
    if as_json:
        print_json(result)
    else:
        print_fields({"event": result.event_type, "status": result.status_code})
    if not 200 <= result.status_code < 300:
        fail(f"The endpoint answered with the status {result.status_code}.")


@app.command()
def deliveries(
    endpoint: Annotated[
        str | None, typer.Option(show_default=False, help="Only those of an endpoint.")
    ] = None,
    status: Annotated[
        str | None, typer.Option(show_default=False, help="Only those that are pending, succeeded or failed.")
    ] = None,
    event: Annotated[str | None, typer.Option(show_default=False, help="Only those of a type.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Newest deliveries to show.")] = 20,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    as_json: AsJson = False,
) -> None:
    """List what was sent or waits to be sent, newest first.

    Example: toque webhooks deliveries --status failed
    """
    query = given(webhook_endpoint_id=endpoint, status=status, event_type=event, limit=limit)
    with connect(base_url) as client:
        page = client.get("/webhooks/deliveries", cast_to=object, options={"params": query})
    found = cast("list[dict[str, Any]]", cast("dict[str, Any]", page)["data"])
    if as_json:
        print_json(found)
        return
    rows = [
        (
            each["id"],
            each["event"]["type"],
            each["event"]["data"]["id"],
            each["status"],
            each["attempts"],
            each["status_code"] or each["error"],
            moment(each["created_at"]),
        )
        for each in found
    ]
    print_table(("ID", "EVENT", "OF", "STATUS", "ATTEMPTS", "ANSWER", "CREATED"), rows)


@app.command()
def replay(
    delivery_id: Annotated[
        str, typer.Argument(metavar="DELIVERY_ID", show_default=False, callback=not_empty)
    ],
    base_url: BaseUrl = DEFAULT_BASE_URL,
    as_json: AsJson = False,
) -> None:
    """Deliver an event once more, as a new delivery.

    Example: toque webhooks replay whd_abc123
    """
    with connect(base_url) as client:
        delivery = post_object(client, f"/webhooks/deliveries/{quote(delivery_id, safe='')}/replay", {})
    if as_json:
        print_json(delivery)
    else:
        print_fields({"id": delivery["id"], "event": delivery["event"]["type"], "status": delivery["status"]})


def _print_endpoint(endpoint: WebhookEndpoint | WebhookEndpointWithSecret, as_json: bool) -> None:
    if as_json:
        print_json(endpoint)
        return
    print_fields(
        {
            "id": endpoint.id,
            "name": endpoint.name,
            "url": endpoint.url,
            "events": ", ".join(endpoint.event_types),
            "state": _state(endpoint),
            "created": moment(endpoint.created_at),
            "secret": getattr(endpoint, "signing_secret", endpoint.signing_secret_hint),
        }
    )


def _print_secret(endpoint: WebhookEndpointWithSecret, as_json: bool) -> None:
    _print_endpoint(endpoint, as_json)
    if not as_json:
        stderr.print("Keep the secret now: it cannot be shown again.")


def _state(endpoint: WebhookEndpoint | WebhookEndpointWithSecret) -> str:
    extra: Mapping[str, Any] = endpoint.model_extra or {}
    if not extra.get("enabled", True):
        return "disabled"
    failures = extra.get("failures", 0)
    return f"{failures} failed in a row" if failures else "enabled"
