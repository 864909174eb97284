"""The fit before the start: counted once, the trainer's own plan, checkpointing by what fits, time, and what this machine taught."""

import json

import pytest
from tiny import tiny_model
from training_rows import dataset, rows

from mac_lora_helpers import training
from mac_lora_helpers.config import resolve
from mac_lora_helpers.training import calibration, memory, savings, step_memory
from mac_lora_helpers.training.dry_run import Way, attention_for, record, with_adapters
from mac_lora_helpers.training.estimate import read_model_config
from mac_lora_helpers.training.forecast import predict_memory
from mac_lora_helpers.training.tape import read_form


@pytest.fixture(scope="module")
def deep_folder(tmp_path_factory):
    """Enough layers for two and three of them to stand for all."""
    return tiny_model(tmp_path_factory.mktemp("deep") / "qwen2", num_hidden_layers=5)


@pytest.fixture
def asked(deep_folder):
    def build(**parameters):
        return resolve({"preset": "local", "model_id": str(deep_folder), "max_seq_length": 64, "device": "cpu", **parameters}, env={})

    return build


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MAC_LORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration, "_told", set())
    return tmp_path / "cache" / calibration.NAME


@pytest.mark.parametrize("way", [Way("cpu"), Way("cpu", "plain", "layers"), Way("cpu", "fast"), Way("mps", "fast", "mlp")], ids=str)
@pytest.mark.parametrize("count", [1, 4])
def test_the_form_is_the_recording_at_any_shape(asked, way, count):
    import torch

    model = step_memory.Model(read_model_config(asked()))

    def recorded(rows, tokens, rank):
        lora = model.lora(asked(lora_r=rank))
        return record(with_adapters(model.config, lora, torch.float32, attention_for(way.device)), way, rows, tokens)

    first = count, 64, 8
    form, asked_later = read_form(recorded, first, recorded(*first)), (count if count == 1 else 3, 104, 12)
    seen = recorded(*asked_later)
    assert form.at(*asked_later).same_order(seen)
    assert (form.at(*asked_later).size == seen.size).all()
    assert seen.live[-1] == 0, "all that the step took is given back"
    assert seen.live.max() > 0


@pytest.mark.parametrize("path", ["auto", "off"])
def test_two_and_three_layers_stand_for_all(asked, path, monkeypatch):
    config = asked(fast_path=path, gradient_checkpointing=False)
    short = predict_memory(config, read_model_config(config))
    monkeypatch.setattr(step_memory, "_models", {})
    monkeypatch.setattr(step_memory, "alike", lambda model: False)
    assert predict_memory(config, read_model_config(config)).parts == short.parts


def test_checkpointing_and_the_fast_path_keep_less(asked):
    from mac_lora_helpers.training.fast.plan import kept

    sizes = {}
    for path in ("off", "auto", "lean"):
        for on in (False, True):
            found = predict_memory(asked(fast_path=path, gradient_checkpointing=on), read_model_config(asked()))
            sizes[path, on] = found.parts["activations"]
            assert found.path == ("plain" if path == "off" else "fast")
    assert sizes["off", True] < sizes["lean", False] < sizes["auto", False] < sizes["off", False]
    assert sizes["auto", True] == sizes["auto", False], "with room for all of it nothing is computed again"
    config = asked(fast_path="auto", gradient_checkpointing=False)
    mine = kept(read_model_config(config), 1, 64, 4, step_memory.model_of(read_model_config(config)).lora(config))
    assert sizes["auto", False] == pytest.approx(mine.layer * mine.layers, rel=0.15), "the plan's own count of the same"


def test_a_model_that_the_fast_path_does_not_know_is_forecast_plain(tmp_path):
    folder = tiny_model(tmp_path / "neox", family="gpt_neox")
    config = resolve({"preset": "local", "model_id": str(folder), "max_seq_length": 32}, env={})
    found = predict_memory(config, read_model_config(config))
    assert (found.path, found.plan) == ("plain", None)
    assert "gpt_neox is not one of" in found.path_reason


