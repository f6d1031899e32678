//! The canonical ABI by hand: how results lie in memory, and the exports of a component.

use crate::handlers::ErrorCode;
use crate::{Error, Failure};
use std::alloc::{alloc, handle_alloc_error, realloc, Layout};

/// Where the host writes a result of more than one word.
#[repr(C, align(8))]
pub struct Area([u32; 8]);

impl Area {
    pub fn new() -> Area {
        Area([0; 8])
    }

    /// A `result` whose value, or error, begins at byte `at`.
    pub unsafe fn result<T>(&self, at: usize, value: impl Fn(&Area) -> T) -> Result<T, Error> {
        if self.0[0] & 0xff == 0 {
            return Ok(value(self));
        }
        let code = (self.0[at / 4] & 0xff) as usize;
        Err(Error { code: CODES[code], message: self.string(at + 4) })
    }

    pub fn unit(&self, _at: usize) {}

    pub fn word(&self, at: usize) -> u32 {
        self.0[at / 4]
    }

    pub fn long(&self, at: usize) -> u64 {
        u64::from(self.0[at / 4]) | u64::from(self.0[at / 4 + 1]) << 32
    }

    pub fn flag(&self, at: usize) -> bool {
        self.0[at / 4] & 0xff != 0
    }

    unsafe fn list<T>(&self, at: usize) -> Vec<T> {
        owned(self.0[at / 4] as usize as *mut T, self.0[at / 4 + 1] as usize)
    }

    pub fn string(&self, at: usize) -> String {
        unsafe { String::from_utf8_unchecked(self.list(at)) } // the host gives Unicode only
    }

    pub fn numbers(&self, at: usize) -> Vec<u32> {
        unsafe { self.list(at) }
    }

    pub fn floats(&self, at: usize) -> Vec<f32> {
        unsafe { self.list(at) }
    }

    pub fn strings(&self, at: usize) -> Vec<String> {
        let pairs: Vec<[usize; 2]> = unsafe { self.list(at) };
        let text = |[data, size]: [usize; 2]| unsafe { String::from_utf8_unchecked(owned(data as *mut u8, size)) };
        pairs.into_iter().map(text).collect()
    }

    pub fn distribution(&self, at: usize) -> (Vec<u32>, Vec<f32>) {
        (self.numbers(at), self.floats(at + 8))
    }

    pub fn drawn(&self, at: usize) -> (Vec<u32>, Vec<String>, Vec<f32>) {
        (self.numbers(at), self.strings(at + 8), self.floats(at + 16))
    }
}

const CODES: [ErrorCode; ErrorCode::NAMES.len()] = {
    let mut codes = [ErrorCode::Internal; ErrorCode::NAMES.len()];
    let mut i = 0;
    while i < codes.len() {
        codes[i] = unsafe { std::mem::transmute::<u8, ErrorCode>(i as u8) };
        i += 1;
    }
    codes
};

/// What the host has written into memory of `cabi_realloc` is ours.
unsafe fn owned<T>(data: *mut T, count: usize) -> Vec<T> {
    if count == 0 {
        return Vec::new();
    }
    Vec::from_raw_parts(data, count, count)
}

/// A `list<string>` as it is passed.
pub fn pairs(texts: &[&str]) -> Vec<[usize; 2]> {
    texts.iter().map(|text| [text.as_ptr() as usize, text.len()]).collect()
}

/// Memory for what the host hands over.
pub unsafe fn cabi_realloc(old: *mut u8, old_size: usize, align: usize, size: usize) -> *mut u8 {
    if size == 0 {
        return align as *mut u8;
    }
    let layout = Layout::from_size_align_unchecked(size, align);
    let new = match old_size {
        0 => alloc(layout),
        _ => realloc(old, Layout::from_size_align_unchecked(old_size, align), size),
    };
    if new.is_null() {
        handle_alloc_error(layout);
    }
    new
}

/// `result<string, failure>` as it lies in memory.
#[repr(C)]
pub struct Outcome {
    is_err: u32,
    texts: [[usize; 2]; 3],
}

/// Call the inferlet's main function with its input; what `run` returns.
pub unsafe fn run(data: *mut u8, size: usize, main: fn(&str) -> Result<String, Failure>) -> *const Outcome {
    std::panic::set_hook(Box::new(|info| crate::log_panic(&info.to_string())));
    let input = String::from_utf8_unchecked(owned(data, size));
    let (is_err, texts) = match main(&input) {
        Ok(value) => (0, [value, String::new(), String::new()]),
        Err(Failure { kind, message, trace }) => (1, [kind, message, trace]),
    };
    let leaked = texts.map(|text| {
        let bytes = text.into_bytes().into_boxed_slice();
        let size = bytes.len();
        [Box::into_raw(bytes) as *mut u8 as usize, size]
    });
    Box::into_raw(Box::new(Outcome { is_err, texts: leaked })) // the instance ends here: nobody has to free it
}
