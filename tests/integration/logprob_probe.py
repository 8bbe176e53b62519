# SPDX-License-Identifier: Apache-2.0
"""Prints, as JSON, log-probabilities of some prompts from whatever SGLang is first on the path. Run by a test."""

import json
import sys


def main() -> None:
    import sglang

    job = json.loads(sys.stdin.read())
    engine = sglang.Engine(
        model_path=job["model"],
        device="cpu",
        attention_backend="torch_native",
        dtype="float32",
        max_total_tokens=12000,
        chunked_prefill_size=512,
        skip_server_warmup=True,
        log_level="error",
    )
    results = [
        engine.generate(
            input_ids=prompt,
            sampling_params={"temperature": 0.0, "max_new_tokens": 4, "ignore_eos": True},
            return_logprob=True,
            logprob_start_len=0,
        )["meta_info"]
        for prompt in job["prompts"]
    ]
    engine.shutdown()
    found = [[r["input_token_logprobs"][1:], r["output_token_logprobs"]] for r in results]
    print(json.dumps({"file": sglang.__file__, "logprobs": found}))


if __name__ == "__main__":
    main()