@pytest.mark.parametrize(("share", "kind"), [(2.0, "nothing"), (0.7, "mlp"), (0.05, "layers")])
def test_the_forecast_plans_as_the_trainer_does(make, trainer_for, tokens, monkeypatch, share, kind):
    from mac_lora_helpers.training.fast.head import tile, tile_bytes
    from mac_lora_helpers.training.fast.plan import kept

    run, config = make(gradient_checkpointing=True, fast_path="auto")
    shape, longest = read_model_config(config), max(map(len, tokens["train"]["input_ids"]))
    model = step_memory.model_of(shape)
    lora = model.lora(config)
    sizes = kept(shape, 1, longest, 4, lora)
    rest = 14 * model.adapter_parameters(frozenset(lora.target_modules), lora.r, 0) + 2 * sizes.wide
    rest += tile_bytes(longest, shape.hidden_size, shape.vocab_size, 4, tile("cpu"))
    monkeypatch.setattr(memory, "available", lambda device: int((rest + share * sizes.layer * sizes.layers) / 0.9))
    trainer = trainer_for(run, config, tokens)
    assert trainer.fast.plan.kind == trainer.forecast.plan.kind == kind


@pytest.mark.parametrize(("free", "on"), [(10**10, False), (10**6, True)])
def test_checkpointing_by_what_fits(make, train, tokens, monkeypatch, capsys, free, on):
    run, config = make(max_steps=1)
    assert config.gradient_checkpointing == "auto"
    monkeypatch.setattr(memory, "available", lambda device: free)
    trainer, _ = train(run, config, tokens)
    assert trainer.args.gradient_checkpointing is trainer.args.activation_checkpointing is on
    assert run.read_json("train_config")["gradient_checkpointing"] is on
    told = capsys.readouterr().out
    assert ("gradient checkpointing on: without it" if on else "gradient checkpointing off: all of it fits") in told


def test_a_refused_fast_path_decides_on_checkpointing_again(make, train, tokens, monkeypatch, capsys):
    """Between what the fast path needs and what the plain one does: fast without checkpointing, plain with it."""
    from mac_lora_helpers.training.fast import head

    run, config = make(max_steps=1, fast_path="auto")
    shape, lengths = read_model_config(config), [len(ids) for ids in tokens["train"]["input_ids"]]
    off = config.model_copy(update={"gradient_checkpointing": False})
    slim, wide = (predict_memory(off.model_copy(update={"fast_path": path}), shape, lengths, "cpu") for path in ("auto", "off"))
    assert (slim.path, wide.path) == ("fast", "plain")
    assert slim.total_bytes < wide.total_bytes
    between = (slim.total_bytes + wide.total_bytes) / 2 - slim.parts["weights"]
    monkeypatch.setattr(memory, "available", lambda device: int(between / 0.9))
    right = head._score
    monkeypatch.setattr(head, "_score", lambda *inputs: right(*inputs) * 1.01)
    trainer, _ = train(run, config, tokens)
    assert not trainer.fast.applied
    assert trainer.args.gradient_checkpointing is trainer.args.activation_checkpointing is True
    assert trainer.forecast.path == "plain"
    assert trainer.forecast.gradient_checkpointing
    told = capsys.readouterr().out
    assert told.index("gradient checkpointing off") < told.index("fast path off") < told.index("gradient checkpointing on")


def test_the_third_question_is_arithmetic(asked, monkeypatch):
    config = asked()
    first = training.fit(config)
    training.fit(config.model_copy(update={"max_seq_length": 80}))
    monkeypatch.setattr(step_memory, "record", lambda *_: pytest.fail("recorded again"))
    for length in (8, 100, 1024):
        config.max_seq_length, config.lora_r = length, 4 + length % 5
        found = training.fit(config)
        assert found.total_bytes == sum(found.parts.values())
    assert found.total_bytes > first.total_bytes
    assert found.text.startswith("fits: ")


CHANGES = (
    {"max_seq_length": 40},
    {"lora_r": 3},
    {"lora_layers": 3},
    {"per_device_train_batch_size": 4},
    {"dtype": "bfloat16"},
    {"gradient_checkpointing": True},
    {"gradient_checkpointing": False},
    {"fast_path": "off"},
    {"fast_path": "lean"},
    {"lora_targets": "all-linear"},
    {"lora_dropout": 0.0},
)


