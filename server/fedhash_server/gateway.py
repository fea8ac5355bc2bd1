"""The configuration of nginx, through which sites reach Flower's SuperLink.

1. TLS 1.3 with a client certificate of the consortium's authority. Of those, the gateway lets in
   the enrolled ones of sites, by their serial numbers: the authority draws 159 random bits for each
   (RFC 5280, section 4.1.2.2), and nginx has no SHA-256 of a certificate to compare.
2. Ten paths of Flower's Fleet API, exactly, by POST. What goes on to the SuperLink is one of ten
   constant paths, never what the caller wrote, so no spelling of a path leads elsewhere.
3. The SuperLink is reached by TLS and verified: a local user cannot take its port and play it.
4. A caller without a good certificate gets no answer at all (444: the connection is closed).

    >>> folder.nginx_file.write_text(nginx_configuration(folder, settings, read_roster(folder)))
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from fedhash.errors import CertificateError
from fedhash_server.coordinator_folder import CoordinatorFolder
from fedhash_server.coordinator_settings import CoordinatorSettings
from fedhash_server.roster import EnrolledSite

__all__ = ["FLEET_METHODS", "nginx_configuration"]

# All that a SuperNode with a key calls; register-node and unregister-node serve those without.
FLEET_METHODS = (
    "activate-node",
    "deactivate-node",
    "send-node-heartbeat",
    "pull-messages",
    "push-messages",
    "get-run",
    "get-fab",
    "push-object",
    "pull-object",
    "confirm-message-received",
)
_TEMPORARY = ("body", "proxy", "fastcgi", "uwsgi", "scgi")  # nginx wants to be told of all
_LARGEST_BODY = "16m"  # Flower sends chunks of 5.24 MB; at nginx's own 1 MB a run hangs

_TEMPLATE = """\
# Written by fedhash-coordinator run, anew at each start and each change of the roster.
daemon off;
{user}pid {pid};
error_log stderr warn;
worker_processes 2;
worker_shutdown_timeout 10s;

events {{
    worker_connections 2048;
}}

http {{
    access_log off;
    server_tokens off;
    client_body_temp_path {body};
    proxy_temp_path {proxy};
    fastcgi_temp_path {fastcgi};
    uwsgi_temp_path {uwsgi};
    scgi_temp_path {scgi};

    map_hash_bucket_size 128;
    map $ssl_client_serial $enrolled {{
        default 0;
{serials}    }}

    limit_conn_zone $ssl_client_serial zone=sites:1m;
    client_header_timeout 20s;
    client_body_timeout 60s;
    keepalive_time 1h;

    upstream superlink {{
        server 127.0.0.1:{superlink_port};
        keepalive 32;
    }}

    server {{
        listen {listen} ssl;
        ssl_protocols TLSv1.3;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        ssl_client_certificate {ca};
        ssl_verify_client on;
        ssl_verify_depth 1;
        ssl_session_cache off;
        ssl_session_tickets off;

        error_page 400 495 496 497 = @nothing;
        if ($enrolled = 0) {{
            return 403;
        }}
        limit_conn sites {connections};
        client_max_body_size {largest_body};

        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host localhost;
        proxy_ssl_protocols TLSv1.3;
        proxy_ssl_verify on;
        proxy_ssl_trusted_certificate {ca};
        proxy_ssl_name localhost;
        proxy_ssl_server_name on;
        proxy_connect_timeout 10s;
        proxy_read_timeout 120s;

        location / {{
            return 404;
        }}
        location @nothing {{
            return 444;
        }}
{locations}    }}
}}
"""

_LOCATION = """\
        location = /v1/fleet/{method} {{
            if ($request_method != POST) {{
                return 405;
            }}
            proxy_pass https://superlink/v1/fleet/{method};
        }}
"""


def nginx_configuration(
    folder: CoordinatorFolder, settings: CoordinatorSettings, roster: Mapping[str, EnrolledSite]
) -> str:
    """The text of nginx.conf.

    Raises:
        CertificateError: The folder's name has a character that nginx cannot be told.
    """
    state = folder.state / "nginx"
    address = settings.gateway.listen
    host = f"[{address}]" if ":" in address else address
    serials = "".join(f'        "{site.serial}" 1; # {name}\n' for name, site in roster.items())
    return _TEMPLATE.format(
        # as root, nginx would give its workers to nobody, who may not enter the folder
        user="user root;\n" if os.geteuid() == 0 else "",
        **{name: _path(state / name) for name in ("pid", *_TEMPORARY)},
        serials=serials,
        superlink_port=settings.superlink.port,
        listen=f"{host}:{settings.gateway.port}",
        certificate=_path(folder.certificate("gateway")),
        key=_path(folder.key("gateway")),
        ca=_path(folder.ca),
        connections=settings.gateway.connections_per_site,
        largest_body=_LARGEST_BODY,
        locations="".join(_LOCATION.format(method=method) for method in FLEET_METHODS),
    )


def _path(path: Path) -> str:
    text = str(path.resolve())
    if any(each in '"\\$;{}#' or not each.isprintable() for each in text):
        raise CertificateError(
            f"nginx cannot be told the name {text!r}; move the coordinator's folder to one of "
            "letters, digits, spaces, '-', '_' and '.'"
        )
    return f'"{text}"'
