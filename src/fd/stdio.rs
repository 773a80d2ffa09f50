//! Terminals, and pipes to other processes: at thaw they become thaw's own stdin, stdout and stderr, or what it is given for them.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::ends::Ends;
use super::kind::{AnyKind, Kind, Probe, Unfit};
use super::look::Look;
use super::pipe::{check_size, refuse_mixture};
use super::pipe_content::Content;
use super::probe::Seen;
use super::standard::{self, Pump, Stdio};
use super::terminal::TerminalSettings;
use super::thaw::{Check, ReopenContext, set_status_flags};
use crate::image::state::{Description, Snapshot};

/// A description that leads outside.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outside {
    pub becomes: Becomes,
    /// Of a pipe: its inode at the freeze, equal in all descriptions of one pipe.
    pub pipe: Option<(u64, u64)>,
    /// In the first description of a pipe that the program reads, where bytes wait in it.
    pub unread: Option<Content>,
    /// Of a terminal that has another side.
    pub settings: Option<TerminalSettings>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Becomes {
    /// Thaw's descriptor of this number: 0, 1 or 2.
    Number(u8),
    /// The first of thaw's that is a terminal.
    Terminal,
    /// What thaw is given for it.
    Given,
}

impl Kind for Outside {
    fn claims(seen: &Seen, look: &Look<'_>) -> bool {
        look.ends.lead_outside(seen)
    }

    fn describe(probe: &Probe<'_>, look: &mut Look<'_>) -> Result<Self, Unfit> {
        let seen = probe.seen;
        let becomes = look.stdio.becomes(seen).unwrap_or(Becomes::Given);
        if becomes == Becomes::Given {
            let option = standard::inherit_fd(&seen.link_text());
            look.warn(
                seen,
                &format!("leads to a process that is not frozen with it: thaw needs {option}"),
            );
        }
        if seen.tty.is_some() {
            return Ok(Outside {
                becomes,
                pipe: None,
                unread: None,
                settings: TerminalSettings::of(&probe.file)?,
            });
        }
        let mut unread = None;
        if seen.readable() && look.told.insert(seen.inode()) {
            unread = Some(Content::of(probe.file.as_fd())?).filter(|content| content.len_bytes() > 0);
            let end = probe
                .file
                .as_fd()
                .try_clone_to_owned()
                .context("duplicate a descriptor")?;
            let recorded_bytes = unread.as_ref().map_or(0, Content::len_bytes);
            let name = format!("fd {} ({})", seen.fd, seen.link_text());
            look.inputs.push(end, recorded_bytes, name);
            unread.as_ref().map_or(Ok(()), refuse_mixture)?;
        }
        Ok(Outside {
            becomes,
            pipe: Some(seen.inode()),
            unread,
            settings: None,
        })
    }

    fn check(&self, description: &Description, check: &mut Check<'_>) {
        if let Some(content) = &self.unread {
            check_size(content, description, check);
        }
        if self.is_new_terminal(check.stdio, description) {
            return;
        }
        if self.becomes == Becomes::Given && !check.stdio.is_given(&description.label) {
            let remedy = format!("name what it becomes: {}", standard::inherit_fd(&description.label));
            check.refuse(description, "led to a process that was not frozen with it", remedy);
            return;
        }
        let source = check.stdio.source(self.becomes, description).and_then(|source| {
            let fits = !check.watched || self.becomes != Becomes::Terminal || standard::pollable(source)?;
            ensure!(
                fits,
                "an epoll set watches it, and none of stdin, stdout and stderr is a terminal"
            );
            Ok(())
        });
        if let Err(error) = source {
            let reason = format!("has nothing to become: {error:#}");
            let remedy = match check.stdio.is_given(&description.label) {
                true => "give it another descriptor",
                false => "run thaw on a terminal",
            };
            check.refuse(description, reason, remedy);
        }
    }