@pytest.mark.slow
def test_what_was_counted_ahead_is_arithmetic_with_its_advice(asked, monkeypatch):
    config, counted, alone = asked(), {}, []
    for changes in CHANGES:
        monkeypatch.setattr(step_memory, "_models", {})
        alone.append(predict_memory(config.model_copy(update=changes), read_model_config(config)).parts)
    monkeypatch.setattr(step_memory, "_models", {})
    for available in (1000, 10**10):
        counted[available] = sum(1 for _ in training.count_ahead(config, available=available))
        monkeypatch.setattr(step_memory, "record", lambda *_: pytest.fail("recorded when it was asked for"))
        for changes in CHANGES:
            found = training.fit(config.model_copy(update=changes), available=available)
            assert found.fits is not bool(found.advice), changes
            assert found.fits is (available > 1000), changes
    assert counted[10**10] < counted[1000], "where all of it fits nobody asks for advice"
    for changes, parts in zip(CHANGES, alone, strict=True):
        found = predict_memory(config.model_copy(update=changes), read_model_config(config)).parts
        assert found == parts, f"{changes}: what was asked before changes the answer"


def test_what_one_change_would_ask_for_is_counted_first(asked, monkeypatch):
    monkeypatch.setattr(step_memory, "_models", {})
    config = asked()
    training.fit(config)
    ahead = training.count_ahead(config)
    for _ in range(4 + 4 * 2):  # this recipe at a second length, then four flips: two and three layers of each
        next(ahead)
    monkeypatch.setattr(step_memory, "record", lambda *_: pytest.fail("recorded when it was asked for"))
    flips = [{"per_device_train_batch_size": 2}, {"dtype": "bfloat16"}, {"lora_targets": "all-linear"}, {"lora_dropout": 0.0}]
    for changes in [*flips, {"max_seq_length": 40}, {"lora_r": 3}]:
        assert training.fit(config.model_copy(update=changes)).total_bytes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_was_asked_before_leaves_no_trace(asked, monkeypatch, dtype):
    parts = []
    for before in ([], [True]):
        monkeypatch.setattr(step_memory, "_models", {})
        for on in [*before, False]:
            config = asked(dtype=dtype, fast_path="off", gradient_checkpointing=on)
            found = predict_memory(config, read_model_config(config))
        parts.append(found.parts)
    assert parts[0] == parts[1]


def test_targets_that_the_model_does_not_have_are_left_for_when_they_are_asked_for(asked):
    from mac_lora_helpers.errors import InputError

    config = asked(lora_targets="no_such_proj")
    next(training.count_ahead(config))
    with pytest.raises(InputError, match="no_such_proj"):
        training.fit(config)


def test_a_size_that_is_no_product_of_the_shape_is_recorded_each_time():
    import numpy as np

    from mac_lora_helpers.training.tape import Tape

    def recorded(rows, tokens, rank):
        sizes = np.array([4 * rows * tokens * rank, 8 * (rows + tokens)], dtype=np.int64)
        return Tape(np.array([0, 1]), np.array([1, 1]), sizes, {"loss": 1, "backward": 2})

    asked, kind = [], step_memory._Kind(lambda *shape: (asked.append(shape), recorded(*shape))[1])
    assert read_form(recorded, (2, 64, 8), recorded(2, 64, 8)) is None
    for shape in [(2, 64, 8), (3, 40, 4), (4, 10, 2)]:
        assert kind.at(shape).kept == 4 * shape[0] * shape[1] * shape[2]
    assert asked[-2:] == [(3, 40, 4), (4, 10, 2)]


def test_what_helps_most_comes_first(asked):
    config = asked(max_seq_length=512, per_device_train_batch_size=4, fast_path="off", gradient_checkpointing=False)
    found = training.fit(config, available=1000)
    saved = [item.saves for item in found.savings]
    assert not found.fits
    assert saved == sorted(saved, reverse=True)
    assert min(saved) > 0
    assert {"gradient_checkpointing=true", "fast_path=auto", "max_seq_length=256"} <= {item.setting for item in found.savings}
    assert "train in the cloud" in found.advice[0]
    best = found.savings[0]
    enough = training.fit(config, available=best.total_bytes)
    assert enough.savings[0].fits
    assert "which fits" in str(enough.savings[0])
    assert predict_memory(config.model_copy(update=best.changes), read_model_config(config)).total_bytes == best.total_bytes


def test_shorter_rows_than_the_limit_are_turned_down_from_their_own_length(asked):
    config = asked(max_seq_length=1024)
    forecast = predict_memory(config, read_model_config(config), [96, 80])
    assert "max_seq_length=48" in [
        item.setting for item in savings.savings(config, read_model_config(config), forecast, 1, "cpu", [96, 80])
    ]


