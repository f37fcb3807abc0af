"""kill -9 at random moments: nothing torn, nothing lost, nothing made twice beyond the group in hand.

The harness itself is proved: a naive writer under the same campaign leaves torn files.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

CAMPAIGN = Path(__file__).with_name("kill_campaign.py")
HARM = ("torn", "lost", "left", "different", "bad_ledger", "failed")


def campaign(directory: Path, kills: int, *words: str) -> dict[str, int]:
    command = [sys.executable, str(CAMPAIGN), str(directory), str(kills), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_nothing_is_torn_or_lost_by_kill_9(tmp_path: Path) -> None:
    found = campaign(tmp_path, 100, "safe")
    assert found["kills"] >= 100
    assert not any(found[key] for key in HARM), found
    assert found["redone"] <= 0, "each kill costs at most the group in hand"


def test_the_same_campaign_finds_the_torn_files_of_a_naive_writer(tmp_path: Path) -> None:
    assert campaign(tmp_path, 60, "naive")["torn"] >= 5


COMMAND = Path(__file__).with_name("kill_command.py")


def by_command(directory: Path, *words: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, str(COMMAND), str(directory), *words], capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_installed_command_killed_and_run_again(tmp_path: Path) -> None:
    """The campaign of kill_command.py in small; as it stands it is 1,000 pictures and 100 kills."""
    found = by_command(tmp_path, "--pictures", "24", "--kills", "3")
    harm = ("torn", "lost", "twice", "beyond", "different", "left", "exit")
    assert found["pictures"] == 24 and not any(found[key] for key in harm), found
    assert found["kills"] >= 2


def test_with_the_real_sampler_and_the_model_that_ships(tmp_path: Path) -> None:
    found = campaign(tmp_path, 6, "real", "24", "2")
    assert found["kills"] >= 6
    assert not any(found[key] for key in HARM) and found["redone"] <= 0, found
