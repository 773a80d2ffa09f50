//! In which order the processes of an image can be made, so that each has its parent, session and process group again. Pure.
//!
//! A session can be entered only by being born into it, so a child of an older session must be made before its parent makes its own, and
//! one whose session was begun by a sibling must be made by that sibling (CLONE_PARENT). An id whose owner is gone is given out by a
//! process that lives for so long only ([`Snapshot::leaderless`]).

use std::collections::{HashMap, HashSet};

use super::state::Snapshot;

/// A process as its relatives see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    pub pid: i32,
    pub ppid: i32,
    pub pgid: i32,
    pub sid: i32,
    /// What its parent gets when it ends (clone(2)).
    pub exit_signal: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Thaw itself makes it, in its own session.
    Spawn { pid: i32 },
    /// `by` makes it as its child or, with `sibling`, as a child of its own parent.
    Clone {
        pid: i32,
        by: i32,
        sibling: bool,
        exit_signal: i32,
    },
    /// setsid(2).
    NewSession { pid: i32 },
    /// setpgid(2), of a process for itself. Without a group it joins thaw's.
    Group { pid: i32, group: Option<i32> },
    /// One that was there for its id only is ended; `parent` waits for it, or thaw.
    End { pid: i32, parent: Option<i32> },
}

/// A process that cannot be brought back among its relatives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stranger {
    pub pid: i32,
    pub sid: i32,
}

pub fn members(snapshot: &Snapshot) -> Vec<Member> {
    let live = snapshot.processes.iter().map(|process| Member {
        pid: process.pid,
        ppid: process.ppid,
        pgid: process.pgid,
        sid: process.sid,
        exit_signal: process.exit_signal,
    });
    let ended = snapshot.zombies.iter().map(|zombie| Member {
        pid: zombie.pid,
        ppid: zombie.ppid,
        pgid: zombie.pgid,
        sid: zombie.sid,
        exit_signal: zombie.exit_signal,
    });
    live.chain(ended).collect()
}

/// `new_session`: those whose session was begun outside get one of their own, led by the first process, instead of thaw's.
pub fn order(members: &[Member], leaderless: &[i32], new_session: bool) -> Result<Vec<Step>, Vec<Stranger>> {
    let mut family = Family::new(members, leaderless, new_session);
    family.find_births();
    let tops = family.children_of(None);
    family.make_children(None, &tops);
    family.groups();
    match family.strangers.is_empty() {
        true => Ok(family.steps),
        false => Err(family.strangers),
    }
}

/// The session into which a process is born.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Birth {
    /// It begins one of its own, and has no children that it made before.
    Any,
    /// None: thaw's.
    In(Option<i32>),
}

struct Family {
    members: Vec<Member>,
    /// Those that are there for their ids only.
    ghosts: HashSet<i32>,
    births: HashMap<i32, Birth>,
    steps: Vec<Step>,
    strangers: Vec<Stranger>,
}

impl Family {
    /// Ids of sessions and groups from outside become 0.
    fn new(all: &[Member], leaderless: &[i32], new_session: bool) -> Self {
        let mut members = all.to_vec();
        let known: HashSet<i32> = all
            .iter()
            .map(|member| member.pid)
            .chain(leaderless.iter().copied())
            .collect();
        for member in &mut members {
            member.sid = if known.contains(&member.sid) { member.sid } else { 0 };
            member.pgid = if known.contains(&member.pgid) { member.pgid } else { 0 };
        }
        if new_session
            && let Some(&Member {
                pid: leader, sid: 0, ..
            }) = members.first()
        {
            for member in members.iter_mut().filter(|member| member.sid == 0) {
                member.sid = leader;
                member.pgid = if member.pgid == 0 || member.pid == leader {
                    leader
                } else {
                    member.pgid
                };
            }
        }
        let mut family = Family {
            members,
            ghosts: HashSet::new(),
            births: HashMap::new(),
            steps: Vec::new(),
            strangers: Vec::new(),
        };
        for &id in leaderless {
            family.add_ghost(id);
        }
        family
    }

    /// The leader of a session is a sibling of those who were born into it from outside, that of a group a child of a member of it.
    fn add_ghost(&mut self, id: i32) {
        let of_session =
            |member: &&Member| member.sid == id && self.parent(member).is_none_or(|parent| parent.sid != id);
        let (ppid, sid, exit_signal) = match self.members.iter().find(of_session) {
            Some(member) => (member.ppid, id, member.exit_signal),
            None => match self.members.iter().find(|member| member.pgid == id) {
                Some(member) => (member.pid, member.sid, 0),
                None => return, // nobody is in it
            },
        };
        self.ghosts.insert(id);
        self.members.push(Member {
            pid: id,
            ppid,
            pgid: id,
            sid,
            exit_signal,
        });
    }

    fn find(&self, pid: i32) -> Option<&Member> {
        self.members.iter().find(|member| member.pid == pid)
    }

    fn parent(&self, member: &Member) -> Option<&Member> {
        self.find(member.ppid).filter(|parent| parent.pid != member.pid)
    }

