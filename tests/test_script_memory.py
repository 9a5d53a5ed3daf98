"""The figures on paper are those of the ZeRO paper; test_devices.py holds them against devices."""

import pathlib
import subprocess
import sys

import pytest
import script_files

ROOT = pathlib.Path(__file__).parents[1]
script = script_files.load("memory")


# Rajbhandari et al. 2020, Figure 1 and Table 1: Adam in mixed precision, K = 12.
FIGURE_1 = {"data-parallel": 120, "ZeRO-1": 31.4, "ZeRO-2": 16.6, "fully sharded": 1.9}
TABLE_1 = {  # GB per device, 1T and 128B parameters
    ("fully sharded", 128e9, 64): 32,
    ("fully sharded", 1e12, 1024): 15.6,
    ("ZeRO-1", 128e9, 16): 608,
    ("ZeRO-2", 1e12, 256): 2054,
}


@pytest.mark.parametrize("scheme", FIGURE_1)
def test_memory_is_that_of_the_paper(scheme):
    cost = script.SCHEMES[scheme](7.5e9, script.STORES["mixed"], 64, 64)
    assert cost.held / 1e9 == pytest.approx(FIGURE_1[scheme], abs=0.05)


@pytest.mark.parametrize("row", TABLE_1, ids=str)
def test_memory_of_large_models_is_that_of_the_paper(row):
    scheme, psi, devices = row
    cost = script.SCHEMES[scheme](psi, script.STORES["mixed"], devices, devices)
    assert cost.held / 1e9 == pytest.approx(TABLE_1[row], rel=0.005)


def test_communication_is_that_of_the_paper():
    """Section 7: data-parallel, ZeRO-1 and ZeRO-2 send 2Ψ numbers, ZeRO-3 sends 3Ψ; n is large."""
    store = script.STORES["mixed"]
    sent = {
        name: scheme(1.0, store, 1e9, 1e9).sent / store.grads
        for name, scheme in script.SCHEMES.items()
    }
    expected = {"data-parallel": 2, "ZeRO-1": 2, "ZeRO-2": 2, "fully sharded": 3, "hybrid": 3}
    assert sent == pytest.approx(expected)


def test_a_ring_sends_a_part_to_its_neighbor_at_a_time():
    """Four devices count what they send, in the algorithm itself."""
    count, numbers = 4, 12
    sums = [[float(device + i) for i in range(numbers)] for device in range(count)]
    part = lambda i: slice(i % count * numbers // count, (i % count + 1) * numbers // count)
    sent = 0
    for turn in range(2 * (count - 1)):
        going = [sums[d][part(d - turn)] for d in range(count)]
        for d in range(count):
            into, own = part(d - 1 - turn), sums[d][part(d - 1 - turn)]
            arrived = going[d - 1]
            adds = turn < count - 1
            sums[d][into] = [a + b * adds for a, b in zip(arrived, own, strict=True)]
        sent += len(going[0])
    assert sums == [[6.0 + 4 * i for i in range(numbers)]] * count
    assert sent == script.all_reduce(numbers, count)


def test_the_hybrid_of_one_group_is_fully_sharded_and_of_single_devices_data_parallel():
    store = script.STORES["mixed"]
    whole, alone = (script.hybrid(1e9, store, 64, group) for group in (64, 1))
    assert whole == script.fully_sharded(1e9, store, 64, 64)
    assert alone == script.data_parallel(1e9, store, 64, 1)


def test_decay_by_entries_adds_nothing_and_sums_are_small():
    none = script.METHODS["l2, l1 and other sums over entries; coupled, cautious"]
    assert script.held_by(none, 1e12, 1e9, 8) == script.sent_by(none, 1e9, 8) == 0
    sent = script.fully_sharded(70e9, script.STORES["mixed"], 1024, 1024).sent
    for extra in script.METHODS.values():
        assert script.sent_by(extra, 70e9 / 8192, 1024) < sent / 1000


def test_the_page_on_devices_shows_the_table():
    """If this fails: paste what `python scripts/memory.py` prints first."""
    table = script.models_table(script.STORES["mixed"], script.DEVICES, script.GROUP)
    assert table in (ROOT / "docs" / "devices.md").read_text(encoding="utf-8")
    assert len(table.splitlines()) == 2 + 5


def test_it_prints_both_tables_and_refuses_groups_that_do_not_divide():
    def run(*options):
        command = [sys.executable, ROOT / "scripts" / "memory.py", *options]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    printed = run("--devices", "8", "--group", "4", "--store", "float32").stdout
    assert printed.startswith("| parameters | data-parallel |")
    assert "| 7B | 112 GB, 49 GB |" in printed
    assert "`adaptive.cpr`" in printed
    assert "--group must divide --devices" in run("--devices", "8", "--group", "3").stderr
    assert run("--devices", "8").returncode == 0  # one group, unless there are many devices
    assert "--devices: must be a whole number >= 1; got -4" in run("--devices", "-4").stderr
