# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Text from untrusted files is shown escaped and short."""

from segtransformers.escaping import html_text, markdown, markdown_code, one_line, printable, short_repr


def test_terminals_receive_no_control_characters():
    assert printable("a\x1b[2Jb\r\n\x07\x9b\u202ec\u2028\ud800") == r"a\x1b[2Jb\r\n\x07\x9b\u202ec\u2028\ud800"
    assert printable("Straße 道路 é") == "Straße 道路 é"
    assert printable("x" * 80) == "x" * 80 and printable("x" * 10**6) == "x" * 77 + "..."
    assert len(printable("\0" * 10**6)) == 80 and len(printable("\0" * 10**3, None)) == 4000
    assert printable(7) == "7"


def test_large_and_deep_values_are_shown_short():
    deep: list = []
    for _ in range(10**5):
        deep = [deep]
    for value in (deep, [10**9] * 10**6, {"a" * 10**6: 1}, 10**10000, [["\x1b"] * 10] * 10):
        shown = short_repr(value)
        assert len(shown) <= 80 and "\x1b" not in shown
    assert short_repr(["a", 1]) == "['a', 1]"
    while deep:  # such a list is freed step by step
        deep = deep[0]


def test_markdown_shows_the_text_itself():
    assert markdown("<b>a*b*</b> [x](y)\n`c`") == r"&lt;b&gt;a\*b\*&lt;/b&gt; \[x\]\(y\)\\n\`c\`"
    assert markdown("it's") == "it's"
    assert markdown("see https://evil.example") == r"see https\://evil\.example"
    assert markdown_code("a`b\x1b_c") == r"a'b\x1b_c"


def test_html_shows_the_text_itself():
    assert html_text('<b>"a"\x1b') == r"&lt;b&gt;&quot;a&quot;\x1b"


def test_messages_become_one_line():
    assert one_line("cannot read\n  the file\x1b[1m\n") == r"cannot read the file\x1b[1m"
    long = one_line("cannot read the file " + "x" * 5000 + ": choose another one")
    assert len(long) <= 600 and long.startswith("cannot read") and long.endswith("choose another one")
    assert printable("caf\udce9.png") == r"caf\udce9.png"  # a file name that is no UTF-8
