//! Colours, on a terminal only.

use std::io::IsTerminal;

/// Whether to use colours. NO_COLOR (no-color.org) and TERM=dumb turn them off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    colours: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    Red = 31,
    Green = 32,
    Yellow = 33,
    Cyan = 36,
}

impl Style {
    pub fn of_stdout() -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let colours = std::io::stdout().is_terminal()
            && set("NO_COLOR").is_none()
            && set("TERM").is_some_and(|terminal| terminal != "dumb");
        Style { colours }
    }

    pub fn plain() -> Self {
        Style { colours: false }
    }

    pub fn paint(self, colour: Colour, text: &str) -> String {
        self.wrap(colour as u8, text)
    }

    pub fn bold(self, text: &str) -> String {
        self.wrap(1, text)
    }

    fn wrap(self, code: u8, text: &str) -> String {
        match self.colours {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }
}
