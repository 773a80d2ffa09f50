//! Families played as the kernel would.

use super::*;

const THAW: (i32, i32, i32) = (1, 100, 100);

fn member(pid: i32, ppid: i32, pgid: i32, sid: i32) -> Member {
    Member {
        pid,
        ppid,
        pgid,
        sid,
        exit_signal: libc::SIGCHLD,
    }
}

/// Plays the steps as the kernel would, and returns parent, group and session of each.
fn play(steps: &[Step]) -> HashMap<i32, (i32, i32, i32)> {
    let mut all = HashMap::from([(1, THAW)]);
    for step in steps {
        match *step {
            Step::Spawn { pid } => assert!(all.insert(pid, THAW).is_none()),
            Step::Clone { pid, by, sibling, .. } => {
                let (parent, group, session) = all[&by];
                let born = (if sibling { parent } else { by }, group, session);
                assert!(all.insert(pid, born).is_none(), "{pid} is made twice");
            }
            Step::NewSession { pid } => {
                assert!(all.values().all(|(_, group, _)| *group != pid), "{pid} leads a group");
                let parent = all[&pid].0;
                all.insert(pid, (parent, pid, pid));
            }
            Step::Group { pid, group } => {
                let (parent, _, session) = all[&pid];
                assert_ne!(session, pid, "{pid} leads its session");
                let group = group.unwrap_or(THAW.1);
                let exists = all.values().any(|other| (other.1, other.2) == (group, session));
                assert!(group == pid || exists, "{pid} cannot join {group}");
                all.insert(pid, (parent, group, session));
            }
            Step::End { pid, parent } => {
                assert_eq!(all[&pid].0, parent.unwrap_or(1));
                all.remove(&pid);
            }
        }
    }
    all
}

fn check(members: &[Member], leaderless: &[i32]) -> HashMap<i32, (i32, i32, i32)> {
    let steps = order(members, leaderless, false).unwrap_or_else(|strangers| panic!("{strangers:?}"));
    let made = play(&steps);
    let known = |id: i32| leaderless.contains(&id) || members.iter().any(|member| member.pid == id);
    for member in members {
        let (parent, group, session) = made[&member.pid];
        assert_eq!(
            parent,
            if known(member.ppid) { member.ppid } else { 1 },
            "{member:?} in {steps:?}"
        );
        assert_eq!(
            group,
            if known(member.pgid) { member.pgid } else { 100 },
            "{member:?} in {steps:?}"
        );
        assert_eq!(
            session,
            if known(member.sid) { member.sid } else { 100 },
            "{member:?} in {steps:?}"
        );
    }
    assert_eq!(made.len(), members.len() + 1, "{steps:?}");
    made
}

#[test]
fn a_shell_with_jobs_comes_back() {
    check(
        &[
            member(10, 5, 10, 10),
            member(11, 10, 11, 10),
            member(12, 10, 12, 10),
            member(13, 12, 12, 10),
        ],
        &[],
    );
    // Started from a shell that stays outside.
    check(&[member(10, 5, 5, 5), member(11, 10, 5, 5), member(12, 10, 12, 5)], &[]);
}

#[test]
fn a_child_of_an_older_session_is_made_before_its_parent_leaves_it() {
    check(
        &[member(10, 5, 10, 10), member(11, 10, 5, 5), member(12, 10, 10, 10)],
        &[],
    );
    // Through two that each began one.
    check(
        &[
            member(10, 5, 10, 10),
            member(11, 10, 11, 11),
            member(12, 11, 5, 5),
            member(13, 11, 10, 10),
        ]
        .map(|m| {
            if m.pid == 13 {
                Member { pgid: 11, sid: 11, ..m }
            } else {
                m
            }
        }),
        &[],
    );
}

#[test]
fn ids_whose_leaders_have_ended_are_given_out_again() {
    check(&[member(10, 5, 7, 7)], &[7]);
    check(&[member(10, 5, 5, 5), member(11, 10, 7, 5), member(12, 10, 7, 5)], &[7]);
    check(
        &[
            member(10, 5, 10, 10),
            member(11, 10, 7, 7),
            member(12, 10, 7, 7),
            member(13, 12, 13, 7),
        ],
        &[7],
    );
    // A group of a session that has lost its leader as well.
    check(&[member(10, 5, 8, 7), member(11, 10, 8, 7)], &[7, 8]);
}

#[test]
fn a_session_of_a_sibling_is_entered_through_it() {
    check(
        &[
            member(10, 5, 10, 10),
            member(11, 10, 11, 11),
            member(12, 10, 12, 11),
            member(13, 12, 11, 11),
        ],
        &[],
    );
}

#[test]
fn who_has_no_way_into_its_session_is_named() {
    let all = [
        member(10, 5, 10, 10),
        member(11, 10, 11, 11),
        member(12, 11, 12, 12),
        member(13, 10, 12, 12),
    ];
    assert_eq!(order(&all, &[], false), Err(vec![Stranger { pid: 13, sid: 12 }]));
}

#[test]
fn a_detached_tree_has_a_session_of_its_own() {
    let all = [member(10, 5, 5, 5), member(11, 10, 5, 5), member(12, 10, 12, 5)];
    let made = play(&order(&all, &[], true).unwrap());
    assert_eq!(
        (made[&10], made[&11], made[&12]),
        ((1, 10, 10), (10, 10, 10), (10, 12, 10))
    );
}
