"""The little of kustomize that our manifests use, so that they can be tested where it is missing.

What it does not know it refuses: a kustomization that says more than this reads must not be half tested.
"""

from __future__ import annotations

import base64
import copy
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

if TYPE_CHECKING:
    from pathlib import Path

    Manifest = dict[str, Any]

KNOWN = {"apiVersion", "kind", "resources", "namespace", "configMapGenerator", "secretGenerator", "images", "patches"}
CLUSTER_WIDE = {"Namespace"}


def render(folder: Path) -> list[Manifest]:
    """What `kubectl kustomize` prints for *folder*, but without the hashes in the names of generated objects."""
    wanted = YAML(typ="safe").load(folder / "kustomization.yaml")
    assert set(wanted) <= KNOWN, f"{folder}: {set(wanted) - KNOWN} is not known here"
    manifests: list[Manifest] = []
    for name in wanted.get("resources", []):
        path = folder / name
        # Anchors are resolved by copying: a patch must reach one place.
        manifests += render(path) if path.is_dir() else copy.deepcopy(list(YAML(typ="safe").load_all(path)))
    manifests += [_config_map(folder, one) for one in wanted.get("configMapGenerator", [])]
    manifests += [_secret(one) for one in wanted.get("secretGenerator", [])]
    for patch in wanted.get("patches", []):
        _patch(manifests, patch)
    for image in wanted.get("images", []):
        for manifest in manifests:
            _set_image(manifest, image)
    for manifest in manifests:
        if "namespace" in wanted and manifest["kind"] not in CLUSTER_WIDE:
            manifest["metadata"]["namespace"] = wanted["namespace"]
    return manifests


def _config_map(folder: Path, wanted: dict[str, Any]) -> Manifest:
    data = {name: (folder / name).read_text() for name in wanted["files"]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": wanted["name"]}, "data": data}


def _secret(wanted: dict[str, Any]) -> Manifest:
    pairs = (literal.split("=", 1) for literal in wanted["literals"])
    data = {name: base64.b64encode(text.encode()).decode() for name, text in pairs}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": wanted["name"]},
        "type": "Opaque",
        "data": data,
    }


def _patch(manifests: list[Manifest], wanted: dict[str, Any]) -> None:
    """Apply a JSON patch (RFC 6902), of which only `replace` is known."""
    target = wanted["target"]
    meant = [m for m in manifests if (m["kind"], m["metadata"]["name"]) == (target["kind"], target["name"])]
    assert 1 == len(meant), target
    for operation in YAML(typ="safe").load(wanted["patch"]):
        assert "replace" == operation["op"]
        *way, last = (int(w) if w.isdigit() else w for w in operation["path"].strip("/").split("/"))
        place: Any = meant[0]
        for word in way:
            place = place[word]
        assert isinstance(last, int) or last in place, f"{operation['path']} replaces nothing"
        place[last] = operation["value"]


def _set_image(value: Any, wanted: dict[str, str]) -> None:
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _set_image(item, wanted)
    if isinstance(value, dict) and value.get("image") == wanted["name"]:
        value["image"] = f"{wanted.get('newName', wanted['name'])}:{wanted['newTag']}"
