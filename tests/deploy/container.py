"""What a container engine would do with our image, done by hand, since there may be no engine.

A root file system that is read-only and has no shell, a user that is nobody, no capabilities, few descriptors.

Needs root, as mounting does.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

UID = "65532"
DESCRIPTORS = 256
TOOLS = ("unshare", "setpriv", "prlimit", "mount", "chroot")
SHELLS = ("sh", "bash", "dash")

# Builds the root below $1 on a tmpfs that only this process sees, and runs the rest there. What is bound is bound
# read-only, one mount after the other: a remount does not reach the mounts below.
_ENTER = r"""
set -eu
root=$1 venv=$2 policies=$3 python=$4 tmpfs=$5; shift 5
mount --make-rprivate /
mount -t tmpfs -o mode=755 image "$root"
bind() { mkdir -p "$root$2"; mount --bind "$1" "$root$2"; mount -o remount,bind,ro "$root$2"; }
bind /usr /usr
for name in bin sbin lib lib64; do
    if [ -L "/$name" ]; then ln -s "$(readlink "/$name")" "$root/$name"
    elif [ -d "/$name" ]; then bind "/$name" "/$name"; fi
done
case $python in /usr | /usr/*) ;; *) bind "$python" "$python" ;; esac
for shell in SHELLS; do
    if [ -f "$root/usr/bin/$shell" ]; then mount --bind /dev/null "$root/usr/bin/$shell"; fi
done
mkdir -p "$root/etc" "$root/tmp" "$root/proc" "$root/dev"
chmod 1777 "$root/tmp"
for name in passwd group hosts nsswitch.conf ld.so.cache; do
    if [ -f "/etc/$name" ]; then cat "/etc/$name" > "$root/etc/$name"; fi
done
bind "$venv" /opt/ratelimiter
bind "$policies" /etc/ratelimiter
mount --bind /proc "$root/proc"
mount --bind /dev "$root/dev"
mount -o remount,ro "$root"
if [ -n "$tmpfs" ]; then mount -t tmpfs -o mode=1777 tmpfs "$root$tmpfs"; fi
cd "$root"
exec "$@"
""".replace("SHELLS", " ".join(SHELLS))


class Container:
    """Runs commands as a container of our image would.

    Args:
        folder: an empty one, to stand for the root.
        venv: what the image has at /opt/ratelimiter.
        policies: what is mounted at /etc/ratelimiter.
        environ: the whole environment.
        tmpfs: a folder that can be written after all.
    """

    def __init__(
        self, folder: Path, venv: Path, policies: Path, environ: Mapping[str, str], *, tmpfs: str = ""
    ) -> None:
        missing = [tool for tool in TOOLS if shutil.which(tool) is None]
        assert not missing, f"{', '.join(missing)} missing, which imitate a container: apt-get install util-linux"
        self._folder, self._venv, self._policies = folder, venv, policies
        self._environ = dict(environ)
        self._tmpfs = tmpfs

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start *command*, whose first word is a path inside the container."""
        entering = [str(self._folder), str(self._venv), str(self._policies), os.path.realpath(sys.base_prefix)]
        entering.append(self._tmpfs)
        inside = ["chroot", str(self._folder), "setpriv", "--reuid", UID, "--regid", UID, "--clear-groups"]
        inside += ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "prlimit", f"--nofile={DESCRIPTORS}"]
        inside += ["env", "-i", *(f"{name}={value}" for name, value in self._environ.items()), *command]
        return subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", _ENTER, "enter", *entering, *inside],  # noqa: S607
            text=True,
            **options,
        )

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run *command* to its end."""
        with self.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            out, err = process.communicate(timeout=60)
            return subprocess.CompletedProcess(shlex.join(command), process.returncode, out, err)


def build_venv(root: Path, folder: Path) -> Path:
    """What the Dockerfile's first stage makes: our wheel and the packages that it locks, in a venv that all may read.

    Its scripts say /opt/ratelimiter, where it will stand.
    """
    venv = folder / "venv"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    image = root / "deploy" / "image"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    into = [*pip, "--python", str(venv / "bin" / "python"), "install"]
    locked = ["--require-hashes", "--only-binary", ":all:", "-r"]
    subprocess.run([*into, *locked, image / "requirements.txt"], check=True)
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder / "dist", root], check=True)
    ours: list[str | Path] = ["--no-deps", "--no-index", "--find-links", folder / "dist", "ratelimiter-service"]
    subprocess.run([*into, *ours], check=True)
    for script in (venv / "bin").iterdir():
        if not script.is_symlink():
            script.write_bytes(script.read_bytes().replace(os.fsencode(venv), b"/opt/ratelimiter"))
    subprocess.run(["chmod", "-R", "a+rX", venv], check=True)  # noqa: S607
    return venv
