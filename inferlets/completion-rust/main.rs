//! Complete a prompt, streaming the text as it comes; with "n", several continuations of one computed prompt.

use inferlet::json::Value;
use inferlet::{Completion, Context, Failure, Sampling};

inferlet::main!(run);

fn run(input: &Value) -> Result<Value, Failure> {
    let prompt = input["prompt"].as_str().ok_or_else(|| Failure::new("ValueError", "the input has no \"prompt\""))?;
    let max_tokens = input["max_tokens"].as_u64().unwrap_or(64) as usize;
    let mut how = Sampling {
        temperature: input["temperature"].as_f64().unwrap_or(0.0) as f32,
        top_k: input["top_k"].as_u64().unwrap_or(0) as u32,
        top_p: input["top_p"].as_f64().unwrap_or(1.0) as f32,
        min_p: input["min_p"].as_f64().unwrap_or(0.0) as f32,
        seed: input["seed"].as_u64().unwrap_or(0),
    };
    let mut root = Context::new()?;
    root.append(prompt)?;
    let n = input["n"].as_u64().unwrap_or(1);
    if n == 1 {
        return Ok(told(root.stream(&how, max_tokens)?));
    }
    root.flush()?; // the prompt is computed once; each fork draws with a seed of its own
    let mut all = Vec::new();
    for _ in 0..n {
        all.push(told(root.fork()?.complete(&how, max_tokens, |_| Ok(()))?));
        how.seed += 1;
    }
    Ok(Value::from(all))
}

fn told(done: Completion) -> Value {
    let reason = if done.is_stopped { "stop" } else { "length" };
    Value::object([
        ("text", Value::from(done.text)),
        ("num_tokens", Value::from(done.num_tokens)),
        ("finish_reason", Value::from(reason)),
    ])
}
