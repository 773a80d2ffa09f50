//! Mappings → vmas of the image.

use super::{FileTable, refusals};
use crate::collect::{Area, Facts, Mapping, Member, Object, Populated, given_name};
use crate::image::ranges::Range;
use crate::image::state::{Backing, Vma};
use crate::refusal::Refusal;

#[derive(Debug, Default)]
pub struct Described {
    pub vmas: Vec<Vma>,
    /// By mapping: its own pages.
    pub runs: Vec<Vec<Range>>,
}

/// The memory of the process `index`.
pub fn describe(index: u32, facts: &Facts, files: &mut FileTable, refusals: &mut Vec<Refusal>) -> Described {
    let member = &facts.members[index as usize];
    let mut described = Described::default();
    for mapping in &member.mappings {
        match backing(mapping, files) {
            Ok(backing) => described.push(mapping, backing),
            Err((reason, remedy)) => refusals.push(Refusal::new(member.pid, mapping.area.label(), reason, remedy)),
        }
    }
    refusals.extend(kernel_areas(member, &facts.kernel_areas));
    described
}

impl Described {
    /// What of its pages are stored is said by [`contents`](super::contents).
    fn push(&mut self, mapping: &Mapping, backing: Backing) {
        let Mapping { area, populated, .. } = mapping;
        let (runs, inherited) = match keeps_content(mapping) {
            true => (populated.runs.clone(), mapping.inherited.clone()),
            false => (Vec::new(), Vec::new()),
        };
        self.vmas.push(Vma {
            start: area.start,
            end: area.end,
            prot: area.prot,
            shared: area.shared,
            flags: area.flags.clone(),
            name: given_name(area),
            guards: populated.guards.clone(),
            huge: huge_pages(&backing, populated),
            backing,
            policy: mapping.policy.clone(),
            inherited,
            resident: 0,
        });
        self.runs.push(runs);
    }
}

/// Of anonymous memory: a thaw leaves those of files to the kernel.
pub fn huge_pages(backing: &Backing, populated: &Populated) -> Vec<(u64, u64)> {
    match backing {
        Backing::Anonymous => populated.huge.clone(),
        _ => Vec::new(),
    }
}

/// Not the kernel's own, which a thaw maps anew; and not droppable memory (MAP_DROPPABLE, Linux 6.11), which the program expects to
/// find empty at any time: it holds the state of the C library's random numbers, which must not come out twice.
fn keeps_content(mapping: &Mapping) -> bool {
    mapping.object != Object::Kernel && !mapping.area.flags.has(b"dp")
}

fn backing(mapping: &Mapping, files: &mut FileTable) -> Result<Backing, (String, String)> {
    let Mapping {
        area,
        object,
        populated,
        ..
    } = mapping;
    if *object == Object::Kernel {
        return Ok(Backing::Kernel(String::from_utf8_lossy(&area.name).into_owned()));
    }
    refusals::unfit_area(area, populated)?;
    match object {
        Object::Anonymous => Ok(Backing::Anonymous),
        Object::File(found) => {
            let file = refusals::unfit_file(found)?;
            Ok(Backing::File {
                file: files.index(file),
                offset: area.offset,
            })
        }
        Object::Shared(Ok(object)) => Ok(Backing::Shared {
            object: *object,
            offset: area.offset,
        }),
        Object::Shared(Err(reason)) => Err((reason.clone(), String::new())),
        Object::Other | Object::Kernel => Err((
            "is memory of the kernel or of a driver, which cryopod does not carry".into(),
            refusals::CLOSE.into(),
        )),
    }
}

/// The mappings of the kernel must be there as the kernel makes them, since a thaw can only ask for the whole set.
fn kernel_areas(member: &Member, kernels: &[Area]) -> Option<Refusal> {
    let theirs: Vec<&Area> = member
        .mappings
        .iter()
        .filter(|mapping| mapping.object == Object::Kernel)
        .map(|mapping| &mapping.area)
        .collect();
    let ours: Vec<&Area> = kernels.iter().collect();
    if shape(&theirs) == shape(&ours) {
        return None;
    }
    Some(Refusal::new(
        member.pid,
        "[vdso]",
        "is not mapped as the kernel maps it: the program has moved or unmapped parts of it",
        "",
    ))
}

/// Names with places relative to the first.
fn shape<'a>(areas: &[&'a Area]) -> Vec<(&'a [u8], u64, u64)> {
    let base = areas.first().map_or(0, |area| area.start);
    areas
        .iter()
        .map(|area| (area.name.as_slice(), area.start - base, area.len()))
        .collect()
}

/// What cannot be told from [`Populated`] alone is a mapping whose pages we could not read.
pub fn is_unreadable(area: &Area, populated: &Populated) -> bool {
    !area.flags.has(b"mr") && !area.shared && !populated.runs.is_empty()
}
