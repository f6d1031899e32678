//! Contexts: append, fork, sample, complete.

use crate::handlers::{forward, kv, model, plans, queues, samplers, tickets};
use crate::Error;

/// Tokens of one plan.
const PLAN_TOKENS: usize = 256;

/// How the next token is drawn.  The draws depend on the seed and the position alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0: greedy.
    pub temperature: f32,
    /// 0: off.
    pub top_k: u32,
    /// 1: off.
    pub top_p: f32,
    /// 0: off.
    pub min_p: f32,
    pub seed: u64,
}

impl Sampling {
    pub fn greedy() -> Sampling {
        Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 }
    }
}

/// What `complete` gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    pub text: String,
    /// Without the stop token.
    pub num_tokens: usize,
    /// A stop token of the model ended it, not its length.
    pub is_stopped: bool,
}

/// A token that is being sampled.
#[must_use]
pub struct Pending(u32);

/// Text that the model continues: its tokens, of which the first `kv_len` have their KV in `pages`.
pub struct Context {
    queue: u32,
    pages: Vec<u32>,
    kv_len: usize,
    tokens: Vec<u32>,
    page_size: usize,
}

impl Context {
    /// An empty context on the engine's default model.
    pub fn new() -> Result<Context, Error> {
        let (queue, page_size) = (queues::create("")?, kv::page_size() as usize);
        Ok(Context { queue, pages: Vec::new(), kv_len: 0, tokens: Vec::new(), page_size })
    }

    pub fn append(&mut self, text: &str) -> Result<(), Error> {
        self.tokens.extend(model::tokenize("", text)?);
        Ok(())
    }

    pub fn append_tokens(&mut self, tokens: &[u32]) {
        self.tokens.extend_from_slice(tokens);
    }

    /// All tokens, the sampled ones included.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Run what waits, but for the last token: forks made afterwards share its KV.
    pub fn flush(&mut self) -> Result<(), Error> {
        let end = self.tokens.len().saturating_sub(1);
        if end > self.kv_len {
            let pass = self.pass(end)?;
            tickets::wait(&[pass], -1)?;
            tickets::take_none(pass)?;
            self.kv_len = end;
        }
        Ok(())
    }

    /// A second context with the same content; pages are shared, copy-on-write.
    pub fn fork(&self) -> Result<Context, Error> {
        let mut other = Context::new()?;
        let used = self.num_pages(self.kv_len);
        if used > 0 {
            other.pages = kv::fork(&self.pages[..used])?;
        }
        other.kv_len = self.kv_len;
        other.tokens = self.tokens.clone();
        Ok(other)
    }

    /// Begin to sample the next token: contexts that begin before the first of them ends share a batch.
    pub fn begin(&mut self, how: &Sampling) -> Result<Pending, Error> {
        self.rewind()?;
        let pass = self.pass(self.tokens.len())?;
        let row = (self.tokens.len() - self.kv_len - 1) as u32;
        forward::sample(pass, row, how.temperature, how.top_k, how.top_p, how.min_p, how.seed).map(Pending)
    }

    /// The token, which is appended.
    pub fn end(&mut self, pending: Pending) -> Result<u32, Error> {
        tickets::wait(&[pending.0], -1)?;
        let token = tickets::take_tokens(pending.0)?[0];
        self.kv_len = self.tokens.len();
        self.tokens.push(token);
        Ok(token)
    }

    /// Run what waits and sample the next token, which is appended.
    pub fn next(&mut self, how: &Sampling) -> Result<u32, Error> {
        let pending = self.begin(how)?;
        self.end(pending)
    }

