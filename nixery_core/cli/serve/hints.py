"""What ``nixery-core serve`` says at its start: how to pull from it, word for word."""

from __future__ import annotations

import ipaddress
import json
import socket

from nixery_core._redact import redact
from nixery_core.cli.serve.settings import ServeSettings


def address_of(settings: ServeSettings, port: int) -> str:
    """Return the registry as clients write it: a host, and a port where it is not the usual one.

    >>> settings = ServeSettings(source="demo", store="images", public_url="https://images.example.org/")
    >>> address_of(settings, 8080)
    'images.example.org'
    """
    if settings.public_url:
        return settings.public_url.partition("://")[2].rstrip("/")
    host = settings.host
    if host in ("", "0.0.0.0", "::"):  # noqa: S104 (recognised, not bound)
        host = socket.gethostname()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_encrypted(settings: ServeSettings) -> bool:
    """Return whether clients speak TLS with the registry, or with what stands before it."""
    return settings.public_url.startswith("https://") if settings.public_url else bool(settings.tls_cert)


def start_text(settings: ServeSettings, port: int) -> str:
    """Return the text that is printed when the registry listens."""
    address, encrypted = address_of(settings, port), is_encrypted(settings)
    url = f"{'https' if encrypted else 'http'}://{address}"
    lines = [f"serving images of {redact(settings.source)}, kept in {redact(settings.store)}, at {url}"]
    if settings.page:
        lines.append(f"web page: {url}/")
    example = _example(settings)
    image = f"{address}/{example}"
    lines += [
        "pull an image, for example:",
        f"  docker pull {image}",
        f"  podman pull {'' if encrypted else '--tls-verify=false '}{image}",
        f"  skopeo copy {'' if encrypted else '--src-tls-verify=false '}docker://{image} oci:image",
    ]
    if not encrypted:
        lines += _plain_http(settings, address)
    return "\n".join(lines)


def _example(settings: ServeSettings) -> str:
    if settings.warm_up:
        return settings.warm_up[0]
    return "hello" if settings.source == "demo" else "shell"


def _plain_http(settings: ServeSettings, address: str) -> list[str]:
    lines = ["it speaks plain HTTP, which clients refuse, or wait for in vain, unless they are told:"]
    if _is_loopback(address):
        lines.append("  docker           takes it from this machine")
    else:
        lines.append(f"  docker           /etc/docker/daemon.json: {json.dumps({'insecure-registries': [address]})}")
    lines += [
        "  podman, skopeo   the options above, or /etc/containers/registries.conf.d/nixery.conf:"
        f' [[registry]] location = "{address}", insecure = true',
        f'  containerd, k8s  /etc/containerd/certs.d/{address}/hosts.toml: server = "http://{address}"',
    ]
    if not settings.public_url:
        lines.append("for TLS give --tls-cert and --tls-key, or put a proxy before it and name it with --public-url")
    return lines


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0] if not address.endswith("]") else address
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
