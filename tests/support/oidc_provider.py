"""A small OpenID Connect provider: it signs tokens with a real key, and gives codes for the one user that it knows."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

AUDIENCE = "ragllava"
CLIENT, SECRET = "console of pictures", "s:cret/+"


@dataclass
class Provider:
    """Signs tokens, and serves its public key. `changed` are claims of the identities that it gives for codes.

    `codes` has, for each code that is not redeemed, what the browser asked for. `groups_in_token`: else only the
    user's own page has them.
    """

    issuer: str
    key: rsa.RSAPrivateKey
    changed: dict[str, Any] = field(default_factory=dict)
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    groups_in_token: bool = True
    instead: tuple[int, dict[str, Any]] | None = None  # of the configuration
    asked_for_configuration: int = 0
    key_id: str = "one"
    asked_for_keys: int = 0
    instead_of_keys: tuple[int, Any] | None = None

    def token(self, key: rsa.RSAPrivateKey | None = None, key_id: str | None = None, **changed: Any) -> str:
        """Of the user ann, in the group staff; `key_id` as it says itself."""
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": AUDIENCE, "sub": "ann", "iat": now, "exp": now + 600, "groups": ["staff"]}
        kept = {name: value for name, value in (claims | changed).items() if value is not None}
        return jwt.encode(kept, key or self.key, "RS256", headers={"kid": key_id or self.key_id})

    def change_key(self) -> None:
        """Sign with a new key from now on; the old one is withdrawn."""
        self.key, self.key_id = rsa.generate_private_key(65537, 2048), f"after {self.key_id}"

    def keys(self) -> tuple[int, Any]:
        """The answer with the public key."""
        self.asked_for_keys += 1
        if self.instead_of_keys is not None:
            return self.instead_of_keys
        public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key()))
        return 200, {"keys": [public | {"kid": self.key_id, "use": "sig"}]}

    def told(self) -> tuple[int, dict[str, Any]]:
        """The answer with the configuration."""
        self.asked_for_configuration += 1
        return self.instead or (200, self.configuration())

    def configuration(self) -> dict[str, str]:
        """What clients find everything by."""
        paths = {
            "jwks_uri": "keys",
            "authorization_endpoint": "go",
            "token_endpoint": "token",
            "userinfo_endpoint": "me",
        }
        return {name: f"{self.issuer}/{path}" for name, path in paths.items()} | {"issuer": self.issuer}

    def leave(self, query: dict[str, str]) -> str:
        """Where a browser goes after the user has said yes."""
        code = secrets.token_urlsafe(8)
        self.codes[code] = query
        answer = {"code": code, "state": query["state"], "session_state": "x", "iss": self.issuer}
        return f"{query['redirect_uri']}?{urlencode(answer)}"

    def redeem(self, fields: dict[str, str], authorization: str) -> dict[str, str] | None:
        """Tokens for a code, once, for who has the client's secret and the verifier of the challenge."""
        asked = self.codes.pop(fields.get("code", ""), None)
        pair = base64.b64decode(authorization.removeprefix("Basic ")).decode()
        is_client = pair == "console%20of%20pictures:s%3Acret%2F%2B"
        if asked is None or not is_client or fields.get("redirect_uri") != asked["redirect_uri"]:
            return None
        digest = hashlib.sha256(fields["code_verifier"].encode()).digest()
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != asked["code_challenge"]:
            return None
        claims = {"aud": CLIENT, "nonce": asked["nonce"]} | ({} if self.groups_in_token else {"groups": None})
        return {"id_token": self.token(**claims | self.changed), "access_token": "of ann", "token_type": "Bearer"}


@contextmanager
def open_provider() -> Iterator[Provider]:
    """On a port of its own."""
    key = rsa.generate_private_key(65537, 2048)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            if parts.path == "/go":
                self.send_response(302)
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                self.send_header("location", provider.leave(query))
                self.end_headers()
                return
            is_ann = self.headers.get("authorization") == "Bearer of ann"
            bodies: dict[str, dict[str, Any]] = {
                "/me": {"sub": "ann", "groups": ["chiefs"]} if is_ann else {"error": "invalid_token"},
            }
            if parts.path == "/.well-known/openid-configuration":
                self._send(*provider.told())
            elif parts.path == "/keys":
                self._send(*provider.keys())
            else:
                self._send(200, bodies[parts.path])

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"])).decode()
            fields = {name: values[0] for name, values in parse_qs(data).items()}
            tokens = provider.redeem(fields, self.headers.get("authorization", ""))
            self._send(200 if tokens else 400, tokens or {"error": "invalid_grant"})

        def _send(self, status: int, body: Any) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

        def log_message(self, *_args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 64  # many browsers come back at the same moment

    server = Server(("127.0.0.1", 0), Handler)
    provider = Provider(f"http://127.0.0.1:{server.server_port}", key)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
