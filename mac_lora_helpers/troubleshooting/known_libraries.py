"""Known failures of models, data, training and export."""

from __future__ import annotations

from mac_lora_helpers.troubleshooting.failure import Failure, Sign

_MODEL, _DATA, _TRAIN, _AFTER = "Models and tokenizers", "Data", "Training", "After training"
_CONFIGS = "SFTConfig|SFTTrainer|TrainingArguments|LoraConfig|Trainer"

LIBRARIES: tuple[Failure, ...] = (
    Failure(
        "model-files",
        _MODEL,
        "The model folder lacks a file",
        "Error no file named model.safetensors · the model folder has no tokenizer.json",
        "A model folder holds config.json, *.safetensors and the tokenizer's files; one is missing. An adapter's folder is no model.",
        (
            "save both there: `model.save_pretrained(folder)` and `tokenizer.save_pretrained(folder)`",
            "for an adapter: give its base as `model_id` and the folder as `adapter_dir`",
        ),
        (
            Sign("OSError", r"no file named (model\.safetensors|pytorch_model)|does not appear to have a file named"),
            Sign("ValueError", r"Unrecognized model in .* model_type"),
            Sign("InputError", r"has no (tokenizer|config\.json|\*\.safetensors)"),
        ),
    ),
    Failure(
        "damaged-weights",
        _MODEL,
        "A weights file is damaged",
        "SafetensorError: Error while deserializing header",
        "The file was cut off while it was downloaded or copied, or it is a Git LFS pointer instead of the file.",
        ("look at its size: a few hundred bytes are a pointer; fetch it with `hf download`", "copy or download it again"),
        (Sign("SafetensorError", r"deserializing header|incomplete metadata|invalid"),),
    ),
    Failure(
        "unknown-architecture",
        _MODEL,
        "transformers does not know this model",
        "model type `…` but Transformers does not recognize this architecture",
        "The model is newer than the installed transformers, or its code comes with the model.",
        (
            "choose a model of a known family: Qwen, Llama, Mistral, Gemma, Phi",
            "or read the model's own code and then allow it: `trust_remote_code=true`",
        ),
        (
            Sign("ValueError", r"does not recognize this architecture"),
            Sign("ValueError InputError", r"trust_remote_code=True|brings its own Python code"),
        ),
    ),
    Failure(
        "vocabulary",
        _MODEL,
        "Tokenizer and model do not belong together",
        "IndexError: index out of range in self",
        "A token id is larger than the model's embedding: the tokenizer is another model's, or tokens were added to it.",
        (
            "use the tokenizer from the model's own folder",
            "if tokens were added on purpose: `model.resize_token_embeddings(len(tokenizer))`",
        ),
        (Sign("IndexError", r"^index out of range in self$"),),
    ),
    Failure(
        "no-chat-template",
        _DATA,
        "The tokenizer has no chat template",
        "ValueError: Cannot use chat template functions because tokenizer.chat_template is not set",
        "The model is a base model that was never taught to chat: nothing says how its turns are written.",
        ("use the model's instruct version", "or train on plain text: rows with a field text, `text_field=text`, `messages_field=`"),
        (
            Sign("ValueError", r"Cannot use chat template functions because tokenizer\.chat_template is not set"),
            Sign("InputError", r"has no chat template|chat template cannot be used to train"),
        ),
        see="data-formats.md",
    ),
    Failure(
        "template-refuses",
        _DATA,
        "The chat template refuses a conversation",
        "TemplateError: Conversation roles must alternate user/assistant/user/assistant/…",
        "Some templates allow no system turn, or want user and assistant in turn, and raise on anything else.",
        ("change the rows as the message says: join two turns of the same role, or put the system text into the first question",),
        (
            Sign("TemplateError"),
            Sign("InputError", r"chat template refuses|template_refuses"),
        ),
        see="data-formats.md",
    ),
    Failure(
        "padding-token",
        _DATA,
        "The tokenizer has no padding token",
        "ValueError: Asking to pad but the tokenizer does not have a padding token",
        "Rows of different length are filled up with a token that is never trained; this tokenizer names none.",
        ("`tokenizer = data.load_tokenizer(config)` chooses one that the family sets aside, and EOS only where there is none",),
        (Sign("ValueError", r"tokenizer does not have a padding token"),),
    ),
    Failure(
        "rows",
        _DATA,
        "Rows that cannot be used",
        "not JSON · missing_field · no_assistant · DatasetGenerationError",
        "A row is broken, or not of the shape that was found in the others. Training on its printed form would teach nonsense.",
        (
            "mend the lines that the message names; `mac-lora check-data FILE` lists them all and trains nothing",
            "`on_bad_rows=skip` leaves them out and keeps each reason in data/rejected.jsonl",
        ),
        (
            Sign("DataError DatasetGenerationError DatasetGenerationCastError"),
            Sign("ArrowInvalid", r"JSON parse error"),
        ),
        see="data-formats.md",
    ),
    Failure(
        "too-long",
        _DATA,
        "Many answers are longer than the limit",
        "… rows would lose part of an answer at max_seq_length=…",
        "A cut answer teaches the model to stop in the middle, so the suite does not go on when too many would be cut.",
        ("raise `max_seq_length` to what the message names", "or `on_long=drop`, or shorter rows"),
        (Sign("InputError", r"would lose part of an answer"),),
        see="memory.md",
    ),
    Failure(
        "data-changed",
        _DATA,
        "The tokens are not the ones that were shown",
        "the fingerprint is not the manifest's",
        "data/tokens was changed after notebook 02 wrote it.",
        ("run notebook 02 again in this run directory",),
        (Sign("CheckFailed", r"fingerprint"),),
    ),
    Failure(
        "lora-targets",
        _TRAIN,
        "LoRA's target modules are not in this model",
        "ValueError: Target modules {'…'} not found in the base model",
        "Families name their projections differently: q_proj, k_proj, v_proj, o_proj in Llama, Qwen and Mistral; c_attn, c_proj in GPT-2; "
        "query_key_value, dense in BLOOM.",
        (
            "`lora_targets=auto` finds the attention projections by itself; `all-linear` takes every linear layer",
            "the names in this model are in the message of `training.lora_config`, and the page shows how to list them",
        ),
        (
            Sign("ValueError", r"Target modules? .*(not found in the base model|is not supported\. Currently)"),
            Sign("ValueError", r"Please specify `target_modules`|No modules were targeted"),
            Sign("InputError", r"parameter lora_targets"),
        ),
        see="glossary.md",
    ),
    Failure(
        "renamed-arguments",
        _TRAIN,
        "A library's argument has another name today",
        "TypeError: SFTConfig.__init__() got an unexpected keyword argument 'max_seq_length'",
        "TRL and transformers rename arguments between versions: max_seq_length is max_length, tokenizer is processing_class, "
        "evaluation_strategy is eval_strategy, dataset_text_field stands in SFTConfig, gradient_checkpointing is activation_checkpointing.",
        (
            "use today's name; `help(trl.SFTConfig)` lists them",
            "in the notebooks: `training.sft_config(config, run, device, dtype)` states every setting in today's words",
            "code for an old version needs that version: the message names the argument, its changelog the version",
        ),
        (
            Sign("TypeError", rf"\b({_CONFIGS})\.__init__\(\) got an unexpected keyword argument"),
            Sign("TypeError", r"For(CausalLM|ConditionalGeneration)\.__init__\(\) got an unexpected keyword argument"),
        ),
        see="differences.md",
    ),
    Failure(
        "loss-nan",
        _TRAIN,
        "The loss is NaN or explodes",
        "stopped at step …: the loss is nan · probability tensor contains either `inf`, `nan` or element < 0",
        "A step was too large for the number format: the learning rate is too high, or float16 ran out of range.",
        (
            "keep `dtype=float32`",
            "lower `learning_rate`: 2e-4 → 1e-4 → 5e-5",
            "shorten `max_seq_length`, and look for rows that are not text",
            "on MPS compare with `-p device cpu`, which tells a bad step from a bad kernel",
        ),
        (
            Sign("TrainingStopped", r"the loss is (nan|-?inf)|the loss explodes|the gradient norm is"),
            Sign("CheckFailed", r"NaN or infinite|not finite"),
            Sign("RuntimeError", r"probability tensor contains either"),
        ),
    ),
    Failure(
        "not-learning",
        _TRAIN,
        "The loss does not fall",
        "",
        "The labels are on other tokens than the answers, the learning rate is too low, or the rows contradict each other.",
        (
            "look at the coloured tokens in notebook 02: the answers must be marked as trained",
            "train a few rows until they are known by heart (`max_steps=100` on ten rows); what cannot learn that has a fault",
            "raise `learning_rate` or `lora_r`",
        ),
        see="data-formats.md",
    ),
    Failure(
        "audit",
        _TRAIN,
        "The training did not pass its audit",
        "the training did not pass its audit: …",
        "The saved adapter was loaded again, and something is not as it must be: it changes nothing, or not what was trained.",
        ("read which line failed; the table in notebook 03 says what it means", "train again; if it stays so, on the CPU: `-p device cpu`"),
        (Sign("CheckFailed", r"did not pass its audit"),),
    ),
    Failure(
        "other-adapter",
        _AFTER,
        "The adapter belongs to another model",
        "Error(s) in loading state_dict … size mismatch · the adapter … does not fit …",
        "An adapter is a change to one base model and fits no other, not even another size of the same family.",
        (
            "set `model_id` to what stands in its adapter_config.json under base_model_name_or_path",
            "or train one for this model: notebooks 02 and 03",
        ),
        (
            Sign("RuntimeError", r"Error\(s\) in loading state_dict for Peft|size mismatch for .*lora_"),
            Sign("InputError", r"^the adapter .* does not fit|PEFT cannot put the adapter"),
        ),
    ),
    Failure(
        "never-stops",
        _AFTER,
        "The tuned model never stops, or repeats itself",
        "",
        "The token that ends an answer was not trained, as in chats rendered to plain text and in cut answers.",
        (
            "notebook 02: the end token after each answer must be marked as trained, and no answer cut",
            "notebook 04 counts the answers that ended by themselves (stop rate)",
        ),
        see="data-formats.md",
    ),
    Failure(
        "export-differs",
        _AFTER,
        "An exported file says something else",
        "the export does not say what the adapter says",
        "The usual causes: a chat template or tokenizer that did not come along, a tied head that was merged twice, quantization.",
        (
            "read the line that failed in notebook 05: it names the usual cause",
            "test with the F16 file before the quantized ones",
            "in Ollama and LM Studio: use the Modelfile or the template inside the GGUF file, not one chosen by hand",
        ),
        (Sign("CheckFailed", r"export does not say what the adapter says"),),
        see="export.md",
    ),
)
