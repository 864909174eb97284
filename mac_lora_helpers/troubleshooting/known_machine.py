"""Known failures of the machine: installation, device, memory, disk, the kernel."""

from __future__ import annotations

from mac_lora_helpers.troubleshooting.failure import Failure, Sign

_INSTALL, _DEVICE, _MEMORY, _RUN = "Installing", "Device and number format", "Memory and disk", "Jupyter, papermill, the command line"
_LIBRARIES = "torch|transformers|trl|peft|accelerate|datasets|safetensors|huggingface_hub|tokenizers"
_OURS = f"{_LIBRARIES}|numpy|pydantic|psutil|papermill|nbformat|ipykernel|ipywidgets|matplotlib|gguf|jinja2|yaml|mac_lora_helpers"

MACHINE: tuple[Failure, ...] = (
    Failure(
        "rosetta",
        _INSTALL,
        "Python runs under Rosetta, or libraries of another architecture are installed",
        "ERROR: No matching distribution found for torch · mach-o file, but is an incompatible architecture (have 'arm64', need 'x86_64')",
        "An x86_64 Python on Apple Silicon has no MPS, and torch has no wheels for Intel Macs since version 2.3; "
        "packages installed by one kind of Python do not load in the other.",
        (
            '`python -c "import platform; print(platform.machine())"` must print arm64; under Rosetta it prints x86_64',
            "install an arm64 Python (python.org, or `arch -arm64 brew install python@3.11`) in a Terminal where `arch` prints arm64",
            "make the environment anew: `rm -rf .venv && make demo`",
        ),
        (
            Sign("ImportError OSError", r"incompatible architecture|mach-o.*wrong architecture"),
            Sign("ImportError OSError", r"wrong ELF class|cannot open shared object file: .*x86_64"),
            Sign("ERROR", r"no matching distribution found for torch\b"),
        ),
        recorded="the loader's wording on macOS, read in public threads; pip's line is its own",
    ),
    Failure(
        "intel-mac",
        _INSTALL,
        "An Intel Mac",
        "",
        "Intel Macs have no MPS, and torch stopped building wheels for them after version 2.2: training there is not supported.",
        (
            "train in the cloud: notebook 05 writes the job; or use a Mac with Apple Silicon",
            "`mac-lora doctor` says what is still possible",
        ),
        see="cloud.md",
    ),
    Failure(
        "xcode",
        _INSTALL,
        "The command line tools are missing",
        "xcrun: error: invalid active developer path · make: command not found",
        "`make` and `git` come with Apple's command line tools. Training itself needs no compiler: every dependency comes prebuilt.",
        ("`xcode-select --install`, and again after a macOS upgrade that removed them",),
        recorded="xcrun's wording, read in public threads",
    ),
    Failure(
        "package-missing",
        _INSTALL,
        "A library is not installed in this Python",
        "ModuleNotFoundError: No module named 'trl'",
        "The notebook's kernel, or the terminal's `python`, is not the environment that the project was installed into.",
        (
            "open the notebooks with `make lab`, which starts that environment's JupyterLab; in a terminal: `source .venv/bin/activate`",
            "if it is the right one: `make demo` installs what is missing",
            "`mac-lora doctor` lists every package beside its tested range",
        ),
        (
            Sign("ModuleNotFoundError", rf"No module named '({_OURS})'"),
            Sign("PackageNotFoundError", rf"({_OURS})"),
        ),
    ),
    Failure(
        "sentencepiece",
        _INSTALL,
        "The tokenizer needs a library that is not installed",
        "… requires the SentencePiece library but it was not found in your environment · requires the protobuf library",
        "The model has no tokenizer.json; its older tokenizer file must be converted first, and that takes two more libraries.",
        (
            "`pip install sentencepiece protobuf`, then restart the kernel",
            "or use a model that has a tokenizer.json: all current instruct models do",
        ),
        (
            Sign(
                "ImportError ValueError", r"requires the (SentencePiece|protobuf|tiktoken) library|sentencepiece.{0,40}(install|not found)"
            ),
            Sign("ModuleNotFoundError", r"No module named '(sentencepiece|google\.protobuf|tiktoken)'"),
        ),
    ),
    Failure(
        "versions",
        _INSTALL,
        "Two libraries do not fit together",
        "ImportError: cannot import name '…' from 'transformers' · unwrap_model() got an unexpected keyword argument 'keep_torch_compile'",
        "One of the libraries is newer or older than another expects: pip changed one of them after the environment was made.",
        (
            "`mac-lora doctor` lists each package beside the range that was tested",
            "go back to the tested set: `pip install -r constraints.txt`, or make the environment anew: `rm -rf .venv && make demo`",
        ),
        (
            Sign("ImportError", rf"cannot import name '\w+' from '({_LIBRARIES})\b"),
            Sign("ImportError", r"is required for a normal functioning of this module, but found"),
            Sign("TypeError", r"got an unexpected keyword argument", rf"^({_LIBRARIES})\."),
            Sign("AttributeError", rf"module '({_LIBRARIES})[\w.]*' has no attribute"),
        ),
    ),
    Failure(
        "mps-operation",
        _DEVICE,
        "An operation that MPS does not have",
        "NotImplementedError: The operator 'aten::…' is not currently implemented for the MPS device",
        "PyTorch reaches the Mac's GPU through MPS, and not every operation is written for it yet.",
        (
            "run that operation on the CPU: `export PYTORCH_ENABLE_MPS_FALLBACK=1` before Python starts (in Jupyter: before `make lab`); "
            "slower, but it usually gets through",
            "leave the GPU out: `-p device cpu`",
            "a newer torch within the tested range may have it: `mac-lora doctor`",
        ),
        (
            Sign("NotImplementedError", r"not (currently )?(implemented|supported) for the MPS device|PYTORCH_ENABLE_MPS_FALLBACK"),
            Sign("TypeError", r"Cannot convert a MPS Tensor to float64"),
        ),
        recorded="torch's source, aten/src/ATen/mps/MPSFallback.mm, and public threads",
    ),
    Failure(
        "no-such-device",
        _DEVICE,
        "This PyTorch has no such device",
        "Could not run 'aten::empty.memory_format' with arguments from the 'MPS' backend · Torch not compiled with CUDA enabled",
        "MPS exists on Apple Silicon with an arm64 Python only, CUDA with an NVIDIA GPU and a CUDA build of torch only.",
        ("use `device=auto`, which takes what is there", "`mac-lora doctor` says why a device is not available"),
        (
            Sign("RuntimeError", r"'aten::empty[\w.]*' with arguments from the '(MPS|CUDA)' backend|not linked with support for mps"),
            Sign("AssertionError", r"Torch not compiled with CUDA enabled"),
            Sign("RuntimeError", r"No CUDA GPUs are available|Found no NVIDIA driver"),
            Sign("InputError", r"device=\w+ is not available"),
        ),
        see="hardware.md",
    ),
    Failure(
        "two-devices",
        _DEVICE,
        "Model and data are on different devices",
        "RuntimeError: Expected all tensors to be on the same device · Placeholder storage has not been allocated on MPS device!",
        "A tensor made in a cell of your own stayed on the CPU while the model is on the GPU.",
        ("move it: `inputs = inputs.to(model.device)`", "the suite's own functions do that themselves"),
        (
            Sign("RuntimeError", r"Expected all tensors to be on the same device|Placeholder storage has not been allocated on MPS"),
            Sign("RuntimeError", r"Input type \(.*\) and weight type \(.*\) should be the same"),
        ),
        recorded="torch's source, and public threads; a second device is needed to raise it",
    ),
    Failure(
        "half-precision",
        _DEVICE,
        "A number format that this device cannot compute with",
        "\"…\" not implemented for 'Half' · dtype=float16 is refused",
        "float16 lacks operations on the CPU and turns the loss into NaN on MPS; bfloat16 depends on the chip.",
        ("use `dtype=float32`", "`dtype=bfloat16` is probed on this machine before it is used; notebook 01 shows the result"),
        (
            Sign("NotImplementedError RuntimeError", r"not implemented for '(Half|BFloat16)'|Low precision dtypes not supported"),
            Sign("InputError", r"dtype=(float16 is refused|bfloat16 does not work)"),
        ),
        see="hardware.md",
    ),
    Failure(
        "out-of-memory",
        _MEMORY,
        "Memory ran out",
        "MPS backend out of memory · CUDA out of memory · DefaultCPUAllocator: can't allocate memory",
        "Model, activations and the optimizer together are larger than what this machine can give.",
        (
            "shorten `max_seq_length` (1024 → 768 → 512): activations and logits shrink with it",
            "keep `per_device_train_batch_size=1`, and `gradient_checkpointing=true` or auto",
            "take a smaller model (0.5B instead of 1.5B), and close other programs",
            "`mac-lora estimate` tells the parts beforehand; `PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0` only moves the wall: macOS then swaps",
        ),
        (
            Sign("MemoryError OutOfMemoryError"),
            Sign("RuntimeError", r"out of memory|can.?t allocate memory|cannot allocate memory|invalid buffer size|not enough memory"),
            Sign("TrainingStopped", r"memory ran out|swap grew|memory pressure|almost no free memory"),
        ),
        see="memory.md",
    ),
    Failure(
        "swapping",
        _MEMORY,
        "Training becomes slower and slower, the Mac hardly answers",
        "",
        "The run does not fit. macOS does not stop it, it moves memory to disk; a run that swaps hardly moves.",
        (
            "stop it (a checkpoint is kept) and do what stands under [memory ran out](#out-of-memory)",
            "watch Activity Monitor → Memory → Memory Pressure; green is good",
        ),
        see="memory.md",
    ),
    Failure(
        "disk-full",
        _MEMORY,
        "The disk is full",
        "OSError: [Errno 28] No space left on device",
        "Checkpoints, the merged model and the GGUF files together take several times the model's size.",
        (
            "make room; downloaded models lie in ~/.cache/huggingface (`hf cache ls` and `hf cache rm`)",
            "keep less: `save_total_limit=1`, fewer `gguf_types`",
            "run again: training goes on from the last whole checkpoint; half-written files are not left behind",
        ),
        (
            Sign("OSError", r"Errno 28\b|No space left on device|Disk quota exceeded"),
            Sign("SafetensorError RuntimeError", r"No space left on device|os error 28\b"),
            Sign("CheckFailed", r"the disk is full"),
        ),
    ),
    Failure(
        "parameters",
        _RUN,
        "A parameter that does not exist, or a value that does not fit",
        "unknown parameter 'max_step' · max_steps='ten': not a whole number · Missing parameter",
        "papermill only warns of unknown names and checks no values, so the notebooks check both and stop at their first step.",
        (
            "take the name from `mac-lora run --help`; the message names the nearest one",
            "papermill's `-p` reads numbers and true/false by itself, `-y` takes YAML; an output path with {braces} needs its parameter",
        ),
        (
            Sign("InputError", r"^unknown parameter |^\w+=.*: (not a |not true|must not|input should|a number is wanted|no such metric)"),
            Sign("PapermillParameterOverwriteWarning PapermillMissingParameterException ParameterTranslationException"),
        ),
        see="interface.md",
    ),
    Failure(
        "earlier-notebook",
        _RUN,
        "An earlier notebook has not run in this run directory",
        "data/manifest.json is missing",
        "Each notebook reads what the one before left in `out_dir`; that file is not there, or `out_dir` is another one.",
        ("run the notebook that the message names, with the same `out_dir`", "or all of them in order: `mac-lora run`"),
        (Sign("MissingArtifact"),),
    ),
    Failure(
        "other-settings",
        _RUN,
        "The run directory was made with other settings",
        "… here, but the run directory was made with … · an unfinished training with other settings lies in this run directory",
        "A later notebook was given another model, data or recipe than the earlier ones, an unfinished training was changed midway, or "
        "artefacts of two runs lie in one folder.",
        (
            "run again from the notebook that the message names: `mac-lora run --from 02`",
            "or choose a new `out_dir` for the new settings; `resume=never` starts a training over",
        ),
        (
            Sign("InputError", r"the run directory was made with|unfinished training with other settings"),
            Sign("CheckFailed", r"is not the adapter that|was trained on other data|tells of another adapter"),
        ),
    ),
    Failure(
        "in-use",
        _RUN,
        "Another process writes to the run directory",
        "the run directory is in use by …",
        "Two runs in one folder would mix their results, so the second one is refused. A dead process holds nothing.",
        ("wait until it has ended, or stop it", "or use another `out_dir`: `mac-lora run --run-dir outputs/second`"),
        (Sign("RunDirBusy"),),
    ),
    Failure(
        "not-writable",
        _RUN,
        "The run directory cannot be written",
        "… cannot be written: permission denied",
        "The folder belongs to somebody else, is read-only, or is a place where macOS asks for permission first.",
        (
            "choose an `out_dir` of your own",
            "macOS: System Settings → Privacy & Security → Files and Folders lists what the terminal may open",
        ),
        (Sign("InputError", r"cannot be (written|made): "),),
    ),
    Failure(
        "dead-kernel",
        _RUN,
        "The kernel died",
        "DeadKernelError: Kernel died",
        "The system ended the Python process, nearly always because memory ran out; a crash inside Metal looks the same.",
        (
            "do what stands under [memory ran out](#out-of-memory)",
            "if memory was free: `-p device cpu` tells whether MPS is at fault",
            "run again: a training goes on from its last checkpoint",
        ),
        (Sign("DeadKernelError", ""), Sign("RuntimeError", r"kernel died")),
        see="memory.md",
    ),
    Failure(
        "waiting",
        _RUN,
        "A headless run waits for somebody",
        "StdinNotImplementedError: raw_input was called, but this frontend does not support input requests · CellTimeoutError",
        "A cell asks a question or waits for a widget, and in a headless run nobody answers. The suite's forms never wait.",
        (
            "take `input(…)` and waiting widgets out of the cell; give the value as a parameter",
            "a library that asks (a login, remote code) must be answered beforehand: `hf auth login`, `trust_remote_code`",
        ),
        (
            Sign("StdinNotImplementedError CellTimeoutError"),
            Sign("EOFError", r"EOF when reading a line"),
        ),
    ),
    Failure(
        "port",
        _RUN,
        "The port is taken",
        "OSError: [Errno 48] Address already in use",
        "Another JupyterLab, often one that was not shut down, listens there.",
        ("`jupyter server list` and `jupyter server stop 8888`", "or another port: `.venv/bin/jupyter lab --port 8890`"),
        (Sign("OSError", r"Address already in use"),),
    ),
)
