"""Serving a dialled model over HTTP as a command."""

from pathlib import Path
from typing import Annotated

import typer

from rheostat.cli.app import app
from rheostat.cli.console import note
from rheostat.cli.options import MethodOption
from rheostat.errors import InputError, ModelError
from rheostat.gateway.hangup import hangups_taken


@app.command()
@hangups_taken()  # from here on: what the gateway needs takes seconds to be imported
def serve(
    run: Annotated[
        Path | None,
        typer.Option(
            "--run",
            metavar="DIR",
            help="The run, or exported model, to serve; with --upstream the exported model that the server serves. "
            "[default: the packaged pocket model]",
        ),
    ] = None,
    method: MethodOption = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="NAME", help="What requests call the model. [default: the folder's name]"
        ),
    ] = None,
    upstream: Annotated[
        str | None,
        typer.Option(
            "--upstream",
            metavar="URL",
            help="The OpenAI-compatible server that answers, as http://HOST:8000/v1.",
        ),
    ] = None,
    upstream_model: Annotated[
        str | None,
        typer.Option(
            "--upstream-model",
            metavar="NAME",
            help="What that server calls the model. [default: its only one]",
        ),
    ] = None,
    upstream_key_variable: Annotated[
        str | None,
        typer.Option(
            "--upstream-key-variable", metavar="NAME", help="The environment variable with that server's key."
        ),
    ] = None,
    rewards: Annotated[
        Path | None,
        typer.Option(
            "--rewards",
            metavar="RUN",
            help="The run whose reward models score answers. [default: the run that is served]",
        ),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            "--policy",
            metavar="FILE",
            help="Who may turn which dial how far; its keys, and no other, are served.",
        ),
    ] = None,
    insecure_local: Annotated[
        bool, typer.Option("--insecure-local", help="Ask nobody for a key; on a loopback address only.")
    ] = False,
    host: Annotated[
        str,
        typer.Option(
            "--host", metavar="ADDRESS", help="Where to listen; without --policy a loopback address."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, metavar="N", help="The port; 0 takes a free one.")
    ] = 8750,
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, metavar="N", help="Requests in work at once.")
    ] = 64,
    queue: Annotated[
        int,
        typer.Option("--queue", min=0, metavar="N", help="Requests that wait for their turn; more get 429."),
    ] = 256,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", min=0.001, metavar="S", help="Seconds for a whole request, its wait included."
        ),
    ] = 300,
    drain: Annotated[
        float,
        typer.Option("--drain", min=0, metavar="S", help="Seconds that requests under way have at SIGTERM."),
    ] = 30,
    max_body: Annotated[
        int, typer.Option("--max-body", min=1024, metavar="BYTES", help="The largest body of a request.")
    ] = 2**20,
    request_timeout: Annotated[
        float,
        typer.Option(
            "--request-timeout",
            min=0.001,
            metavar="S",
            help="Seconds for a request's headers, and its body, to come.",
        ),
    ] = 20,
    max_connections: Annotated[
        int, typer.Option("--max-connections", min=1, metavar="N", help="Open connections; more get 503.")
    ] = 2000,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-origin",
            metavar="ORIGIN",
            help="A web page's origin that may ask, as https://example.org; repeatable.",
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option("--device", metavar="DEVICE", help="Where the model runs: auto, cpu, cuda, cuda:1 …"),
    ] = "auto",
) -> None:
    """Serve a model with dials over an OpenAI-compatible API, under a policy.

    Needs `pip install 'rheostat[gateway]'`. Without --policy, whoever has the address that is printed, which holds a
    key made for this process, may turn the dials freely; only this machine is listened to. SIGTERM ends it when the
    requests under way have ended; SIGHUP reads the policy file anew at once.
    """
    if upstream is None and (upstream_model is not None or upstream_key_variable is not None):
        option = "--upstream-model" if upstream_model is not None else "--upstream-key-variable"
        raise InputError(
            f"got {option} without --upstream, allowed is both", hint="give the server's address with --upstream URL"
        )
    try:
        from rheostat.gateway.serving import ServeOptions, UpstreamAddress, serve_forever
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("rheostat"):
            raise
        raise ModelError(
            f"the gateway needs the package {error.name}, which is not installed",
            hint="pip install 'rheostat[gateway]'",
        ) from None
    serve_forever(
        ServeOptions(
            run=run,
            method=method,
            name=name,
            upstream=None
            if upstream is None
            else UpstreamAddress(upstream, upstream_model, upstream_key_variable),
            rewards=rewards,
            policy=policy,
            is_insecure=insecure_local,
            host=host,
            port=port,
            concurrency=concurrency,
            queue=queue,
            timeout_s=timeout,
            drain_s=drain,
            max_body=max_body,
            request_s=request_timeout,
            connections=max_connections,
            allow_origins=tuple(allow_origin or ()),
            device=device,
        ),
        tell=note,
    )
