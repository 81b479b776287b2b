"""Jupyter's own test of kernels, jupyter_kernel_test, on the registered kernel.

    cargo run --release -- kernel install
    python scripts/kernel_test.py

One of its tests is skipped: pagers, which this kernel has not.
Needs jupyter_kernel_test.
"""

import unittest

import jupyter_kernel_test


class Rust(jupyter_kernel_test.KernelTests):
    kernel_name = "cluescope"
    language_name = "rust"
    file_extension = ".rs"
    code_hello_world = 'println!("hello, world");'
    code_stderr = 'eprintln!("oops");'
    completion_samples = [{"text": "let counter_of_things = 1; counter_of", "matches": {"counter_of_things"}}]
    complete_code_samples = ["1 + 1", "fn f() {}"]
    incomplete_code_samples = ["fn f() {", "let x ="]
    invalid_code_samples = [")"]
    code_inspect_sample = "let counter = 5u32; counter"
    code_generate_error = 'panic!("on purpose")'
    code_execute_result = [{"code": "6 * 7", "result": "42"}]
    code_display_data = [
        {"code": 'cluescope::notebook::show(&cluescope::notebook::Rich::html("<b>x</b>").text("x"));', "mime": "text/html"}
    ]
    code_history_pattern = "6?*"
    supported_history_operations = ("tail", "range", "search")
    code_clear_output = "cluescope::kernel::child::clear_output(false);"


class Welcome(jupyter_kernel_test.IopubWelcomeTests):
    kernel_name = "cluescope"
    support_iopub_welcome = True


if __name__ == "__main__":
    unittest.main(verbosity=2)
