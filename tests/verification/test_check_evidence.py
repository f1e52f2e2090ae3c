"""A judge's check: dates on his own terms, the suspect's files, and the verdict read anew."""

import dataclasses
import json

import pytest
from _carried import carrier_record, carry, gradient_lora, text_unet
from _evidence import LATER, OTHER, SIGNER, authority, bound_record, dating, reported, save_suspect
from _kind import extra
from _tiny import learner, mark_bound

from aiao_diffusers import WatermarkKey, verify
from aiao_diffusers.denoiser.probes import Probes
from aiao_diffusers.errors import AttestationError, ConfigError, KeyFileError, TimestampError
from aiao_diffusers.protocol.leaves import disclose
from aiao_diffusers.verification.check_evidence import UNVOUCHED, check_evidence, compare_reports, read_plan
from aiao_diffusers.verification.claims import NO_LINEAGE, PROVES
from aiao_diffusers.verification.evidence_folder import write_evidence
from aiao_diffusers.verification.lineage_question import lineage_plan
from aiao_diffusers.verification.plan import ReadingPlan


extra("cryptography")

KEY = WatermarkKey(bytes(range(32)), "Demo")
PLAN = ReadingPlan.fast(trials=2, amplitudes=(1.0,), whiten=False, seed=5)


@pytest.fixture(scope="module")
def suspect(tmp_path_factory):
    return save_suspect(tmp_path_factory.mktemp("suspect"))


@pytest.fixture
def write(suspect, tmp_path):
    def make(report, record=None, signer=SIGNER, of=suspect):
        return write_evidence(report, of, record or bound_record(), signer, tmp_path / "evidence")

    return make


@pytest.fixture
def check():
    def run(folder, *words, authorities=None, **options):
        return check_evidence(folder, *words, authorities=authorities or authority().root_pem, **options)

    return run


class TestOffline:
    def test_says_what_was_signed_and_that_nobody_vouches(self, write, check, tmp_path):
        folder = write(reported())
        found = check(folder)
        assert (found.verdict, found.log10_p, found.dating["status"]) == ("verified", -9.0, "dated")
        assert not (found.vouched or found.compared or found.recomputed) and found.notes == (UNVOUCHED,)
        text = found.to_markdown()
        assert text.startswith("# verified: 'suspect/'") and UNVOUCHED in text and "not read again" in text
        assert dating()["assumption"] in text and found.signer in text
        assert json.loads(json.dumps(found.to_dict()))["subject"] == found.subject

    def test_by_the_signer_s_key(self, write, check, tmp_path):
        folder = write(reported())
        (tmp_path / "signer.pub").write_bytes(SIGNER.public.to_pem())
        found = check(folder, signer=tmp_path / "signer.pub")
        assert found.vouched and found.notes == () and "which you named" in found.to_markdown()
        with pytest.raises(AttestationError, match=f"{SIGNER.public.keyid}.*{OTHER.public.keyid}"):
            check(folder, signer=OTHER.public)
        with pytest.raises(KeyFileError, match="nobody.pub"):
            check(folder, signer=tmp_path / "nobody.pub")

    @pytest.mark.parametrize("verdict", ["not_verified", "not_testable"])
    def test_other_verdicts_prove_nothing(self, write, check, verdict):
        found = check(write(reported(verdict)))
        assert found.verdict == verdict and found.proves.startswith("Nothing")
        assert found.to_markdown().startswith(f"# {verdict}")


