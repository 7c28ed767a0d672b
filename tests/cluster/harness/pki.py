"""Certificates and kubeconfigs of the cluster, made anew at every start."""

import base64
import datetime
import ipaddress
import json
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.cluster.harness.layout import API_IP, NODE, NODE_IP, SERVER, STATE

FOLDER = STATE / "pki"
CA = FOLDER / "ca.crt"
_NAMES = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)


@dataclass(frozen=True)
class Authority:
    """Who signs the certificates."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


def make() -> None:
    """Write every key, certificate and kubeconfig of the control plane, the node and the administrator."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    made = _authority()
    node = [x509.DNSName(NODE), x509.IPAddress(ipaddress.ip_address(NODE_IP))]
    server = [*map(x509.DNSName, _NAMES), x509.IPAddress(ipaddress.ip_address(API_IP))]
    issue(made, "apiserver", "kube-apiserver", names=server)
    issue(made, "apiclient", "kube-apiserver-kubelet-client", "system:masters")
    issue(made, "admin", "admin", "system:masters")
    issue(made, "controllers", "system:kube-controller-manager")
    issue(made, "scheduler", "system:kube-scheduler")
    issue(made, "kubelet", f"system:node:{NODE}", "system:nodes", node)
    for name in ("admin", "controllers", "scheduler", "kubelet"):
        kubeconfig(name)
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (FOLDER / "accounts.key").write_bytes(_pem(key))
    (FOLDER / "accounts.pub").write_bytes(public)


def authority() -> Authority:
    """Return who signed the certificates of the running cluster."""
    key = serialization.load_pem_private_key((FOLDER / "ca.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return Authority(key, x509.load_pem_x509_certificate(CA.read_bytes()))


def issue(
    authority: Authority, name: str, common: str, group: str | None = None, names: list[x509.GeneralName] | None = None
) -> None:
    """Write a key and a certificate for the user `common` of `group`, or for a server of these names."""
    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
    builder = _builder(common, group, authority.certificate.subject, key).add_extension(usage, critical=False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    _write(name, key, builder.sign(authority.key, hashes.SHA256()))


def kubeconfig(name: str) -> Path:
    """Write STATE/NAME.kubeconfig, with everything in it, so that it can be copied."""
    cluster = {"server": SERVER, "certificate-authority-data": _base64(CA)}
    user = {
        "client-certificate-data": _base64(FOLDER / f"{name}.crt"),
        "client-key-data": _base64(FOLDER / f"{name}.key"),
    }
    path = STATE / f"{name}.kubeconfig"
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "pi05-test", "cluster": cluster}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": "pi05-test", "context": {"cluster": "pi05-test", "user": name}}],
        "current-context": "pi05-test",
    }
    path.write_text(json.dumps(content, indent=1))
    path.chmod(0o600)
    return path


def _authority() -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
    signs = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False, **usage
    )
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pi05-test")])
    builder = _builder("pi05-test", None, name, key, authority=True).add_extension(signs, critical=True)
    certificate = builder.sign(key, hashes.SHA256())
    _write("ca", key, certificate)
    return Authority(key, certificate)


def _builder(
    common: str, group: str | None, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, *, authority: bool = False
) -> x509.CertificateBuilder:
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, common)]
    if group:
        subject.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name(subject))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )


def _write(name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
    (FOLDER / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (FOLDER / f"{name}.key").write_bytes(_pem(key))


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    kind = serialization.PrivateFormat.TraditionalOpenSSL
    return key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption())


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
