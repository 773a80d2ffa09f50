//! Why an image cannot be read, as far as a caller chooses by it.

use std::fmt;
use std::io;

/// What is wrong with an image. Its text says what that means for the user.
#[derive(Debug)]
pub enum Error {
    /// The file does not begin like an image at all.
    NotAnImage,
    /// Written by a later cryopod, and not to be understood without it.
    Newer {
        what: String,
    },
    /// It is an image, but not as it was written, or written by something hostile.
    Damaged(String),
    /// The file ends before its trailer.
    CutOff,
    Io(io::Error),
}

impl Error {
    pub(super) fn damaged(what: impl Into<String>) -> Self {
        Error::Damaged(what.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotAnImage => write!(f, "not a cryopod image"),
            Error::Newer { what } => write!(f, "the image needs a newer cryopod: {what}"),
            Error::Damaged(what) => write!(f, "the image is damaged: {what}"),
            Error::CutOff => write!(
                f,
                "the image is cut off: it ends before its trailer, so it was never completely written or copied"
            ),
            Error::Io(error) => write!(f, "read the image: {error}"),
        }
    }
}

impl std::error::Error for Error {}

/// The end of the input where more must follow means that the image was cut.
impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::CutOff,
            _ => Error::Io(error),
        }
    }
}
