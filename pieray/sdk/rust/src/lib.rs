//! The SDK of Rust inferlets.
//!
//! ```ignore
//! use inferlet::{json::Value, session, Context, Failure, Sampling};
//!
//! inferlet::main!(run);
//!
//! fn run(input: &Value) -> Result<Value, Failure> {
//!     let mut context = Context::new()?;
//!     context.append(input["prompt"].as_str().unwrap_or_default())?;
//!     let done = context.complete(&Sampling::greedy(), 64, |piece| session::send(piece))?;
//!     Ok(Value::from(done.text))
//! }
//! ```
//!
//! The modules `kv`, `forward`, `session`, ... are the handlers; `Context` is written on them.  No dependencies.

#![allow(clashing_extern_declarations)] // an import's name is one of its module's: there are several `create`

pub mod abi;
mod context;
pub mod handlers;
pub mod json;

pub use context::{Completion, Context, Pending, Sampling};
pub use handlers::*;

use std::fmt;

/// A handler's error.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    pub code: ErrorCode,
    pub message: String,
}

impl Error {
    pub fn invalid(message: &str) -> Error {
        Error { code: ErrorCode::Invalid, message: message.to_string() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.name(), self.message)
    }
}

impl std::error::Error for Error {}

/// How an inferlet reports that it failed.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    pub kind: String,
    pub message: String,
    pub trace: String,
}

impl Failure {
    pub fn new(kind: &str, message: &str) -> Failure {
        Failure { kind: kind.to_string(), message: message.to_string(), trace: String::new() }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::new(error.code.name(), &error.message)
    }
}

/// The log has the place of a panic: the trap that follows has none.
pub fn log_panic(info: &str) {
    let _ = runtime::log(LogLevel::Error, info);
}

/// Make `fn(&json::Value) -> Result<json::Value, Failure>` the inferlet's main function.  Once in its crate root.
#[macro_export]
macro_rules! main {
    ($main:path) => {
        #[export_name = "cabi_realloc"]
        pub unsafe extern "C" fn __inferlet_realloc(old: *mut u8, old_size: usize, align: usize, size: usize) -> *mut u8 {
            $crate::abi::cabi_realloc(old, old_size, align, size)
        }

        #[export_name = "run"]
        pub unsafe extern "C" fn __inferlet_run(data: *mut u8, size: usize) -> *const $crate::abi::Outcome {
            fn main(input: &str) -> Result<String, $crate::Failure> {
                let input = $crate::json::parse(input).map_err(|e| $crate::Failure::new("ValueError", &e))?;
                $main(&input).map(|value| value.to_string())
            }
            $crate::abi::run(data, size, main)
        }
    };
}
