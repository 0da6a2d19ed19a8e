"""The command line: exit codes, streams, errors without traceback, tables, progress, chat and reference."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

import rheostat
from rheostat import cli, pipeline, plugins, reference
from rheostat.cli.console import print_line
from rheostat.control import ControlFormat
from rheostat.errors import DialError, InputError, PromptTooLong, StageMissing
from rheostat.method_name import MethodName, Variant
from rheostat.method_suffixes import SUFFIXES, Suffix
from rheostat.pipeline import RunOutcome
from rheostat.progress import LiveProgress, PlainProgress, console_progress, null_progress
from rheostat.records import Message
from rheostat.rundir import RunDirectory
from rheostat.tables import answer_table, evaluation_tables, show
from rheostat.talk import Conversation, Manner, answer_grid, converse, parse_dials, parse_levels

ROOT = Path(__file__).resolve().parents[1]


def invoke(*arguments: str, given: str | None = None) -> Result:
    return CliRunner().invoke(cli.app, list(arguments), input=given)


def shell(*arguments: str, given: str = "", cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", "from rheostat.cli import main; main()", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(
        command, capture_output=True, text=True, input=given, cwd=cwd, env=environment, check=False
    )


@dataclass
class Echo:
    """A model that answers with its dials and the last turn, and records what it was asked."""

    asked: list[tuple[Sequence[Message], dict[str, float]]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    control_format: ControlFormat = field(
        default_factory=lambda: ControlFormat(
            tuple(plugins.attribute(name) for name in ("safety", "helpfulness"))
        )
    )

    def respond_batch(
        self,
        items: Sequence[tuple[Sequence[Message], Mapping[str, float]]],
        *,
        temperature: float,
        max_tokens: int,
        seed: int,
    ) -> list[str]:
        answers = []
        for messages, dials in items:
            control = self.control_format.resolve(dials)
            if len(messages[-1].content) > 500:
                raise PromptTooLong("got 999 tokens, allowed are 512", hint="/reset forgets the conversation")
            self.asked.append((messages, dict(dials)))
            answers.append(f"{self.control_format.render(control)} {messages[-1].content}")
        self.seeds.append(seed)
        return answers


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Echo:
    echo = Echo()
    monkeypatch.setattr(rheostat, "load", lambda path, *, method: echo, raising=False)
    return echo


def figures(value: float) -> dict[str, Any]:
    metrics = {
        name: {"value": value, "low": value - 0.03, "high": value + 0.03}
        for name in ("mP", "MP", "Err", "BT")
    }
    return {**metrics, "tie_rate": 0.0, "constant_prompts": 0}


def evaluation() -> dict[str, Any]:
    def entry(value: float) -> dict[str, Any]:
        attributes = {"helpfulness": figures(value), "safety": figures(value / 2)}
        effects = {
            "safety_by_helpfulness": -0.125,
            "helpfulness_by_safety": {"value": 0.5, "low": 0.4, "high": 0.6},
        }
        return {"attributes": attributes, "cross_effect": effects, "fluency": 1.25, "cost": {}}

    def general(value: float) -> dict[str, Any]:
        scorers = {name: {"attributes": entry(value)["attributes"]} for name in ("truth", "bert")}
        return {**entry(value), "scorers": scorers}

    return {
        "schema": 1,
        "evaluations": {
            "optimization": {"clm": entry(0.5), "exmate": entry(0.84)},
            "generalization": {"clm": general(0.4), "exmate": general(0.6)},
        },
    }


# The command itself


def test_version_and_help() -> None:
    assert invoke("--version").output == f"rheostat {rheostat.__version__}\n"
    assert "Do all stages" in invoke("--help").output


def test_help_says_where_to_begin() -> None:
    assert "Begin with `rheostat run`" in " ".join(invoke("--help").output.split())
    assert "[default: pocket]" in " ".join(invoke("run", "--help").output.split())


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["run", "absent.yaml"], "cannot read the recipe 'absent.yaml'"),
        (["run", "--set", "generate.sampels=1"], "did you mean 'samples'?"),
        (["score", "absent"], "there is no run in absent"),
        (["generate", "absent"], "there is no run in absent"),
        (["generate", "absent", "--strict"], "without --out"),
        (["respond", "hi", "--safety", "nan"], "safety: got nan"),
        (["respond", "hi", "--helpfulness", "1.5"], "helpfulness: got 1.5"),
        (["respond", "hi", "--dial", "safety"], "allowed is name=value"),
        (["respond", "hi", "--dial", "safety=high"], "safety: got 'high'"),
        (["respond", "  "], "got an empty text"),
        (["compare", "hi", "--levels", "0,2"], "--levels: got 2.0"),
    ],
)
def test_user_errors(
    arguments: list[str], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and error in result.stderr and "\nhint: " in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir()), "nothing is written before the arguments are right"


def test_streams_and_exit_code_of_the_real_process(tmp_path: Path) -> None:
    failed = shell("run", "absent.yaml", cwd=tmp_path)
    assert failed.returncode == 2 and failed.stdout == "" and failed.stderr.startswith("error: ")
    shown = shell("config", "--set", "seed=5", cwd=tmp_path)
    assert shown.returncode == 0 and shown.stderr == "" and "\nseed: 5\n" in shown.stdout
    usage = shell("respond", "hi", "--safety", "high", cwd=tmp_path)
    assert usage.returncode == 2 and "--safety" in usage.stderr and "Traceback" not in usage.stderr


@pytest.mark.parametrize("arguments", [["respond", "-"], ["chat"]])
def test_a_closed_standard_input(
    arguments: list[str], model: Echo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["rheostat", *arguments])
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and "got a closed standard input" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_standard_output() -> None:
    command = [sys.executable, "-m", "rheostat", "config"]
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "cannot write to standard output: No space left" in result.stderr and "hint:" in result.stderr


def test_an_output_without_unicode() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "rheostat", "compare", "hi", "--levels", "0,1", "--max-tokens", "1"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0 and "safety ?" in result.stdout, result.stderr


@pytest.mark.parametrize(
    "option", [["--seed", "99999999999"], ["--temperature", "inf"], ["--temperature", "nan"]]
)
def test_sampling_out_of_range(option: list[str], model: Echo) -> None:
    result = invoke("respond", "hi", *option)
    assert result.exit_code == 2 and option[0] in result.stderr and not model.asked


def test_verbose_shows_the_traceback() -> None:
    result = invoke("--verbose", "run", "absent.yaml")
    assert result.exit_code == 2 and "Traceback" in result.stderr and "error: " in result.stderr


def test_no_torch_for_help_and_config() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from rheostat.cli import app\n"
        "for arguments in (['--help'], ['run', '--help'], ['config'], ['config', '--describe']):\n"
        "    assert CliRunner().invoke(app, arguments).exit_code == 0\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_our_own_faults_are_not_dressed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise AssertionError("ours")

    monkeypatch.setattr(pipeline, "stage", broken)
    assert isinstance(invoke("score", "x").exception, AssertionError)


def test_interrupt_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "stage", stopped)
    result = invoke("score", "x")
    assert result.exit_code == 130 and "takes up where it stopped" in result.stderr


def test_an_interrupted_answer_promises_nothing(monkeypatch: pytest.MonkeyPatch, model: Echo) -> None:
    def stopped(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "respond_batch", stopped)
    result = invoke("respond", "hi")
    assert result.exit_code == 130 and result.stderr == "interrupted\n"


def test_busy_run(tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path / "run", create=True):
        result = invoke("score", str(tmp_path / "run"))
    assert result.exit_code == 2 and "is working in" in result.stderr


# The stages


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    outcome = RunOutcome(tmp_path / "run", evaluation(), tmp_path / "run" / "report.html")

    def run(config: Any, out: Path, *, progress: object) -> RunOutcome:
        found.append(("run", config.seed, config.prompts.strict, out))
        return outcome

    def start(config: Any, out: Path, *, progress: object) -> None:
        found.append(("start", config.seed, config.prompts.strict, out))

    def stage(name: str, out: Path, *, progress: object) -> RunOutcome | None:
        found.append((name, out))
        return outcome if name == "report" else None

    monkeypatch.setattr(pipeline, "run", run)
    monkeypatch.setattr(pipeline, "start", start)
    monkeypatch.setattr(pipeline, "stage", stage)
    return found


def test_run_prints_the_table_the_report_and_the_next_command(
    calls: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    result = invoke("run", "--set", "seed=3", "--strict")
    assert result.exit_code == 0, result.output
    assert calls == [("run", 3, True, Path("runs/pocket"))]
    assert "Optimization evaluation" in result.stdout
    assert "Generalization evaluation, scored by truth" in result.stdout
    assert "Generalization evaluation, scored by bert" in result.stdout
    assert f"Report: {tmp_path / 'run' / 'report.html'}" in result.stdout
    assert "rheostat compare" in result.stdout.splitlines()[-1]
    assert result.stderr == ""


def test_stage_commands(calls: list[tuple[Any, ...]], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "evaluation.json").write_text(json.dumps(evaluation()))
    for name in ("generate", "score", "distil", "train", "evaluate", "report"):
        result = invoke(name, str(run))
        assert result.exit_code == 0, result.output
        assert ("Optimization evaluation" in result.stdout) == (name in ("evaluate", "report"))
    assert f"Report: {run / 'report.html'}\nNext:   rheostat compare" in result.stdout
    assert calls == [(name, run) for name in ("generate", "score", "distil", "train", "evaluate", "report")]


def test_generate_starts_a_run(calls: list[tuple[Any, ...]], tmp_path: Path) -> None:
    assert invoke("generate", "pocket", "--out", str(tmp_path / "r"), "--set", "seed=9").exit_code == 0
    assert calls == [("start", 9, False, tmp_path / "r")]


def test_missing_stage_reaches_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def stage(name: str, out: Path, *, progress: object) -> None:
        raise StageMissing("the stage 'generate' has not finished", hint="run `rheostat generate x` first")

    monkeypatch.setattr(pipeline, "stage", stage)
    result = invoke("score", "x")
    assert result.exit_code == 2 and "hint: run `rheostat generate x` first" in result.stderr


def test_config_prints_what_load_config_reads(tmp_path: Path) -> None:
    from rheostat.recipe import load_config

    path = tmp_path / "again.yaml"
    path.write_text(invoke("config", "pocket", "--set", "seed=5").stdout, encoding="utf-8")
    assert load_config(path) == load_config("pocket", ["seed=5"])
    assert (
        "generate.samples  (whole number of 1 or more, default 16)\n    responses a prompt (N)"
        in invoke("config", "--describe").stdout
    )


# Talking


def test_respond(model: Echo) -> None:
    result = invoke(
        "respond", "Hello", "--safety", "0.5", "--dial", "helpfulness=0.2", "--system", "s", "--seed", "4"
    )
    assert result.stdout == "[helpful=0.25][harmless=0.5] Hello\n"
    assert model.asked == [
        ((Message("system", "s"), Message("user", "Hello")), {"safety": 0.5, "helpfulness": 0.2})
    ]
    assert model.seeds == [4]


def test_respond_reads_standard_input(model: Echo) -> None:
    assert invoke("respond", "-", given="from a pipe\n").stdout == "[helpful=1][harmless=1] from a pipe\n"


def test_respond_with_an_unknown_dial(model: Echo) -> None:
    result = invoke("respond", "hi", "--dial", "wit=1")
    assert result.exit_code == 2 and "there is no dial 'wit'" in result.stderr


def test_compare_shows_the_grid(model: Echo) -> None:
    result = invoke("compare", "Hi", "--levels", "0,1")
    for helpful in (0, 1):
        for harmless in (0, 1):
            assert f"[helpful={helpful}][harmless={harmless}] Hi" in result.stdout
    assert len(model.seeds) == 1, "the whole grid is one batch"


def test_answer_grid_takes_lowest_middle_highest() -> None:
    answers = answer_grid(Echo(), [Message("user", "x")], None, Manner())
    assert [tuple(control.values()) for control, _ in answers] == [
        (helpful, harmless) for helpful in (0.0, 0.5, 1.0) for harmless in (0.0, 0.5, 1.0)
    ]
    close = answer_grid(Echo(), [Message("user", "x")], [0.0, 0.01], Manner())
    assert len(close) == 1, "levels that quantise to the same are asked once"


def test_answer_table_of_three_dials() -> None:
    answers: list[tuple[Mapping[str, float], str]] = [({"a": 0.0, "b": 1.0, "c": 0.5}, "[bold]text")]
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(answer_table(answers))
    assert re.search(r"0\s+1\s+0\.5\s+\[bold\]text", console.export_text())


def test_chat_turns_the_dials_mid_conversation(model: Echo) -> None:
    """A dial out of range, an unknown command, a turn that is too long: told, and the talk goes on."""
    lines = [
        "Hello",
        "/safety 0.5",
        "/safety=0.3",
        "/SAFETY",
        "/safety 0.5",
        "/safety 7",
        "/safety much",
        "/wit 1",
        "x" * 600,
        "",
        "//etc is a folder",
        "/dials",
        "/reset",
        "Again",
        "/Quit",
        "never said",
    ]
    result = invoke("chat", "--helpfulness", "0.75", "--system", "be kind", given="\n".join(lines))
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "[helpful=0.75][harmless=1] Hello",
        "[helpful=0.75][harmless=0.5] /etc is a folder",
        "[helpful=0.75][harmless=0.5] Again",
    ]
    for told in (
        "safety: got 7.0",
        "safety: got 'much'",
        "got /wit",
        "got 999 tokens",
        "helpfulness 0.75  safety 0.5",
        "helpfulness 0.75  safety 0.25  (0.25 is the level nearest to 0.3)\nhelpfulness 0.75  safety 0.25\n",
        "packaged pocket model",
    ):
        assert told in result.stderr
    roles = [[message.role for message in messages] for messages, _ in model.asked]
    assert roles == [["system", "user"], ["system", "user", "assistant", "user"], ["system", "user"]]
    assert model.seeds == [0, 1, 2]


def test_chat_help_lists_every_command() -> None:
    conversation = Conversation(Echo(), Manner(), {})
    with pytest.raises(InputError) as caught:
        conversation.command("/nothing")
    allowed = str(caught.value).partition("allowed are ")[2].partition("\n")[0].split(", ")
    dials = {f"/{name}" for name in conversation.model.control_format.names}
    for name in {*allowed} - dials:
        assert f"{name} " in conversation.command("/help")
    assert "/DIAL LEVEL" in conversation.command("/help") and "//TEXT" in conversation.command("/help")


def test_answers_and_errors_break_between_words_at_a_terminal_only() -> None:
    """Of 12 columns, `take the wheel off` fills two lines: a word is not cut."""
    terminal = Console(width=12, force_terminal=True, file=io.StringIO(), color_system=None)
    pipe = Console(width=12, force_terminal=False, file=io.StringIO())
    for console in (terminal, pipe):
        print_line(console, ("hint:", "bold"), " take the [wheel] off")
    assert terminal.file.getvalue() == "hint: take \nthe [wheel] \noff\n"  # type: ignore[attr-defined]
    assert pipe.file.getvalue() == "hint: take the [wheel] off\n"  # type: ignore[attr-defined]


def test_conversation_ends_with_the_lines() -> None:
    said: list[str] = []
    conversation = Conversation(Echo(), Manner(), {})
    converse(conversation, iter(["a", "b"]), reply=said.append, note=said.append, fault=lambda error: None)
    assert len(said) == 2 and len(conversation.turns) == 4


@pytest.mark.parametrize(
    ("parse", "error"),
    [
        (lambda: parse_dials(["=1"]), DialError),
        (lambda: parse_dials(["safety=nan"]), DialError),
        (lambda: parse_dials([], safety=-0.1), DialError),
        (lambda: parse_levels(""), DialError),
        (lambda: parse_levels("0,,1"), DialError),
        (lambda: Conversation(Echo(), Manner(), {}).command("/nothing"), InputError),
    ],
)
def test_wrong_dials(parse: Callable[[], object], error: type[Exception]) -> None:
    with pytest.raises(error):
        parse()


# Tables


def table_text(width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    for table in evaluation_tables(evaluation()):
        console.print(table)
    return console.export_text(styles=True)


def test_figures_intervals_and_the_best_in_bold() -> None:
    """exmate's 0.84 (0.81 to 0.87) shows as .84 ±.03, bold where highest; of Err, clm's 0.50 is the best."""
    text = table_text()
    exmate = next(line for line in text.splitlines() if "exmate" in line)
    assert exmate.count("\x1b[1m.84\x1b[0m") == 3
    clm = next(line for line in text.splitlines() if "clm" in line)
    assert clm.count("\x1b[1m.50\x1b[0m") == 1
    plain = re.sub(r"\x1b\[[0-9;]*m", "", exmate)
    assert plain.count(".84 ±.03") == 4
    assert plain.split()[-2:] == [".50", "1.25"], "the cross-effect on helpfulness, and fluency"


@pytest.mark.parametrize("width", [80, 100])
def test_table_fits_a_terminal(width: int) -> None:
    """The longest name of the default run is `prompting` or `reranking`; a figure may be negative."""
    found = evaluation()
    for methods in found["evaluations"].values():
        methods["reranking"] = methods["clm"]
        methods["prompting"] = json.loads(json.dumps(methods["exmate"]))
        methods["prompting"]["attributes"] = {"helpfulness": figures(-0.05), "safety": figures(-0.05)}
    console = Console(width=width, record=True, file=io.StringIO())
    for table in evaluation_tables(found):
        console.print(table)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    for whole in ("reranking", "prompting", "helpfulness", "−.05 ±.03"):
        assert whole in text
    assert "…" not in text


def test_table_explains_its_figures_once() -> None:
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", table_text()).split())
    assert text.count("half the 95 % interval") == 1 and "perplexity beside base's" in text


def test_table_in_a_pipe_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    for table in evaluation_tables(evaluation()):
        show(table)
    assert re.search(r"(\.84 ±\.03 +){4}", capsys.readouterr().out)


# Progress


def test_plain_progress_by_hand() -> None:
    """10 of 40 were done before; 15 more in 10 s are 1.5 a second, so the last 15 take 10 s more."""
    now = [100.0]
    console = Console(record=True, file=io.StringIO(), width=100)
    display = PlainProgress(console, interval=5, clock=lambda: now[0])
    with display.task("generate", 40, unit="responses", done=10) as advance:
        now[0] = 104.0
        advance(5)
        now[0] = 110.0
        advance(10)
        now[0] = 120.0
        advance(15)
    assert console.export_text().splitlines() == [
        "generate: 25/40 responses, 1.5 responses/s, 0:10 elapsed, 0:10 left",
        "generate: 40/40 responses, 1.5 responses/s, 0:20 elapsed",
    ]


def test_live_progress_nests() -> None:
    console = Console(force_terminal=True, width=90, record=True, file=io.StringIO())
    display = LiveProgress(console)
    with display.task("outer", 2, unit="methods") as outer, display.task("inner", None, unit="tok") as inner:
        inner(20_000)
        outer(1)
    with display.task("again", 0):
        pass


def test_progress_fits_the_stream() -> None:
    assert isinstance(console_progress(Console(force_terminal=True, file=io.StringIO())), LiveProgress)
    assert isinstance(console_progress(Console(force_terminal=False, file=io.StringIO())), PlainProgress)
    with null_progress.task("nothing", 3) as advance:
        advance(3)


# The reference


def test_reference_is_up_to_date() -> None:
    assert reference.main(["--check", "--docs", str(ROOT / "docs")]) == 0


def test_reference_check_finds_a_stale_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reference.main(["--docs", str(tmp_path)]) == 0
    assert reference.main(["--docs", str(tmp_path), "--check"]) == 0
    (tmp_path / "cli.md").write_text("old")
    assert reference.main(["--docs", str(tmp_path), "--check"]) == 1
    assert "stale: cli.md" in capsys.readouterr().err


def test_reference_holds_every_command_and_key() -> None:
    pages = reference.pages()
    for name in (
        "run",
        "generate",
        "score",
        "distil",
        "train",
        "evaluate",
        "report",
        "export",
        "config",
        "chat",
    ):
        assert f"`rheostat {name}`" in pages["cli.md"]
    assert "`rheostat pocket build`" in pages["cli.md"]
    assert "## `generate`" in pages["configuration.md"]
    for name in (*plugins.available("objectives"), *plugins.available("methods")):
        is_listed = f"\n| `{name}` | " in pages["methods.md"]
        assert is_listed == (name != "tuned"), name
    assert re.search(r"^\| `methods` \|.*docs/methods\.md", pages["configuration.md"], re.MULTILINE)
    assert "pip install 'rheostat[rlhf]'" in pages["methods.md"]


@pytest.mark.parametrize("suffix", SUFFIXES, ids=lambda suffix: suffix.form)
def test_the_grammar_on_the_page_is_the_parser_s(suffix: Suffix) -> None:
    """What the page says of each objective, held against the parser."""
    for name in plugins.available("objectives"):
        needs = plugins.needs(name)
        if suffix.applies(needs):
            assert MethodName.parse(name + suffix.example).objective == name
        elif needs.rows not in suffix.rows or (suffix.is_steered and not needs.control):
            with pytest.raises(ValueError, match=re.escape(f"got {name + suffix.example!r}")):
                MethodName.parse(name + suffix.example)


def test_the_grammar_forgets_no_suffix() -> None:
    """Every part of a parsed name but its method, and every variant, is one suffix's."""
    taken = [MethodName.parse(f"{'dpo' if 'pairs' in each.rows else 'exmate'}{each.example}") for each in SUFFIXES]
    plain = MethodName.parse("dpo")
    parts = {key for name in taken for key, value in name if value != getattr(plain, key)}
    assert parts == set(MethodName.model_fields) - {"method"}
    assert {name.variant for name in taken} - {None} == set(get_args(Variant))
