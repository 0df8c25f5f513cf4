"""Options that several commands share, and what they build: settings, evidence sources, a key."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from attestation.errors import Misconfigured
from attestation.guest.evidence import DeviceSource, EvidenceProvider
from attestation.guest.settings import GuestSettings, read_settings
from attestation.values import ResourcePath, Secret

if TYPE_CHECKING:
    from attestation.guest.http import Pace

F = TypeVar("F", bound=Callable[..., Any])
CDH_URL = "http://127.0.0.1:8006"  # api-server-rest of Confidential Containers (keybroker.md 4.1)
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where keys come from, as the command line says."""

    init_data: Path | None
    broker: str | None
    broker_cert: Path | None
    expected_devices: int | None
    via: str
    cdh_url: str


def source_options(command: F) -> F:
    """`--init-data`, `--broker`, `--broker-cert`, `--expected-devices`, `--via` as one `source` argument."""

    def wrapped(**kwargs: Any) -> Any:
        names = ("init_data", "broker", "broker_cert", "expected_devices", "via", "cdh_url")
        return command(source=Source(**{name: kwargs.pop(name) for name in names}), **kwargs)

    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    wrapped.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    for option in (
        click.option("--cdh-url", default=CDH_URL, show_default=True, help="REST endpoint of the data hub."),
        click.option(
            "--via", type=click.Choice(["broker", "cdh"]), default="broker", show_default=True,
            help="Attest here, or ask the pod's Confidential Data Hub (ordinary containers).",
        ),
        click.option("--expected-devices", type=click.IntRange(0, 64), help="Attest exactly so many devices."),
        click.option("--broker-cert", type=FILE, help="PEM to pin; only without init-data."),
        click.option("--broker", help="Broker URL; only without init-data."),
        click.option("--init-data", type=FILE, help="Measured init-data: broker, certificate, device count."),
    ):  # fmt: skip
        wrapped = option(wrapped)
    return wrapped  # type: ignore[return-value]


@contextmanager
def evidence_provider(settings: GuestSettings, expected: int | None) -> Iterator[EvidenceProvider]:
    """The sources of this VM: every NVIDIA device that the kernel lists must answer."""
    from attestation.guest.machine import Machine
    from attestation.guest.nscq import open_nscq
    from attestation.guest.nvml import open_nvml
    from attestation.guest.pci import count_devices
    from attestation.guest.tsm import ConfigfsTsm

    machine = click.get_current_context().find_object(Machine) or Machine()
    there = count_devices(machine.pci)
    with ExitStack() as stack:
        devices: list[DeviceSource] = []
        if there.gpus:
            devices.append(stack.enter_context(open_nvml()))
        if there.switches:
            devices.append(stack.enter_context(open_nscq()))
        measured = settings.expected_devices
        if expected is not None and measured is not None and expected != measured:
            raise Misconfigured("device-count", "command line and init-data disagree", expected=measured, got=expected)
        if expected is None:
            expected = there.gpus + there.switches if measured is None else measured
        yield EvidenceProvider(
            cpu=ConfigfsTsm(configfs=machine.configfs, ccel=machine.ccel),
            devices=tuple(devices),
            init_data=settings.init_data,
            expected_devices=expected,
        )


def settings_of(source: Source) -> GuestSettings:
    """Broker and certificate of this guest."""
    return read_settings(source.init_data, source.broker, source.broker_cert)


def said_pace() -> "Pace":
    """Waiting that says on stderr what it waits for: half a minute is long for somebody who looks."""
    from attestation.guest.http import Pace

    return Pace(say=partial(click.echo, err=True))


def fetch_key(source: Source, path: ResourcePath) -> Secret:
    """The key, from the broker after attestation or through the data hub."""
    from attestation.guest.http import PinnedHttp

    if source.via == "cdh":
        from attestation.guest.cdh import CdhClient

        return CdhClient(PinnedHttp(source.cdh_url, certificate=None, pace=said_pace())).fetch(path)
    from attestation.guest.client import KbsClient

    settings = settings_of(source)
    http = PinnedHttp(settings.broker_url, certificate=settings.broker_certificate, pace=said_pace())
    with evidence_provider(settings, source.expected_devices) as provider:
        return KbsClient(http, provider, profiles=settings.profiles).fetch(path)


def read_key(source: Source, key: str | None, key_file: Path | None) -> Secret:
    """A model key by name, or from a file; exactly one of the two."""
    if (key is None) == (key_file is None):
        raise Misconfigured("model-key", "say where the key is", expected="either --key or --key-file")
    if key_file is not None:
        return Secret(key_file.read_bytes()[:4096])  # a key has 32 bytes; any other length is refused where it is used
    assert key is not None
    return fetch_key(source, ResourcePath.parse(key))


def show(result: dict[str, Any], text: str, output: str) -> None:
    """A result on stdout."""
    click.echo(json.dumps(result) if output == "json" else text)


def warn(lines: list[str]) -> None:
    """Warnings, on stderr, each time."""
    for line in lines:
        click.echo(f"warning: {line}", err=True)


def output_option(command: F) -> F:
    """`--output text|json`."""
    option: Callable[[F], F] = click.option(
        "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Form of the result."
    )
    return option(command)