def test_metals_recommendation_bounds_what_is_free(monkeypatch):
    monkeypatch.setattr(memory, "recommended", lambda device: 5_000 if device == "mps" else None)
    assert memory.available("mps") == 5_000
    assert memory.available("cpu") > 5_000


def test_a_probe_tells_the_time_and_the_fit_knows_it_from_then_on(asked, monkeypatch):
    from mac_lora_helpers.training import fit as _  # noqa: F401  (the module, not the function)

    config = asked(max_steps=40)
    found = training.estimate(config)
    assert found["step_seconds"] > 0
    assert found["total_seconds"] == pytest.approx(40 * found["step_seconds"])
    assert "a probe of one layer" in found["time_source"]
    assert found["where"]["where"] == "local"
    assert found["machine"]["memory_bytes"] > found["machine"]["free_bytes"] > 0
    json.dumps(found)
    config.max_seq_length = 32
    shorter = training.fit(config)
    assert 0 < shorter.step_seconds < found["step_seconds"]


def test_this_machines_own_runs_correct_the_next_forecast(asked, cache):
    config = asked()
    plain = training.fit(config)
    for measured in (1.2e9, 1.3e9, 9e9):
        calibration.keep("cpu", "float32", "fast", 10**9, int(measured), 1e12, 10)
    found = training.fit(config)
    assert found.expected_bytes == int(plain.total_bytes * 1.25), "a ratio of nine is not believed"
    assert found.time_source == "earlier runs on this machine"
    assert "125% of the predicted memory" in found.calibration
    assert training.fit(config.model_copy(update={"dtype": "bfloat16"})).calibration == ""


def test_a_training_teaches_without_names(make, train, tokens, cache):
    run, config = make(max_steps=2)
    train(run, config, tokens)
    text = cache.read_text()
    (key,) = json.loads(text)
    assert key == "cpu float32 fast"
    assert json.loads(text)[key][0].keys() == {"speed"}, "a tiny model's memory is mostly allowances"
    assert "qwen" not in text
    assert str(run.root) not in text


@pytest.mark.parametrize("content", ["", "[]", '{"cpu float32 fast": 3}', '{"cpu float32 fast": [1, {"memory": "x"}]}', "{", "\x00\xff"])
def test_a_broken_calibration_is_left_alone(cache, content):
    cache.parent.mkdir()
    cache.write_text(content, encoding="latin-1")
    assert calibration.recall("cpu", "float32", "fast").memory is None
    calibration.keep("cpu", "float32", "fast", 10**9, 10**9, 1e12, 10)
    assert calibration.recall("cpu", "float32", "fast").memory == 1


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MAC_LORA_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(calibration, "_told", set())
    for _ in range(2):
        calibration.keep("cpu", "float32", "fast", 10**9, 10**9, 1e12, 10)
    assert capsys.readouterr().out.count("cannot be written") == 1


def test_the_lowest_layers_without_adapters_keep_nothing(asked):
    shape = read_model_config(asked())
    sizes = [predict_memory(asked(lora_layers=count, gradient_checkpointing=False), shape).parts for count in (2, 3, 5, 0)]
    kept = [parts["activations"] for parts in sizes]
    assert kept[0] < kept[1] < kept[2] == kept[3]
    assert sizes[0]["optimizer"] * 5 == sizes[3]["optimizer"] * 2


def test_predicted_and_measured_are_drawn(make, train, tokens):
    from mac_lora_helpers import ui

    run, config = make(max_steps=1)
    _, metrics = train(run, config, tokens)
    figure = ui.memory_figure(metrics)
    run.save_figure("memory_figure", figure)
    assert run.path("memory_figure").stat().st_size > 5000
    assert figure.alt.startswith("Peak memory of the training: predicted ")
    bars = [patch.get_width() for patch in figure.axes[0].patches]
    assert sum(bars[:-1]) == pytest.approx(metrics["predicted_memory_bytes"] / 1e6, rel=1e-6)


def test_the_rows_bound_the_batch(asked):
    made = dataset(rows(3, longest=24))
    forecast = predict_memory(asked(per_device_train_batch_size=8), read_model_config(asked()), [len(ids) for ids in made["input_ids"]])
    assert forecast.shape[0] == 3
    assert forecast.shape[1] <= 24
