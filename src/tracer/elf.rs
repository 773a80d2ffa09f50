//! Just enough of ELF (elf(5)) to find bytes of a page that belong to no segment.

use std::io;

/// PT_LOAD segments, and where the section headers end; offsets in the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Elf {
    pub segments: Vec<Segment>,
    pub section_headers_end: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub offset: u64,
    pub file_size: u64,
    pub executable: bool,
}

const PT_LOAD: u64 = 1;
const PF_X: u64 = 1;

impl Elf {
    /// None where it is not an ELF of 64 bits.
    pub fn read(read_at: impl Fn(u64, &mut [u8]) -> io::Result<()>) -> io::Result<Option<Self>> {
        let mut header = [0; 64];
        read_at(0, &mut header)?;
        if !header.starts_with(b"\x7fELF\x02") {
            return Ok(None);
        }
        // Elf64_Ehdr: e_phoff 32, e_shoff 40, e_phentsize 54, e_phnum 56, e_shentsize 58, e_shnum 60.
        let (program_headers, section_headers) = (number(&header, 32, 8), number(&header, 40, 8));
        let mut segments = Vec::new();
        for i in 0..number(&header, 56, 2) {
            let mut entry = [0; 56];
            read_at(program_headers.saturating_add(i * number(&header, 54, 2)), &mut entry)?;
            // Elf64_Phdr: p_type 0, p_flags 4, p_offset 8, p_filesz 32.
            if number(&entry, 0, 4) == PT_LOAD {
                segments.push(Segment {
                    offset: number(&entry, 8, 8),
                    file_size: number(&entry, 32, 8),
                    executable: number(&entry, 4, 4) & PF_X != 0,
                });
            }
        }
        let section_headers_end = section_headers.saturating_add(number(&header, 58, 2) * number(&header, 60, 2));
        Ok(Some(Elf {
            segments,
            section_headers_end,
        }))
    }
}

impl Segment {
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.file_size)
    }
}

fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    let mut word = [0; 8];
    word[..len].copy_from_slice(&bytes[at..at + len]);
    u64::from_ne_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn this_program_has_one_executable_segment() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let elf = Elf::read(|at, buffer| file.read_exact_at(buffer, at)).unwrap().unwrap();
        assert_eq!(elf.segments.iter().filter(|segment| segment.executable).count(), 1);
        assert!(
            elf.segments
                .iter()
                .all(|segment| segment.end() <= elf.section_headers_end)
        );
    }

    #[test]
    fn a_text_is_no_elf() {
        let read = |_at: u64, buffer: &mut [u8]| {
            buffer.fill(b'#');
            Ok(())
        };
        assert_eq!(Elf::read(read).unwrap(), None);
    }
}