class TestDates:
    def test_an_authority_that_the_judge_does_not_trust(self, write, check):
        folder = write(reported())
        with pytest.raises(TimestampError, match="Test Authority"):
            check(folder, authorities=authority("Another").root_pem)
        with pytest.raises(TimestampError):
            check_evidence(folder)  # certifi's roots

    def test_another_day_or_count_than_the_judge_s(self, write, check):
        folder = write(reported())
        assert check(folder, published=LATER, commitments=1).dating["status"] == "dated"
        with pytest.raises(AttestationError, match="first published on '2023-08-25', you say 2023-08-24"):
            check(folder, published="2023-08-24")
        with pytest.raises(AttestationError, match="multiplied by 1 commitments, you count 4"):
            check(folder, commitments=4)

    def test_a_day_that_the_statement_lacks(self, write, check):
        told = {**dating(), "published": None, "status": "undated"}
        folder = write(reported(dating=told))
        assert check(folder).dating["status"] == "undated"
        assert check(folder, published=LATER).dating["status"] == "dated"

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"dated": "2020-01-01T00:00:00+00:00"}, "dated is '2020"),
            ({"authority": "CN=Other"}, "authority is 'CN=Other'"),
            ({"beacon": {"randomness": "0" * 64}}, "beacon is"),
            ({"commitment": "0" * 64}, "commitment is"),
            ({"scheme": "aiao-1"}, "scheme is"),
            ({"published": "2023-08-20"}, "status is 'dated' in the statement, and 'undated'.*no older"),
            ({"published": "soon"}, "published is a date"),
            ({"published": None}, "nobody said when"),
            ({"commitments": 2}, "commitments is 1 in the plan, 2"),
        ],
    )
    def test_a_signer_s_claim_that_the_files_do_not_bear_out(self, write, check, changes, said):
        folder = write(reported(dating={**dating(), **changes}))
        with pytest.raises(AttestationError, match=said):
            check(folder)

    def test_no_word_of_a_date(self, write, check):
        with pytest.raises(AttestationError, match="dating is empty"):
            check(write(reported(dating={})))

    def test_a_claim_without_its_proof(self, write, check):
        bare = dataclasses.replace(
            bound_record(), companions=dataclasses.replace(bound_record().companions, timestamp=None)
        )
        with pytest.raises(AttestationError, match="status is 'dated'.*no timestamp lies"):
            check(write(reported(), bare))


class TestFiles:
    def test_the_same_and_others(self, write, check, suspect, tmp_path):
        folder = write(reported())
        assert check(folder, suspect).compared
        weights = next(suspect.glob("*.safetensors")).read_bytes()
        other = save_suspect(tmp_path / "other")
        (path,) = other.glob("*.safetensors")
        path.write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
        with pytest.raises(AttestationError, match=f"other files than the statement: .{path.name}"):
            check(folder, other)

    def test_of_the_hub_at_the_commit_of_the_statement(self, hub, api, check, suspect, tmp_path):
        api.create_repo("owner/x")
        api.upload_folder(repo_id="owner/x", folder_path=suspect)
        commit = api.model_info("owner/x").sha
        source = {"suspect": {"repo": "owner/x", "commit": commit}}
        folder = write_evidence(reported(source=source), "owner/x", bound_record(), SIGNER, tmp_path / "e")
        api.upload_file(repo_id="owner/x", path_in_repo="config.json", path_or_fileobj=b"{}")  # the branch moves on
        found = check(folder, "owner/x")
        assert found.compared and found.origin == {"repo": "owner/x", "commit": commit}
        assert f"owner/x at commit {commit}" in found.to_markdown()

    def test_options_without_what_they_belong_to(self, write, check, suspect):
        folder = write(reported())
        with pytest.raises(ConfigError, match="--suspect"):
            check(folder, None, KEY)
        with pytest.raises(ConfigError, match="base belong"):
            check(folder, suspect, base=suspect)
        with pytest.raises(ConfigError, match="weight_name belong"):
            check(folder, weight_name="x")


def read(suspect, key=KEY, record=None, **options):
    options = {"plan": PLAN, "published": LATER, "authorities": authority().root_pem, **options}
    return verify(suspect, key, record=record or bound_record(), **options)


