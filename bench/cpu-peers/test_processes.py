"""What /proc says, read right; and a real tree of processes."""

import os
import subprocess
import sys
import unittest

import processes


class Reading(unittest.TestCase):
    def test_a_name_may_hold_spaces_and_parentheses(self) -> None:
        stat = processes.parse_stat("42 (a (b) c) S 7 42 42 0 -1 0 1 0 0 0 150 50 30 20 20 0 1 0 100")
        self.assertEqual(stat.parent, 7)
        self.assertEqual(stat.cpu_s, 250 / processes.TICKS_PER_S)

    def test_idle_and_waiting_are_not_busy(self) -> None:
        machine = processes.parse_machine_cpu("cpu  1000 100 400 9000 1000 10 20 30 500 0\ncpu0 1 2 3 4\n")
        self.assertAlmostEqual(machine.busy_s, 1530 / processes.TICKS_PER_S)
        self.assertEqual(machine.steal_s, 30 / processes.TICKS_PER_S)


class Tree(unittest.TestCase):
    def test_grandchildren_belong_to_it(self) -> None:
        grandchild = "import sys; print(flush=True); sys.stdin.read()"
        child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
        with subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdin is not None
            process.stdout.readline()
            self.assertEqual(len(processes.tree(process.pid)), 2)
            self.assertGreater(processes.tree_memory(process.pid)["rss_mib"], 5)
            process.stdin.close()
        self.assertIn(os.getpid(), processes.tree(os.getppid()))

    def test_disturbance_is_a_share_of_all_cpus(self) -> None:
        def watch(others_s: float) -> dict[str, float]:
            return {"wall_s": 10.0, "others_cpu_s": others_s, "steal_s": 0.0}

        limit_s = 10.0 * processes.CPUS * processes.OTHERS_SHARE_MAX
        self.assertFalse(processes.disturbed(watch(limit_s * 0.99)))
        self.assertTrue(processes.disturbed(watch(limit_s * 1.01)))
        # In a short run a few ticks of the clock are a large share, and nothing.
        self.assertFalse(processes.disturbed({"wall_s": 0.1, "others_cpu_s": 0.04, "steal_s": 0.0}))


if __name__ == "__main__":
    unittest.main()
