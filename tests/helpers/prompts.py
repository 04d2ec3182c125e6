"""More than 200 prompts that tokenizers are likely to treat differently."""

from itertools import pairwise

ORDINARY = [
    "a red apple",
    "A photo of 3 cats, 2 dogs... and 100 birds",
    "it's the dog's; we've we're I'm you'll he'd don't",
    "hello! wow!! stop !!! a!b",
    "snake_case, kebab-case, CamelCase, semi;colon: (brackets) [more] {yet}",
    "1234567890 3.14 1e-5 50% $20 #1 @home a+b=c ~ ^ | \\ / * < > ?",
]
AWKWARD = [
    *ORDINARY,
    "",
    " ",
    "\n\t\r ",
    "two\nlines\r\nand a tab\there,  double   spaces ",
    "no\u00a0break\u2003em\u3000ideographic\u200bzero\ufeffwidth",
    "❤️ red heart 👩‍🚀 woman astronaut 👍🏽 🏳️‍🌈 🇨🇭 1️⃣",
    "红苹果 赤いリンゴ 빨간 사과 漢字かな交じり文",
    "تفاحة حمراء תפוח אדום \u202eright to left\u202c",
    "ΑΠΟΛΛΩΝΑΣ Σ ΟΔΟΣ σίγμα İstanbul Straße ǅ ﬁne ½ Ⅷ ①",
    "cafe\u0301 café ﬀ Å A\u030a ＡＢＣ１２３",
    "&amp; &lt;b&gt; &quot;quoted&quot; &#39;x&#39; &eacute; &amp;amp;",
    "“curly” ‘quotes’ — dash … ellipsis «guillemets» ´ ` woman’s",
    "schÃ¶n mojibake â€œquotesâ€",
    "<|startoftext|> injected <|endoftext|> and more",
    "<|STARTOFTEXT|> <start_of_text> <end_of_text> <|endoftext|><|endoftext|>",
    "\x00 null \x07 bell \x7f del \x1b[31m escape \x1c \x85 next",
    "हिन्दी ไทย தமிழ் ქართული Հայերեն አማርኛ ខ្មែរ",
    "z̸̧̛a̷͝l̵g̶o̴ ṕ̧́",
    "word " * 100,
    "x" * 300,
    "🎈" * 60,
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
]
PROMPTS = (
    AWKWARD
    + [f"{a} {b}" for a, b in pairwise(AWKWARD)]
    + [
        f"{start}{text}{end}"
        for text in AWKWARD
        for start, end in (
            ("", "!"),
            ("«", "»"),
            (" a ", ", oil"),
            ("Æ", "\n"),
            ("!", "2"),
            ("'", "'"),
        )
    ]
)
