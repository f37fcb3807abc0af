"""kill -9 at random moments: nothing torn, nothing lost, nothing made twice beyond the group in hand; and the
harness itself is proved.
"""

import json
import subprocess
import sys
from pathlib import Path

CAMPAIGN = Path(__file__).with_name("kill_campaign.py")


def campaign(directory: Path, kills: int, writer: str) -> dict[str, int]:
    command = [sys.executable, str(CAMPAIGN), str(directory), str(kills), writer]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return json.loads(done.stdout)


def test_nothing_is_torn_or_lost_by_kill_9(tmp_path: Path) -> None:
    found = campaign(tmp_path, 100, "safe")
    assert found["kills"] >= 100
    harm = {key: found[key] for key in ("torn", "lost", "left", "different", "bad_ledger")}
    assert not any(harm.values()), found
    assert found["redone"] <= 0, "each kill costs at most the group in hand"


def test_the_same_campaign_finds_the_torn_files_of_a_naive_writer(tmp_path: Path) -> None:
    assert campaign(tmp_path, 60, "naive")["torn"] >= 5