@pytest.mark.slow
class TestReadAgain:
    def test_the_same(self, write, check, suspect):
        report = read(suspect, controls={"itself": suspect})
        folder = write(report)
        found = check(folder, suspect, KEY)
        assert found.recomputed and found.verdict == "not_verified" and found.log10_p == report.log10_p
        assert "'itself'" in found.notes[-1] and "the same by a new reading" in found.to_markdown()
        assert len(check(folder, suspect, KEY, controls={"x": suspect}).notes) == 1

    def test_a_verdict_by_key_and_by_leaf_and_a_wrong_key(self, check, tmp_path):
        unet, record = mark_bound(steps=60)
        unet.save_pretrained(tmp_path / "marked")
        leaf = disclose(KEY, record, 1)
        for name, key in (("key", KEY), ("leaf", leaf)):
            report = read(tmp_path / "marked", key, record, plan=dataclasses.replace(PLAN, alpha=1e-3))
            folder = write_evidence(report, tmp_path / "marked", record, SIGNER, tmp_path / name)
            found = check(folder, tmp_path / "marked", key)
            assert found.verdict == report.verdict and found.recomputed
        assert check(tmp_path / "key").verdict == "verified"
        with pytest.raises(AttestationError, match="plan: leaves was 1"):
            check(tmp_path / "key", tmp_path / "marked", leaf)
        with pytest.raises(AttestationError, match="verdict was 'verified', now 'not_verified'.*hashes: commitment"):
            check(tmp_path / "key", tmp_path / "marked", KEY.child("wrong"))

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"log10_p": -0.75}, "log10_p was -0.75, now "),
            ({"verdict": "verified", "log10_p": -9.0}, "verdict was 'verified', now 'not_verified'"),
            ({"seed": 6}, "seed was 6, now 5"),
        ],
    )
    def test_another_figure_than_the_signed_one(self, write, check, suspect, changes, said):
        report = dataclasses.replace(read(suspect), **changes)
        with pytest.raises(AttestationError, match=said):
            check(write(report), suspect, KEY)

    def test_what_was_offered_then_must_be_offered_now(self, write, check, suspect):
        plan = {**ReadingPlan(trials=2, clean_twin=True).to_dict(), "ended": "all looks taken"}
        folder = write(reported("not_verified", plan=plan))
        with pytest.raises(AttestationError, match=r"had clean_twin: pass clean_twin= \(--clean-twin\)"):
            check(folder, suspect, KEY)
        with pytest.raises(AttestationError, match=r"had no reference: leave out"):
            check(folder, suspect, KEY, clean_twin=suspect, reference=suspect)
        with pytest.raises(AttestationError, match=r"had no probes: leave out probes= \(--probes\)"):
            check(folder, suspect, KEY, clean_twin=suspect, probes=suspect)

    def test_a_verdict_that_a_control_took_back(self, write, check, suspect):
        told = {"wrong_response": {}, "clean": {"verdict": "verified", "log10_p": -9.0}}
        folder = write(dataclasses.replace(read(suspect), verdict="not_testable", reason="the control", controls=told))
        assert check(folder).verdict == "not_testable"
        with pytest.raises(AttestationError, match=r"rests on controls \(\['clean'\]\).*--control"):
            check(folder, suspect, KEY)
        with pytest.raises(AttestationError, match="verdict was 'not_testable', now 'not_verified'"):
            check(folder, suspect, KEY, controls={"clean": suspect})

    def test_by_a_judge_s_probes(self, check, suspect, tmp_path):
        _, data, scheduler = learner()
        probes = Probes(data, dict(scheduler.config), "learner", 0, "0" * 64)
        report = read(suspect, probes=probes)
        folder = write_evidence(report, suspect, bound_record(), SIGNER, tmp_path / "e")
        assert check(folder, suspect, KEY, probes=probes).recomputed
        with pytest.raises(AttestationError, match=r"had probes: pass probes="):
            check(folder, suspect, KEY)
        with pytest.raises(AttestationError, match="probes was"):
            check(folder, suspect, KEY, probes=dataclasses.replace(probes, seed=1))


