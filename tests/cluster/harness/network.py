"""The bridge that holds all of the cluster's addresses, and what Pods are told of it. No firewall rules."""

import json
import subprocess
from pathlib import Path

from tests.cluster.harness.layout import API_IP, BRIDGE, DNS_IP, NODE_IP, PODS, STATE

CNI = STATE / "cni"
ADDRESSES = STATE / "addresses"  # which Pod has which
_HARDWARE_ADDRESS = "02:00:00:00:00:01"
"""Of the bridge. One that is not set is the lowest of its ports and changes as Pods come and go; what the others then
send to the old one is lost for up to a minute."""


def up() -> None:
    """Make the bridge. The services' two addresses are on it, too, so no proxy is needed to reach them."""
    _ip("link", "add", BRIDGE, "address", _HARDWARE_ADDRESS, "type", "bridge")
    for address in (f"{NODE_IP}/24", f"{API_IP}/32", f"{DNS_IP}/32"):
        _ip("address", "add", address, "dev", BRIDGE)
    _ip("link", "set", BRIDGE, "up")
    CNI.mkdir()
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": PODS, "gateway": NODE_IP}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": str(ADDRESSES),
    }
    bridge = {"type": "bridge", "bridge": BRIDGE, "hairpinMode": True, "ipam": ipam}
    network = {"cniVersion": "0.4.0", "name": BRIDGE, "plugins": [bridge]}
    (CNI / "10-bridge.conflist").write_text(json.dumps(network, indent=1))
    (STATE / "resolv.conf").write_text("")  # this machine's own search domains are no business of a Pod


def down() -> None:
    """Remove the bridge."""
    if Path(f"/sys/class/net/{BRIDGE}").exists():
        _ip("link", "delete", BRIDGE)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
