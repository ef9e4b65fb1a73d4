"""Images: the base image with the overlays of a case injected."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcase.errors import BuildError, InfraError
from qcase.host.trees import Tree
from qcase.pipelines.pipeline import BUILD, OVERLAY
from qcase.prepare.base_guest import BaseGuest
from qcase.prepare.case_kernel import INJECTOR
from qcase.prepare.case_work import CaseWork
from qcase.store import keys
from qcase.store.content import Entry, Kind
from qcase.store.store import Store

if TYPE_CHECKING:
    from qcase.containers.engine import Engine


@dataclass(frozen=True)
class Overlay:
    """A built overlay. `is_part`: it is the overlay of a group's subcase."""

    name: str
    entry: Entry
    is_part: bool = False


def image_key(overlays: list[str], base_digest: str) -> keys.Key:
    """Return the key of the image with overlays of these digests."""
    from qcase.disk import inject

    return keys.image_key(base_digest=base_digest, overlays=overlays, injector=inject.INJECTOR_VERSION)


def stored_digests(overlay_keys: Sequence[keys.Key], store: Store) -> list[str] | None:
    """Return the content digests of the overlays, None unless all are stored. Reads their manifests only."""
    manifests = [store.manifest(Kind.OVERLAY, key.digest) for key in overlay_keys]
    digests = [manifest.digest for manifest in manifests if manifest is not None]
    return digests if len(digests) == len(overlay_keys) else None


@dataclass(frozen=True)
class ImageBuilder:
    """Finds the image of a case in the store, or injects its overlays. `image` returns the id of a toolchain image."""

    work: CaseWork
    guest: BaseGuest
    engine: Callable[[], Engine]
    image: Callable[[str], str]

    def stored(self, overlay_keys: Sequence[keys.Key]) -> Entry | None:
        """Return the stored image of these overlays, None unless the image and all overlays are stored."""
        store = self.work.store
        digests = stored_digests(overlay_keys, store)
        if digests is None:
            return None
        key = image_key(digests, self.guest.digest)
        image = self.work.stack.enter_context(store.reader(Kind.IMAGE, key.digest, warn=self.work.warn))
        if image is not None:
            for one in overlay_keys:  # after the image, so the collector removes the image first: it is large and quickly rebuilt
                store.touch(Kind.OVERLAY, one.digest)
        return image

    def built(self, overlays: Sequence[Overlay]) -> Entry:
        """Return the base image with the overlays injected in their order, from the store or built now."""
        base = self.guest.digest
        key = image_key([overlay.entry.digest for overlay in overlays], base)

        def build(path: Tree) -> None:
            self.guest.check_digest(base)
            self.work.say("writing the image")
            self._inject(path, *self._merge(overlays))
            self.guest.check_digest(base)

        return self.work.fetch(Kind.IMAGE, key, build, self.work.case.stored_as)

    def _merge(self, overlays: Sequence[Overlay]) -> tuple[Tree, dict[str, int]]:
        """Merge all overlays into one folder; return it with the file modes for the guest, by path.

        Raises `BuildError`, with both names, if two overlays have different content at the same path.
        """
        modes = {row[0]: int(row[2], 8) for one in overlays for row in one.entry.manifest.listing if row[2]}
        if len(overlays) == 1:
            return overlays[0].entry.content, modes
        merged = Tree(self.work.emptied("overlay"), what="the overlay")
        owner: dict[str, tuple[str, list[str]]] = {}
        for overlay in overlays:
            for row in overlay.entry.manifest.listing:
                path = row[0]
                name, known = owner.setdefault(path, (overlay.name, row))
                if known != row:
                    raise BuildError(
                        f"{name} and {overlay.name} both install {path}, and not the same",
                        where=self.work.case.display_name,
                        hint="let each subcase install under names of its own",
                    )
            overlay.entry.content.copy_to(merged)
        return merged, modes

    def _inject(self, path: Tree, overlay: Tree, modes: Mapping[str, int]) -> None:
        """Write an overlay into a copy of the base image, `path`, in a container, and verify the result.

        Raises `InfraError` if the injection fails.
        """
        from qcase.containers.step import Mount, Step, verdict_of
        from qcase.disk import inject, inject_plan
        from qcase.disk.ext4 import Ext4Image

        case = self.work.case.display_name
        rootfs = self.guest.current.rootfs
        build = path.parent
        assert build is not None
        before = set(build.names())
        with Ext4Image.open(rootfs) as base:
            plan = inject_plan.plan(base, overlay, modes)
        job = inject.injection_job(plan)
        inject.stage(job, rootfs, build)
        step = Step(
            image=self.image(INJECTOR),
            argv=("sh", "-euc", inject.shell(job)),
            mounts=(Mount(build, BUILD, False), Mount(overlay, OVERLAY, True)),
            workdir=BUILD,
            timeout=600.0,
            name="inject",
            log=self.work.scratch() / "inject.log",
        )
        result = self.engine().run(step, self.work.emit, case)
        if result.exit_status != 0:
            what, hint = verdict_of(step, result)
            raise InfraError(f"{what}\n{result.output.strip()[-2000:]}", where=case, hint=hint)
        inject.verify(build, plan, overlay)
        for leftover in set(build.names()) - before - {path.name}:
            (build / leftover).remove()
