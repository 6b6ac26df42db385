"""Groups of tests in several processes, of which one may crash: native code of a window can do that."""

from __future__ import annotations

from xdist.scheduler import LoadGroupScheduling
from xdist.workermanage import WorkerController


class Scheduling(LoadGroupScheduling):
    """xdist's own, which in 3.8 waits for ever after a crash: for groups without tests left, and for a second group."""

    def remove_node(self, node: WorkerController) -> str | None:
        """Give back what a process had not done, without the groups that it had."""
        work = self.assigned_work[node]
        for group in [group for group, tests in work.items() if all(tests.values())]:
            del work[group]
        return super().remove_node(node)

    def schedule(self) -> None:
        """Give a process that takes another's place two groups: it begins a test when it knows the one after."""
        replaces = self.collection is not None
        super().schedule()
        if replaces:
            for node in self.nodes:
                self._reschedule(node)

    def mark_test_pending(self, item: str) -> None:
        """A test that crashed and may run again is pending as it is."""