    /// Continue until a stop token of the model, or for `max_tokens`; `piece` gets the text as it comes.
    pub fn complete<F>(&mut self, how: &Sampling, max_tokens: usize, mut piece: F) -> Result<Completion, Error>
    where
        F: FnMut(&str) -> Result<(), Error>,
    {
        let stops = model::stop_tokens("")?;
        let stream = model::stream_open("", true, &self.tokens[self.tokens.len().saturating_sub(16)..])?;
        let mut done = Completion { text: String::new(), num_tokens: 0, is_stopped: false };
        while done.num_tokens < max_tokens && !done.is_stopped {
            let token = self.next(how)?;
            if stops.contains(&token) {
                done.is_stopped = true;
                continue;
            }
            done.num_tokens += 1;
            let text = model::stream_push(stream, &[token])?;
            if !text.is_empty() {
                piece(&text)?;
                done.text += &text;
            }
        }
        model::stream_close(stream)?;
        Ok(done)
    }

    /// As `complete`, and the text goes to the client as it comes: the engine passes it on, and does not wake us.
    pub fn stream(&mut self, how: &Sampling, max_tokens: usize) -> Result<Completion, Error> {
        let stops = model::stop_tokens("")?;
        let stream = model::stream_open("", true, &self.tokens[self.tokens.len().saturating_sub(16)..])?;
        let chain = samplers::create(how.temperature, how.top_k, how.top_p, how.min_p, 1.0, how.seed)?;
        let mut done = Completion { text: String::new(), num_tokens: 0, is_stopped: false };
        while done.num_tokens < max_tokens && !done.is_stopped {
            let most = (max_tokens - done.num_tokens).min(PLAN_TOKENS);
            let (text, drawn) = self.plan(chain, stream, &stops, most)?;
            let is_last = drawn.last().map_or(true, |token| stops.contains(token));
            done.is_stopped = is_last || drawn.len() < most;
            done.num_tokens += drawn.len() - usize::from(is_last && !drawn.is_empty());
            done.text += &text;
        }
        samplers::free(chain)?;
        model::stream_close(stream)?;
        Ok(done)
    }

    /// One plan of `stream`: the text that went to the client, and the tokens, which are appended.
    fn plan(&mut self, chain: u32, stream: u32, stops: &[u32], most: usize) -> Result<(String, Vec<u32>), Error> {
        self.rewind()?;
        self.reserve(self.tokens.len() + most - 1)?;
        let waiting = &self.tokens[self.kv_len..];
        let plan = plans::create(self.queue, &self.pages, self.kv_len as u32, waiting, most as u32, chain)?;
        plans::set_stop(plan, stops, &[])?;
        plans::start(plan)?;
        let ticket = plans::stream_text(plan, stream)?;
        tickets::wait(&[ticket], -1)?;
        let text = tickets::take_text(ticket)?;
        let (drawn, _, _) = plans::read(plan, 0, 0, 0)?;
        self.tokens.extend_from_slice(&drawn);
        self.kv_len = self.tokens.len() - 1;
        plans::close(plan)?;
        Ok((text, drawn))
    }

    /// The last token at least waits: the next one is drawn from its row.
    fn rewind(&mut self) -> Result<(), Error> {
        if self.tokens.is_empty() {
            return Err(Error::invalid("the context is empty: append something first"));
        }
        self.kv_len = self.kv_len.min(self.tokens.len() - 1);
        Ok(())
    }

    /// Pages for the tokens `[0, end)`.
    fn reserve(&mut self, end: usize) -> Result<(), Error> {
        let needed = self.num_pages(end);
        if needed > self.pages.len() {
            self.pages.extend(kv::alloc((needed - self.pages.len()) as u32)?);
        }
        Ok(())
    }

    /// Enqueue a pass over the tokens `[kv_len, end)`; its handle.
    fn pass(&mut self, end: usize) -> Result<u32, Error> {
        self.reserve(end)?;
        let tokens = &self.tokens[self.kv_len..end];
        forward::forward(self.queue, &self.pages, self.kv_len as u32, tokens, &[], &[])
    }

    fn num_pages(&self, length: usize) -> usize {
        (length + self.page_size - 1) / self.page_size
    }
}

impl Drop for Context {
    /// Give pages and queue back; nobody is there to be told of an error.
    fn drop(&mut self) {
        let _ = kv::free(&self.pages);
        let _ = queues::close(self.queue);
    }
}
