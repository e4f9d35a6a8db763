import json

import pytest

from mpsearch import ArtifactError
from mpsearch.artifact import read_json, write_json
from mpsearch.store import RunFolder, fingerprint


def test_artefacts_are_written_whole(tmp_path):
    path = tmp_path / "deep" / "a.json"
    write_json(path, "mpsearch-test/1", {"x": [1.5, None]})
    assert read_json(path, "mpsearch-test/1") == {"schema": "mpsearch-test/1", "x": [1.5, None]}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"], "no temporary file stays behind"
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, "mpsearch-test/1", {"x": float("nan")})
    assert read_json(path, "mpsearch-test/1")["x"] == [1.5, None], "a failed write leaves the old file"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON"),
        (b'{"schema": "mpsearch-test/1", "x": [1', "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        (b"[]", r"has schema None, expected 'mpsearch-test/1'"),
        (b'{"schema": "mpsearch-other/1"}', r"has schema 'mpsearch-other/1', expected 'mpsearch-test/1'"),
    ],
)
def test_foreign_and_truncated_artefacts_are_refused(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        read_json(path, "mpsearch-test/1")
    with pytest.raises(ArtifactError, match="does not exist"):
        read_json(tmp_path / "b.json", "mpsearch-test/1")


def test_a_stage_is_computed_once_for_one_key(tmp_path):
    folder = RunFolder(tmp_path / "run", {})
    calls = []

    def stage(key):
        def compute():
            calls.append(key)
            return {"value": key}

        return folder.stage(
            "thing", "mpsearch-thing/1", key, compute, dict, lambda payload: {"value": payload["value"]}
        )

    assert stage("a") == stage("a") == {"value": "a"}
    assert stage("b") == {"value": "b"}
    assert calls == ["a", "b"]
    assert json.loads((tmp_path / "run" / "thing.json").read_text())["key"] == "b"


def test_folders_of_something_else_are_refused(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"holds files but no run.json: choose an empty or new folder"):
        RunFolder(tmp_path, {})
    assert [p.name for p in tmp_path.iterdir()] == ["photo.png"]
    with pytest.raises(ArtifactError, match="is a file, not a run folder"):
        RunFolder(tmp_path / "photo.png", {})
    other = tmp_path / "other"
    other.mkdir()
    (other / "run.json").write_text('{"schema": "npm"}')
    with pytest.raises(ArtifactError, match="has schema 'npm'"):
        RunFolder(other, {})


def test_the_journal_survives_a_cut_and_forgets_what_was_measured_on_something_else(tmp_path):
    folder = RunFolder(tmp_path, {})
    journal = folder.journal("key")
    journal["a"] = [1.0, 2.5]
    journal["b"] = [3.0]
    path = tmp_path / "measurements.jsonl"
    path.write_bytes(path.read_bytes() + b'["c", [4.')  # killed while writing
    again = folder.journal("key")
    assert dict(again) == {"a": [1.0, 2.5], "b": [3.0]}
    again["c"] = [5.0]
    assert dict(folder.journal("key")) == {"a": [1.0, 2.5], "b": [3.0], "c": [5.0]}
    with pytest.raises(TypeError, match="only grows"):
        del again["a"]
    assert dict(folder.journal("another key")) == {}


def test_a_damaged_journal_is_refused(tmp_path):
    folder = RunFolder(tmp_path, {})
    journal = folder.journal("key")
    for name in "abc":
        journal[name] = [1.0]
    path = tmp_path / "measurements.jsonl"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], b"garbage", *lines[3:]]))
    with pytest.raises(ArtifactError, match=r"measurements.jsonl is damaged in line 3; delete it to measure again"):
        folder.journal("key")


def test_fingerprints_follow_every_part():
    assert fingerprint(1, {"a": 2}) == fingerprint(1, {"a": 2})
    assert fingerprint(1, {"a": 2}) != fingerprint(1, {"a": 3}) != fingerprint(1)
