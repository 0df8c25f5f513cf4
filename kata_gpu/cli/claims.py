"""`kata-gpu claims`: what this node has promised, from its checkpoint alone."""

from pathlib import Path

import click

from kata_gpu.cli.world import echo_json, echo_table, kubelet_root_option, output_option, require_kubelet

HEADER = ("CLAIM", "UID", "STATE", "POD", "DEVICES", "SINCE")


@click.command()
@kubelet_root_option
@output_option
def claims(kubelet_root: Path, output: str) -> None:
    """List the claims that this node has promised devices to. Needs no API server.

    \b
    Example:
      kata-gpu claims --output json
    """
    from kata_gpu.core.claim import DRIVER
    from kata_gpu.host.claim_file import ClaimFileReader

    checkpoint = ClaimFileReader(require_kubelet(kubelet_root) / "plugins" / DRIVER).load()
    if output == "json":
        echo_json(
            {
                "claims": [
                    {
                        "namespace": c.ref.namespace,
                        "name": c.ref.name,
                        "uid": c.ref.uid,
                        "state": str(c.state),
                        "pod": c.pod,
                        "bootId": c.boot_id,
                        "since": c.since.isoformat(),
                        "devices": [
                            {"device": d.device, "request": d.request, "addresses": list(d.addresses), "cdi": d.cdi_id}
                            for d in c.devices
                        ],
                    }
                    for c in checkpoint.claims
                ],
                "quarantine": [
                    {"address": q.address, "reason": q.reason, "since": q.since.isoformat()}
                    for q in checkpoint.quarantine
                ],
            }
        )
        return
    rows = [
        (
            f"{c.ref.namespace}/{c.ref.name}",
            c.ref.uid,
            str(c.state),
            c.pod or "-",
            ",".join(d.device for d in c.devices),
            c.since.strftime("%Y-%m-%d %H:%M:%S"),
        )
        for c in checkpoint.claims
    ]
    if rows:
        echo_table(HEADER, rows)
    else:
        click.echo("no claims")
    for q in checkpoint.quarantine:
        click.echo(f"set aside: {q.address}: {q.reason}")
