"""What `.ci/licenses` lets pass, what it refuses, and what it writes of a crate."""

import importlib.util
import tempfile
import unittest
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

SCRIPT = str(Path(__file__).with_name("licenses"))
spec = importlib.util.spec_from_loader("licenses", SourceFileLoader("licenses", SCRIPT))
assert spec is not None and spec.loader is not None
licenses = importlib.util.module_from_spec(spec)
spec.loader.exec_module(licenses)


class Expressions(unittest.TestCase):
    def test_what_passes(self) -> None:
        for expression in (
            "MIT",
            "MIT/Apache-2.0",
            "GPL-3.0-only OR MIT",
            "MIT OR GPL-3.0-only",
            "(GPL-2.0-only OR ISC) AND (BSD-3-Clause OR MPL-1.1)",
            "Apache-2.0 WITH LLVM-exception OR GPL-3.0-only",
            # AND binds closer.
            "MIT OR GPL-3.0-only AND GPL-2.0-only",
        ):
            self.assertIsNone(licenses.reason_apart("thing 1.0.0", expression), expression)

    def test_what_is_named_apart(self) -> None:
        self.assertIn("source", licenses.reason_apart("thing 1.0.0", "MPL-2.0"))
        self.assertIn("source", licenses.reason_apart("thing 1.0.0", "MIT AND MPL-2.0"))
        # The choice is ours.
        self.assertIsNone(licenses.reason_apart("thing 1.0.0", "MPL-2.0 OR MIT"))

    def test_what_is_refused_names_the_crate(self) -> None:
        for expression, why in (
            (None, "names no licence"),
            ("", "names no licence"),
            ("GPL-3.0-only", "is under GPL-3.0-only"),
            ("MIT AND GPL-3.0-only", "needs more than 0BSD"),
            ("GPL-3.0-only AND MIT OR LGPL-2.1-only", "needs more than 0BSD"),
            ("GPL-3.0-only WITH Classpath-exception-2.0", "needs more than 0BSD"),
            ("MIT Apache-2.0", "no SPDX expression: 'Apache-2.0' is out of place"),
            ("MIT AND", "no SPDX expression: a licence is missing before 'its end'"),
            ("(MIT OR ISC", "no SPDX expression: a bracket is not closed"),
        ):
            with self.assertRaises(licenses.LicenceError) as caught:
                licenses.reason_apart("thing 1.0.0", expression)
            self.assertIn("thing 1.0.0", str(caught.exception))
            self.assertIn(why, str(caught.exception))


class Sections(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        self.texts = licenses.Texts()

    def crate(self, name: str, files: dict[str, str], licence: str = "MIT") -> dict[str, Any]:
        for path, text in files.items():
            file = self.root / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        manifest = self.root / name / "Cargo.toml"
        found = {"name": name, "version": "1.0.0", "license": licence, "repository": f"https://example.org/{name}"}
        return found | {"authors": ["Ada", "Grace"], "manifest_path": str(manifest)}

    def section(self, crate: dict[str, Any]) -> tuple[list[str], bool]:
        lines, has_text = licenses.section(crate, self.texts, self.root / "standard")
        return lines.splitlines(), has_text

    def test_equal_texts_stand_once(self) -> None:
        first, has_text = self.section(self.crate("first", {"LICENSE-MIT": "Copyright Ada\n\nAs is.\n"}))
        self.assertTrue(has_text)
        self.assertEqual(first[:3], ["first 1.0.0", "  licence: MIT", "  repository: https://example.org/first"])
        self.assertEqual(first[3:], ["  LICENSE-MIT: text 1"])
        second, _ = self.section(self.crate("second", {"COPYING": "  Copyright Ada\r\nAs is.", "NOTICE.md": "Grace"}))
        self.assertEqual(second[3:], ["  COPYING: text 1", "  NOTICE.md: text 2"])
        self.assertEqual(self.texts.texts, ["Copyright Ada\n\nAs is.", "Grace"])

    def test_texts_of_what_a_crate_took_from_others(self) -> None:
        files = {"LICENSE": "a", "src/tables/LICENSE-UNICODE": "b", "LICENSE.httprouter": "c", "UNLICENSE": "d"}
        not_notices = {"src/license.rs": "", "tests/LICENSE": "of a test", "src/lib.rs": "", "notice.json": ""}
        lines, _ = self.section(self.crate("took", files | not_notices))
        expected = ["LICENSE: text 1", "LICENSE.httprouter: text 2", "UNLICENSE: text 3", "src/tables/LICENSE-UNICODE: text 4"]
        self.assertEqual(lines[3:], [f"  {line}" for line in expected])

    def test_a_crate_without_a_text_has_the_standard_one(self) -> None:
        (self.root / "standard").mkdir()
        (self.root / "standard/MIT.txt").write_text("<copyright holders>")
        lines, has_text = self.section(self.crate("bare", {}, "MIT AND Zlib"))
        self.assertFalse(has_text)
        self.assertEqual(
            lines[3:],
            [
                "  authors: Ada, Grace",
                "  ships no text; the standard one of MIT: text 1",
                "  ships no text; the standard one of Zlib: https://spdx.org/licenses/Zlib.html",
            ],
        )

    def test_what_lies_in_our_own_crates(self) -> None:
        ours = self.crate("ours", {"assets/Plot.LICENSE": "its text"})
        with self.assertRaisesRegex(licenses.LicenceError, "ours/assets/Plot.LICENSE has no README.md"):
            list(licenses.vendored(self.root, ours, self.texts))
        (self.root / "ours/assets/README.md").write_text("Plot 2,\nunchanged\n")
        self.assertEqual(
            list(licenses.vendored(self.root, ours, self.texts)),
            ["ours/assets (in ours)\n  Plot 2, unchanged\n  Plot.LICENSE: text 1"],
        )

    def test_a_header_of_cuda_must_begin_with_its_notice(self) -> None:
        nvcc = self.root / "bin/nvcc"
        with self.assertRaisesRegex(licenses.LicenceError, "cuda_fp16.h is not there"):
            licenses.of_cuda(nvcc, self.texts)
        (self.root / "include").mkdir()
        for name in licenses.CUDA_HEADERS:
            (self.root / "include" / name).write_text("/*\n* NOTICE TO LICENSEE:\n*\n* As is.\n*/\n#pragma once\n")
        self.assertIn("cuda_bf16.h: text 1", licenses.of_cuda(nvcc, self.texts))
        self.assertEqual(self.texts.texts, ["NOTICE TO LICENSEE:\n\nAs is."])


if __name__ == "__main__":
    unittest.main()
