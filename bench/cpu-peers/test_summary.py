"""Numbers from units, checked by hand: `python3 -m unittest discover bench/cpu-peers`."""

import unittest
from typing import Any

from bars import at_least, below_all, own_bars
from client import complaint
from summary import Value, percentile, quantities, rows


def stage(
    ttft_ms: list[float], tpot_ms: list[float | None], rate: float, prompt: int = 128, wrong: str | None = None
) -> dict[str, Any]:
    watch = {"wall_s": 1.0, "server_cpu_s": 1.0, "client_cpu_s": 0.1, "others_cpu_s": 0.0, "steal_s": 0.0}
    kept = {
        "ttft_ms": ttft_ms,
        "tpot_ms": tpot_ms,
        "output_tokens_per_s": rate,
        "prompt_tokens_asked": prompt,
        "watch": watch,
        "disturbed": False,
    }
    return {"attempts": [kept], "complaint": wrong}


def unit(number: int, rate: float, **stages: dict[str, Any]) -> dict[str, Any]:
    return {
        "subject": "server",
        "round": number,
        "error": None,
        "quick": False,
        "starts": [{"wall_s": 0.3}, {"wall_s": 0.1}, {"wall_s": 0.2}],
        "model_mib": 92.0,
        "memory_after_load": {"rss_mib": 200.0},
        "idle": {"server_cpu_s": 0.01, "wall_s": 2.0},
        "stages": {"clients_1": stage([10, 30, 20], [4, 5, 8], rate), **stages},
    }


class Summary(unittest.TestCase):
    def test_percentiles_interpolate(self) -> None:
        self.assertEqual(percentile([4, 1, 3, 2], 50), 2.5)
        self.assertAlmostEqual(percentile(list(range(101)), 95), 95)
        self.assertEqual(percentile([7], 95), 7)

    def test_a_units_quantities(self) -> None:
        found = quantities(unit(1, 90, prefill_512=stage([256, 250, 260], [None, None, None], 4, 512)))
        self.assertEqual(found["start_s"], 0.2)
        self.assertEqual(found["decode"], 200)
        self.assertEqual(found["prefill"], 2000)
        self.assertEqual((found["ttft_p50_1"], found["output_1"]), (20, 90))
        self.assertEqual(found["idle_percent"], 0.5)

    def test_context_is_compared_on_one_server(self) -> None:
        found = quantities(unit(1, 90, context_128=stage([1], [5], 1), context_4096=stage([1], [10], 1)))
        self.assertEqual((found["decode_128"], found["decode_4096"], found["context_slowdown"]), (200, 100, 2))

    def test_wrong_answers_give_no_number(self) -> None:
        found = quantities(unit(1, 90, clients_8=stage([1], [1], 999, wrong="7 of 8 requests completed")))
        self.assertNotIn("output_8", found)

    def test_rounds_become_median_and_range(self) -> None:
        row = rows([unit(1, 90), unit(2, 70), unit(3, 100)])["server"]
        self.assertEqual(row.quantities["output_1"], Value(90, 70, 100, 3))


class Bars(unittest.TestCase):
    def setUp(self) -> None:
        self.ours = rows([unit(1, 180)])["server"]
        self.peer = rows([unit(1, 100)])["server"]

    def test_ratios_are_against_the_best(self) -> None:
        worse = rows([unit(1, 50)])["server"]
        self.assertIs(at_least("1 client", "output_1", 1.8, self.ours, [worse, self.peer]).met, True)
        self.assertIs(at_least("1 client", "output_1", 1.9, self.ours, [worse, self.peer]).met, False)

    def test_what_was_not_measured_is_not_met(self) -> None:
        self.assertIsNone(at_least("32 clients", "output_32", 2.5, self.ours, [self.peer]).met)
        self.assertIsNone(below_all("32 clients", "ttft_p50_32", self.ours, [self.peer]).met)

    def test_equal_times_are_not_below(self) -> None:
        self.assertIs(below_all("1 client", "ttft_p50_1", self.ours, [self.peer]).met, False)

    def test_memory_is_weights_and_cache_and_a_margin(self) -> None:
        verdicts = {bar.what: bar.met for bar in own_bars(self.ours, kv_cache_mib=0)}
        self.assertIs(verdicts["RSS after load"], True)
        self.ours.quantities["model_mib"] = Value(79, 79, 79, 1)
        verdicts = {bar.what: bar.met for bar in own_bars(self.ours, kv_cache_mib=0)}
        self.assertIs(verdicts["RSS after load"], False)


class Complaints(unittest.TestCase):
    KEPT = {
        "requests": 8,
        "completed": 8,
        "failures": {},
        "answers_at_limit": 8,
        "prompt_tokens_counted": 128.0,
        "prompt_tokens_asked": 128,
    }

    def test_exact_answers_are_right(self) -> None:
        self.assertIsNone(complaint(self.KEPT))

    def test_each_deviation_is_named(self) -> None:
        for change, word in (
            ({"completed": 7, "failures": {"status": {"count": 1, "example": "HTTP 500"}}}, "HTTP 500"),
            ({"answers_at_limit": 6}, "6 of 8 answers"),
            ({"prompt_tokens_counted": 129.0}, "129.0 prompt tokens"),
        ):
            self.assertIn(word, complaint({**self.KEPT, **change}) or "")


if __name__ == "__main__":
    unittest.main()
