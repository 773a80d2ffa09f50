//! What a function of `[vdso]` does, for where the kernel's own is not to be had.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// As this system call.
    Call(i64),
    /// As getrandom(2), from a state of the caller's whose layout is the kernel build's.
    Random,
    /// It uses nothing of the kernel's own, and stays as it is.
    Itself,
}
