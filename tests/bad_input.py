"""The table of bad input: what is typed, what `ddgen` answers, and the mend that its answer names.

`{word}` in a line stands for what differs from run to run.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A script that fails, its exit code and line, and a script of its mend that ends well."""

    script: str
    code: int
    line: str
    mend: str


ROWS = {
    "unknown flag": Row(
        "ddgen sample x --stpes 3",
        2,
        "no such option '--stpes'; did you mean '--steps'?",
        "ddgen sample x --steps 3",
    ),
    "unknown flag, nothing near": Row(
        "ddgen sample x --qqqq",
        2,
        "no such option '--qqqq'; see 'ddgen sample --help'",
        "ddgen sample --help",
    ),
    "unknown short flag": Row(
        "ddgen sample x -z", 2, "no such option '-z'; see 'ddgen sample --help'", "ddgen sample --help"
    ),
    "flag without its value": Row(
        "ddgen sample x --steps",
        2,
        "option '--steps' needs a value; see 'ddgen sample --help'",
        "ddgen sample --help",
    ),
    "unknown command": Row(
        "ddgen smaple x", 2, "no such command 'smaple'; did you mean 'sample'?", "ddgen sample x"
    ),
    "a prompt as command": Row(
        "ddgen 'a red apple'",
        2,
        "no such command 'a red apple'; to make a picture: ddgen sample \"a red apple\"",
        'ddgen sample "a red apple"',
    ),
    "unknown sampler": Row(
        "ddgen sample x --sampler eular",
        2,
        "unknown sampler 'eular'; did you mean 'euler'?",
        "ddgen sample x --sampler euler",
    ),
    "unknown spacing": Row(
        "ddgen sample x --spacing karas",
        2,
        "unknown spacing 'karas'; did you mean 'karras'?",
        "ddgen sample x --spacing karras",
    ),
    "width off the grid": Row(
        "ddgen sample x --width 513",
        2,
        "--width 513 is not a multiple of 16; use 512 or 528",
        "ddgen sample x --width 528",
    ),
    "height off the grid at the top": Row(
        "ddgen sample x --height 4095",
        2,
        "--height 4095 is not a multiple of 16; use 4080 or 4096",
        "ddgen sample x --height 4080",
    ),
    "too small": Row(
        "ddgen sample x -W 32", 2, "--width 32 is out of range; use 64 to 4096", "ddgen sample x -W 64"
    ),
    "too large": Row(
        "ddgen sample x --size 100000x100000",
        2,
        "100000x100000 is over the 16 megapixel limit; use at most 4096x4096",
        "ddgen sample x --size 4096x4096 --plan",
    ),
    "size unreadable": Row(
        "ddgen sample x --size 512",
        2,
        "--size '512' cannot be read; use two numbers, as 512x768",
        "ddgen sample x --size 512x768",
    ),
    "ratio unreadable": Row(
        "ddgen sample x --ar 16:0",
        2,
        "--ar '16:0' cannot be read; use two numbers, as 16:9",
        "ddgen sample x --ar 16:9",
    ),
    "size said twice": Row(
        "ddgen sample x --size 64x64 --ar 1:1",
        2,
        "--size, --ar and --width/--height say the same thing; keep one of them",
        "ddgen sample x --ar 1:1",
    ),
    "no steps": Row(
        "ddgen sample x --steps 0", 2, "--steps 0 is out of range; use 1 to 1000", "ddgen sample x --steps 1"
    ),
    "too many steps": Row(
        "ddgen sample x --steps 1001",
        2,
        "--steps 1001 is out of range; use 1 to 1000",
        "ddgen sample x --steps 1000",
    ),
    "steps no number": Row(
        "ddgen sample x --steps ten",
        2,
        "--steps 'ten' is not a whole number; use one as 20",
        "ddgen sample x --steps 20",
    ),
    "guidance nan": Row(
        "ddgen sample x --cfg nan",
        2,
        "--guidance nan is out of range; use 0 to 100",
        "ddgen sample x --cfg 0",
    ),
    "guidance infinite": Row(
        "ddgen sample x -g inf", 2, "--guidance inf is out of range; use 0 to 100", "ddgen sample x -g 100"
    ),
    "rescale out of range": Row(
        "ddgen sample x --guidance-rescale 2",
        2,
        "--guidance-rescale 2 is out of range; use 0 to 1",
        "ddgen sample x --guidance-rescale 1",
    ),
    "interval reversed": Row(
        "ddgen sample x --guidance-interval 0.8:0.1",
        2,
        "--guidance-interval 0.8:0.1 is not a part of the steps; use two fractions, as 0.1:0.8",
        "ddgen sample x --guidance-interval 0.1:0.8",
    ),
    "interval unreadable": Row(
        "ddgen sample x --guidance-interval 0.8",
        2,
        "--guidance-interval '0.8' is not LOW:HIGH; use two fractions, as 0.1:0.8",
        "ddgen sample x --guidance-interval 0.1:0.8",
    ),
    "seed no number": Row(
        "ddgen sample x --seed 1e99",
        2,
        "--seed '1e99' is no seed; use one as 7, a list as 1,2 or a range as 10-20",
        "ddgen sample x --seed 1,2",
    ),
    "seed too large": Row(
        "ddgen sample x --seed 9223372036854775808",
        2,
        "--seed 9223372036854775808 is out of range; use 0 to 9223372036854775807",
        "ddgen sample x --seed 9223372036854775807",
    ),
    "list of seeds and num": Row(
        "ddgen sample x --seed 1,2 -n 2",
        2,
        "--num does not go with a list of seeds, each seed makes one image; drop --num or give one --seed",
        "ddgen sample x --seed 1,2",
    ),
    "no pictures": Row(
        "ddgen sample x -n 0", 2, "--num 0 is out of range; use 1 to 1000000", "ddgen sample x -n 1"
    ),
    "sigmas rising": Row(
        "ddgen sample x --sigmas 1,2",
        2,
        "--sigmas is not a falling list of numbers; use some as 14.6,7,3,1,0",
        "ddgen sample x --sigmas 14.6,7,3,1,0",
    ),
    "sigmas and steps": Row(
        "ddgen sample x --sigmas 2,1 --steps 3",
        2,
        "--sigmas does not go with --steps; drop --steps",
        "ddgen sample x --sigmas 2,1",
    ),
    "eta out of range": Row(
        "ddgen sample x --eta 2", 2, "--eta 2 is out of range; use 0 to 1", "ddgen sample x --eta 1"
    ),
    "scale out of range": Row(
        "ddgen sample x --scale 17", 2, "--scale 17 is out of range; use 1 to 16", "ddgen sample x --scale 16"
    ),
    "result too large": Row(
        "ddgen sample x --size 4096x4096 --scale 3",
        2,
        "12288x12288 is over the 64 megapixel limit of a result; use at most --scale 2",
        "ddgen sample x --size 4096x4096 --scale 2 --plan",
    ),
    "batch size": Row(
        "ddgen sample x --batch-size 65",
        2,
        "--batch-size 65 is out of range; use 1 to 64",
        "ddgen sample x --batch-size 64",
    ),
    "quality": Row(
        "ddgen sample x --quality 0",
        2,
        "--quality 0 is out of range; use 1 to 100",
        "ddgen sample x --quality 1",
    ),
    "unknown format": Row(
        "ddgen sample x --format wepb",
        2,
        "--format 'wepb' is unknown; did you mean 'webp'?",
        "ddgen sample x --format webp",
    ),
    "unknown device": Row(
        "ddgen sample x --device gpu",
        2,
        "--device 'gpu' is unknown; did you mean 'cpu'?",
        "ddgen sample x --device cpu",
    ),
    "unknown dtype": Row(
        "ddgen sample x --dtype float33",
        2,
        "--dtype 'float33' is unknown; did you mean 'float32'?",
        "ddgen sample x --dtype float32",
    ),
    "no prompt": Row(
        "ddgen sample",
        2,
        'no prompt is given; write one, as in: ddgen sample "a red apple"',
        'ddgen sample "a red apple"',
    ),
    "nothing piped in": Row(
        "printf '' | ddgen sample",
        2,
        'no prompt is given; write one, as in: ddgen sample "a red apple"',
        'ddgen sample "a red apple"',
    ),
    "prompt not UTF-8": Row(
        "ddgen sample $'caf\\xe9'",
        2,
        "prompt is not valid UTF-8 at byte 3 (\\xe9); put it into a file and pipe it in: "
        "iconv -f latin1 -t utf-8 FILE | ddgen sample -",
        "printf 'caf\\xe9' > FILE; iconv -f latin1 -t utf-8 FILE | ddgen sample -; rm FILE",
    ),
    "standard input not UTF-8": Row(
        "printf 'caf\\xe9' | ddgen sample -",
        4,
        "standard input: invalid UTF-8 at byte 3 (\\xe9); convert it: "
        "iconv -f latin1 -t utf-8 FILE | ddgen sample -",
        "printf 'caf\\xe9' > FILE; iconv -f latin1 -t utf-8 FILE | ddgen sample -; rm FILE",
    ),
    "prompt too long": Row(
        "head -c 70000 /dev/zero | tr '\\0' a | ddgen sample -",
        2,
        "prompt has 70000 bytes, over the limit of 65536; shorten it",
        "head -c 65536 /dev/zero | tr '\\0' a | ddgen sample - --plan",
    ),
    "standard input closed": Row(
        "ddgen sample - <&-",
        4,
        'standard input is closed; give the prompt itself: ddgen sample "a red apple"',
        'ddgen sample "a red apple"',
    ),
    "unknown model": Row(
        "ddgen sample x -m stiker",
        5,
        "model 'stiker' is not in the registry; did you mean 'sticker'? ('ddgen models' lists all)",
        "ddgen sample x -m sticker",
    ),
    "output in a file": Row(
        "touch a; ddgen sample x -o a/b.png; code=$?; rm a; exit $code",
        7,
        "output directory 'a': 'a' is a file; choose another with --output",
        "ddgen sample x -o c/b.png",
    ),
    "output read-only": Row(
        "ddgen sample x -o /proc/out/",
        7,
        "output directory '/proc/out': no such file or directory; choose another place with --output",
        "ddgen sample x -o out/",
    ),
    "output of an unknown kind": Row(
        "ddgen sample x -o a.gif",
        2,
        "--output 'a.gif': unknown picture format '.gif'; use .png, .jpg or .webp, or end a directory in '/'",
        "ddgen sample x -o a.jpg",
    ),
    "format and name differ": Row(
        "ddgen sample x -o a.png --format webp",
        2,
        "--format webp does not fit --output 'a.png'; drop --format",
        "ddgen sample x -o a.png",
    ),
    "several into one file": Row(
        "ddgen sample x -n 2 -o a.png",
        2,
        "2 images do not fit into 'a.png'; give a directory, as in --output out/",
        "ddgen sample x -n 2 --output out/",
    ),
    "output is a device": Row(
        "ln -s /dev/null null.png; ddgen sample x -f -o null.png; code=$?; rm -f null.png; exit $code",
        7,
        "'null.png' is not a plain file; use '--output -' to write to standard output",
        "ddgen sample x --output - > FILE",
    ),
    "template leaves": Row(
        "ddgen sample x -o '{prompt}/../../a.png'",
        2,
        "--output '{prompt}/../../a.png' leaves the output directory; drop '..' behind the first field",
        "ddgen sample x -o '{prompt}/a.png'",
    ),
    "template, unknown field": Row(
        "ddgen sample x -o '{sed}.png'",
        2,
        "--output '{sed}.png': unknown field 'sed'; did you mean '{seed}'?",
        "ddgen sample x -o '{seed}.png'",
    ),
    "template, stray brace": Row(
        "ddgen sample x -o 'a}.png'",
        2,
        "--output 'a}.png' has a stray brace; write '{{' for a brace",
        "ddgen sample x -o 'a}}.png'",
    ),
    "template, strange field": Row(
        "ddgen sample x -o '{seed.__class__}.png'",
        2,
        "--output '{seed.__class__}.png': unknown field 'seed.__class__'; "
        "one of: index seed prompt model width height steps sampler "
        "guidance hash",
        "ddgen sample x -o '{seed}.png'",
    ),
    "standard output full": Row(
        "ddgen sample x -o - > /dev/full",
        7,
        "standard output: no space left; send it to another place with '>FILE'",
        "ddgen sample x -o - >FILE",
    ),
    "standard output closed": Row(
        "ddgen sample x >&-",
        7,
        "standard output is closed; leave it open, or send it to a file with '>FILE'",
        "ddgen sample x >FILE",
    ),
    "prompt too long for JPEG": Row(
        "head -c 40000 /dev/zero | tr '\\0' a | ddgen sample - --format jpeg",
        7,
        "the prompt needs {word} bytes of metadata, JPEG holds 65000; use --format png or --metadata min",
        "head -c 40000 /dev/zero | tr '\\0' a | ddgen sample - --format jpeg --metadata min",
    ),
    "environment": Row(
        "DDGEN_STEPS=ten ddgen sample x",
        2,
        "DDGEN_STEPS 'ten' is not a whole number; use one as 20",
        "DDGEN_STEPS=20 ddgen sample x",
    ),
    "out of memory": Row(
        "FAKE_FAIL=memory ddgen sample x --seed 7",
        8,
        "out of memory at 128x128 on cpu; try --width 64 --height 64",
        "ddgen sample x --width 64 --height 64",
    ),
    "not a number": Row(
        "FAKE_FAIL=nan ddgen sample x --seed 7",
        9,
        "seed 7: non-finite values; run with --dtype float32",
        "ddgen sample x --seed 7 --dtype float32",
    ),
    "a bug of ours": Row(
        "FAKE_FAIL=bug ddgen sample x",
        1,
        "internal error (KeyError in sitecustomize.py:{word}); run again with --debug and report it",
        "FAKE_FAIL=bug ddgen sample x --debug || echo reported",
    ),
}