class TestLineage:
    """An adapter's file read alone, and the reading beside a base."""

    def make(self, folder, base=None, **changes):
        marked, record = text_unet(), carrier_record()
        carry(marked)
        file = gradient_lora(marked, folder / "lora.safetensors")
        report = verify(file, KEY, base, record, plan=PLAN)
        assert report.lineage["verdict"] == "verified"
        report = dataclasses.replace(report, lineage={**report.lineage, **changes})
        return file, report, write_evidence(report, file, record, SIGNER, folder / "evidence")

    @pytest.mark.slow
    def test_of_the_file_alone_is_read_again(self, check, tmp_path):
        file, report, folder = self.make(tmp_path)
        found = check(folder, file, KEY)
        assert found.verdict == "verified" and found.recomputed and found.log10_p == report.log10_p
        assert found.proves == PROVES["lineage"] and found.lineage is None
        with pytest.raises(AttestationError, match=r"had no base.*leave out base= \(--base\)"):
            check(folder, file, KEY, base=text_unet())
        with pytest.raises(AttestationError, match="now 'not_verified'"):
            check(folder, file, KEY.child("wrong"))
        with pytest.raises(AttestationError, match=r"had no reference: leave out"):
            check(folder, file, KEY, reference=file)

    @pytest.mark.slow
    def test_beside_a_verdict_on_what_runs_is_carried_and_read_again(self, check, tmp_path):
        file, report, folder = self.make(tmp_path, text_unet())
        found = check(folder, file, KEY, base=text_unet())
        assert found.verdict == "not_verified" and found.proves == PROVES["nothing"] and found.recomputed
        assert found.lineage == f"by the adapter's file alone 'verified', log10 p = {report.lineage['log10_p']:.1f}"
        assert found.lineage in found.to_markdown() and found.to_dict()["lineage"] == found.lineage
        with pytest.raises(AttestationError, match="hashes: base was"):
            check(folder, file, KEY)

    @pytest.mark.slow
    def test_another_lineage_than_the_signed_one(self, check, tmp_path):
        said = {"verdict": "not_verified", "log10_p": -1.0, "sha256": "0" * 64}
        file, _, folder = self.make(tmp_path, text_unet(), **said)
        with pytest.raises(
            AttestationError, match=r"lineage: log10_p was -1.0, now.*lineage: verdict was.*lineage: sha256"
        ):
            check(folder, file, KEY, base=text_unet())

    @pytest.mark.parametrize(
        "changes", [{"alpha": 2}, {"commitments": "x"}, {"looks": ["ones"]}, {"looks": None}], ids=str
    )
    def test_a_plan_that_is_none(self, changes):
        told = lineage_plan(PLAN)
        assert read_plan(told) == ReadingPlan(alpha=PLAN.alpha)
        with pytest.raises(AttestationError, match="plan in the statement"):
            read_plan({**told, **changes})


def test_a_file_that_shows_no_lineage_is_said_so(write, check):
    found = check(write(reported("not_verified", plan=lineage_plan(PLAN))))
    assert found.proves == NO_LINEAGE["lineage"]


class TestPlan:
    @pytest.mark.parametrize("plan", [PLAN, ReadingPlan(leaves=7, reference=True, healing=True)])
    def test_is_read_back(self, plan):
        told = json.loads(json.dumps(plan.to_dict()))
        assert read_plan(told) == dataclasses.replace(plan, leaves=1, reference=False, healing=False)

    @pytest.mark.parametrize(
        "changes",
        [
            {"trials": "8"},
            {"trials": 10**9},
            {"amplitudes": [1.0] * 65},
            {"seed": None},
            {"amplitudes": 1},
            {"amplitudes": ["x"]},
            {"amplitudes": []},
        ]
        + [{"alpha": "x"}, {"futility": {"x": 1}}, {"futility": 5}, {"looks": []}, {"looks": None}, {"leaves": []}],
        ids=str,
    )
    def test_that_is_none(self, changes):
        told = {**json.loads(json.dumps(PLAN.to_dict())), **changes}
        with pytest.raises(AttestationError, match="plan in the statement"):
            read_plan(told)

    def test_with_a_field_missing(self):
        with pytest.raises(AttestationError, match="seed"):
            read_plan({name: value for name, value in PLAN.to_dict().items() if name != "seed"})


def test_p_agrees_to_a_millionth():
    report = reported("not_verified", log10_p=-1.5)
    for p, differs in ((-1.5 * (1 + 9e-7), False), (-1.5 * (1 + 2e-6), True), (None, True)):
        assert bool(compare_reports({**report.to_dict(), "log10_p": p}, report)) is differs
    nothing = reported("not_testable")
    assert compare_reports(nothing.to_dict(), nothing) == []