    fn reopen(&self, description: &Description, context: &mut ReopenContext) -> Result<OwnedFd> {
        let flags = description.status_flags;
        if self.is_new_terminal(&context.stdio, description)
            && let Some(terminal) = &context.stdio.terminal
        {
            return standard::open_terminal(terminal.as_fd(), flags);
        }
        let source = context.stdio.source(self.becomes, description)?;
        if let (Some(inode), Some(content)) = (self.pipe, &self.unread) {
            let (pipe, pump) = Pump::into_program(source, content)?;
            context.pumps.push(pump);
            context.pipes.insert(inode, pipe);
        }
        if let Some(pipe) = self.pipe.and_then(|inode| context.pipes.get_mut(&inode)) {
            let end = pipe.description(flags)?;
            set_status_flags(end.as_fd(), flags)?;
            return Ok(end);
        }
        if context.watched && !standard::pollable(source)? {
            let (end, pump) = Pump::beside(source, self.becomes, flags)?;
            context.pumps.push(pump);
            return Ok(end);
        }
        standard::adopt(source, flags)
    }
}

impl Outside {
    /// Whether it becomes the terminal that all terminals become.
    fn is_new_terminal(&self, stdio: &Stdio, description: &Description) -> bool {
        self.pipe.is_none() && stdio.terminal.is_some() && !stdio.is_given(&description.label)
    }
}

/// The settings of the terminal that the program had, the first if it had several.
pub fn terminal_settings(snapshot: &Snapshot) -> Option<TerminalSettings> {
    snapshot
        .descriptions
        .iter()
        .find_map(|description| match AnyKind::decode(description) {
            Ok(AnyKind::Outside(outside)) => outside.settings,
            _ => None,
        })
}

/// Which of thaw's three each description that leads outside becomes, decided over the whole table.
#[derive(Debug, Default)]
pub struct Plan {
    pipes: HashMap<(u64, u64), u8>,
}

impl Plan {
    /// Pipes on 0, 1 and 2 become these. Others get what is left, by their direction and in the order of their numbers.
    pub fn new(all: &[Seen], ends: &Ends) -> Self {
        let outside: Vec<&Seen> = all.iter().filter(|seen| ends.lead_outside(seen)).collect();
        let taken = |plan: &Plan, number: u8| {
            plan.pipes.values().any(|&taken| taken == number) || outside.iter().any(|seen| seen.fd == i32::from(number))
        };
        let mut plan = Plan::default();
        for seen in outside.iter().filter(|seen| seen.tty.is_none()) {
            let number = match seen.fd {
                0..=2 => u8::try_from(seen.fd).ok(),
                _ if seen.readable() => Some(0).filter(|&number| !taken(&plan, number)),
                _ => [1, 2].into_iter().find(|&number| !taken(&plan, number)),
            };
            if let Some(number) = number {
                plan.pipes.entry(seen.inode()).or_insert(number);
            }
        }
        plan
    }

    /// Each of 0, 1 and 2 becomes thaw's own of that number, which may be different things there, so each is recorded as a
    /// description of its own. Where thaw's share a description, the program's will, too.
    pub fn split(&self, all: &[Seen], ends: &Ends, group: Vec<usize>) -> Vec<Vec<usize>> {
        let seen = &all[group[0]];
        let becomes_ours = match seen.tty {
            Some(_) => ends.lead_outside(seen),
            None => self.pipes.contains_key(&seen.inode()),
        };
        if !becomes_ours {
            return vec![group];
        }
        let of_number =
            |number: i32| -> Vec<usize> { group.iter().copied().filter(|&index| all[index].fd == number).collect() };
        let mut parts: Vec<Vec<usize>> = (0..=2).map(of_number).filter(|part| !part.is_empty()).collect();
        let others: Vec<usize> = group.iter().copied().filter(|&index| all[index].fd > 2).collect();
        if seen.tty.is_some() || parts.is_empty() {
            parts.extend((!others.is_empty()).then_some(others));
        } else {
            parts[0].extend(others);
        }
        parts
    }

    fn becomes(&self, seen: &Seen) -> Option<Becomes> {
        match u8::try_from(seen.fd) {
            Ok(number @ 0..=2) => Some(Becomes::Number(number)),
            _ if seen.tty.is_some() => Some(Becomes::Terminal),
            _ => self.pipes.get(&seen.inode()).map(|&number| Becomes::Number(number)),
        }
    }
}