    fn children_of(&self, parent: Option<i32>) -> Vec<Member> {
        let is_child = |member: &&Member| self.parent(member).map(|parent| parent.pid) == parent;
        self.members.iter().filter(is_child).copied().collect()
    }

    /// Whether the session of a process is begun by one of its siblings, who then makes it.
    fn made_by_sibling(&self, member: &Member) -> bool {
        let leader = self.find(member.sid);
        leader.is_some_and(|leader| {
            leader.pid != member.pid && leader.ppid == member.ppid && leader.exit_signal == member.exit_signal
        })
    }

    /// From the leaves up: who begins a session was born into that of the children that it had before.
    fn find_births(&mut self) {
        let mut order = Vec::new();
        let mut waiting = self.children_of(None);
        while let Some(member) = waiting.pop() {
            waiting.extend(self.children_of(Some(member.pid)));
            order.push(member);
        }
        for member in order.into_iter().rev() {
            let birth = match member.sid == member.pid {
                false => Birth::In(Some(member.sid).filter(|&sid| sid != 0)),
                true => self.birth_of_leader(&member),
            };
            self.births.insert(member.pid, birth);
        }
    }

    fn birth_of_leader(&self, leader: &Member) -> Birth {
        let children = self.children_of(Some(leader.pid));
        let older = children.iter().find_map(|child| match self.births.get(&child.pid) {
            Some(&Birth::In(session)) if !self.made_by_sibling(child) && self.is_older(session, leader) => {
                Some(session)
            }
            _ => None,
        });
        older.map_or(Birth::Any, Birth::In)
    }

    /// Begun by an ancestor of it, or outside.
    fn is_older(&self, session: Option<i32>, member: &Member) -> bool {
        let Some(session) = session else { return true };
        let ancestors = std::iter::successors(self.parent(member), |ancestor| self.parent(ancestor));
        ancestors
            .take(self.members.len())
            .any(|ancestor| ancestor.pid == session)
    }

    /// `children` of a process that sits in the session into which it was born; of thaw, without one.
    fn make_children(&mut self, parent: Option<i32>, children: &[Member]) {
        let own = parent.and_then(|pid| self.find(pid).copied());
        let leads = own.is_some_and(|own| own.sid == own.pid);
        let born_in = match own.map(|own| self.births[&own.pid]) {
            None => Some(None),
            Some(Birth::In(session)) => Some(session),
            Some(Birth::Any) => None,
        };
        let later = |child: &Member, births: &HashMap<i32, Birth>| {
            leads && [Birth::Any, Birth::In(parent)].contains(&births[&child.pid])
        };
        let (by_sibling, by_parent): (Vec<Member>, Vec<Member>) =
            children.iter().copied().partition(|child| self.made_by_sibling(child));
        let (after, before): (Vec<Member>, Vec<Member>) =
            by_parent.into_iter().partition(|child| later(child, &self.births));
        for child in before {
            match self.births[&child.pid] {
                Birth::In(session) if Some(session) != born_in => self.strangers.push(Stranger {
                    pid: child.pid,
                    sid: child.sid,
                }),
                _ => self.make(&child, parent),
            }
        }
        if leads && let Some(pid) = parent {
            self.steps.push(Step::NewSession { pid });
        }
        for child in after {
            self.make(&child, parent);
        }
        let made = children.iter().filter(|child| !self.made_by_sibling(child));
        for child in made.copied().collect::<Vec<_>>() {
            let grandchildren = self.children_of(Some(child.pid));
            self.make_children(Some(child.pid), &grandchildren);
        }
        // By now whoever leads their sessions does.
        for child in by_sibling {
            self.steps.push(Step::Clone {
                pid: child.pid,
                by: child.sid,
                sibling: true,
                exit_signal: child.exit_signal,
            });
            let grandchildren = self.children_of(Some(child.pid));
            self.make_children(Some(child.pid), &grandchildren);
        }
    }

    fn make(&mut self, child: &Member, parent: Option<i32>) {
        self.steps.push(match parent {
            None => Step::Spawn { pid: child.pid },
            Some(by) => Step::Clone {
                pid: child.pid,
                by,
                sibling: false,
                exit_signal: child.exit_signal,
            },
        });
    }

    /// Leaders first. Who begins a session leads a group already, and who is born has its parent's.
    fn groups(&mut self) {
        let (leaders, others): (Vec<Member>, Vec<Member>) =
            self.members.iter().partition(|member| member.pgid == member.pid);
        for Member { pid, .. } in leaders.into_iter().filter(|member| member.sid != member.pid) {
            self.steps.push(Step::Group { pid, group: Some(pid) });
        }
        for Member { pid, pgid, .. } in others {
            let group = Some(pgid).filter(|&pgid| pgid != 0);
            self.steps.push(Step::Group { pid, group });
        }
        for ghost in self.members.iter().filter(|member| self.ghosts.contains(&member.pid)) {
            self.steps.push(Step::End {
                pid: ghost.pid,
                parent: self.parent(ghost).map(|parent| parent.pid),
            });
        }
    }
}

#[cfg(test)]
mod tests;
