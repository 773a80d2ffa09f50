//! Reads an image in one pass: one reader, the caller, checks what is where, and workers check, decompress and hand out the pages.

use super::codec;
use super::coverage::{Coverage, Order};
use super::header::Header;
use super::index::{Entry, Expected, Trailer};
use super::input::{Input, Record, check_body};
use super::pages::{FrameHead, PageRun};
use super::place::{Body, Frame, Placing};
use super::record::{MAY_SKIP, agree, kind};
use super::state::Snapshot;
use super::validate;
use super::write::job_count;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::fs::File;
use std::io::{Read, Seek};

pub use super::Error;

/// What a whole image holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    pub records: u64,
    pub frames: u64,
    pub file_bytes: u64,
    /// Memory in the image, before compression.
    pub stored_bytes: u64,
    /// What that takes in the file.
    pub compressed_bytes: u64,
    /// What the state takes in the file.
    pub state_bytes: u64,
}

/// Takes the head of each frame of pages, and how many bytes its content takes in the file.
pub type Visit<'a> = dyn FnMut(&FrameHead, u64) + 'a;

/// Takes runs of pages, from several threads at once.
pub type Sink<'a> = &'a (dyn Fn(PageRun<'_>) -> anyhow::Result<()> + Sync);

/// An image whose header was checked.
pub struct Reader<R> {
    input: Input<R>,
    header: Header,
    /// Once the state was read.
    state: Option<(Snapshot, Coverage)>,
    expected: Expected,
    totals: Totals,
    order: Order,
    /// A frame whose body is the next in the input.
    next: Option<(Record, FrameHead)>,
    is_over: bool,
    body: TakeBody<R>,
    /// The image, where bodies are left in it.
    file: Option<File>,
}

/// Reads the body of a record to a buffer, or passes it and says where it is.
type TakeBody<R> = fn(&mut Input<R>, &Record, &mut Vec<u8>) -> Result<Option<u64>, Error>;

/// Pages that may be placed in any order ([`Space`](super::pages::Space)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Those of this process that children of it have from it.
    Inherited(u32),
    All,
}

fn group_of(head: &FrameHead) -> Group {
    let first = head.runs.first().and_then(|run| run.space.heirs_of());
    first.map_or(Group::All, Group::Inherited)
}

impl<R: Read> Reader<R> {
    pub fn open(from: R) -> Result<Self, Error> {
        let (input, header) = Input::open(from)?;
        Ok(Reader {
            input,
            header,
            state: None,
            expected: Expected::new(),
            totals: Totals::default(),
            order: Order::default(),
            next: None,
            is_over: false,
            body: |input, record, buffer| input.body_into(record, buffer).map(|()| None),
            file: None,
        })
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The state, validated: every index is in range, every order and bound kept.
    pub fn snapshot(&mut self) -> Result<Snapshot, Error> {
        self.read_state()?;
        let (snapshot, _) = self.state.as_ref().expect("it was just read");
        Ok(snapshot.clone())
    }

    /// Hands every run of pages to `sink`, from `jobs` threads at once (0: as many as there are CPUs), and returns once all were taken
    /// and the end of the image proved it whole.
    pub fn pages(mut self, jobs: usize, sink: Sink<'_>) -> anyhow::Result<Totals> {
        while self.next_group()?.is_some() {
            self.place(jobs, sink)?;
        }
        Ok(self.totals)
    }

    /// The group of pages that comes next: what the children of a process inherit, or everything else, which is the last. None once all
    /// were taken and the end of the image proved it whole.
    pub fn next_group(&mut self) -> Result<Option<Group>, Error> {
        self.read_state()?;
        if self.next.is_none() && !self.is_over {
            self.next = self.next_frame()?;
            self.is_over = self.next.is_none();
        }
        Ok(self.next.as_ref().map(|(_, head)| group_of(head)))
    }

    /// Hands the runs of the next group to `sink`, and returns once all were taken.
    pub fn place(&mut self, jobs: usize, sink: Sink<'_>) -> anyhow::Result<()> {
        let jobs = job_count(jobs);
        let (frames, work) = bounded::<Frame>(jobs);
        let (spent, spares) = bounded(2 * jobs);
        let (failed, failures) = bounded(jobs);
        let file = self.file.take();
        let placing = Placing {
            sink,
            file: file.as_ref(),
            spent,
            failed,
        };
        let read = std::thread::scope(|scope| {
            for _ in 0..jobs {
                let (work, placing) = (work.clone(), &placing);
                scope.spawn(move || placing.run(&work));
            }
            // Only workers hold the receiving end now, so that sending fails once all of them have.
            drop(work);
            self.send_frames(frames, &failures, &spares)
        });
        self.file = file;
        match failures.try_recv() {
            Ok(failure) => Err(failure),
            Err(_) => Ok(read?),
        }
    }

    /// Lists the runs of pages without looking at their content, and reads what it must to get past it.
    pub fn list(self, visit: &mut Visit<'_>) -> Result<Totals, Error> {
        self.list_with(visit, |input, record| input.pass_body(record))
    }

    fn list_with(
        mut self,
        visit: &mut Visit<'_>,
        pass: impl Fn(&mut Input<R>, &Record) -> Result<(), Error>,
    ) -> Result<Totals, Error> {
        self.read_state()?;
        while let Some((record, head)) = self.next_frame()? {
            visit(&head, record.header.body_len);
            pass(&mut self.input, &record)?;
        }
        Ok(self.totals)
    }

    /// Reads the state unless that was done.
    fn read_state(&mut self) -> Result<(), Error> {
        if self.state.is_some() {
            return Ok(());
        }
        let record = self.next_record()?;
        if record.header.kind != kind::STATE {
            return Err(Error::damaged("it does not begin with the state"));
        }
        if record.header.body_len > codec::STATE_MAX {
            return Err(Error::damaged(format!(
                "its state claims {} bytes",
                record.header.body_len
            )));
        }
        let mut body = Vec::new();
        self.input.body_into(&record, &mut body)?;
        check_body(&record, &body)?;
        let snapshot = codec::decode_state(&record.head, &body)?;
        validate::validate(&snapshot, &self.header).map_err(Error::Damaged)?;
        let coverage = Coverage::new(&snapshot, self.header.page_size);
        self.totals.state_bytes = record.header.body_len;
        self.state = Some((snapshot, coverage));
        Ok(())
    }

    /// The reading half of [`Reader::place`].
    fn send_frames(
        &mut self,
        frames: Sender<Frame>,
        failures: &Receiver<anyhow::Error>,
        spares: &Receiver<Vec<u8>>,
    ) -> Result<(), Error> {
        let mut group = None;
        while let Some(of_next) = self.next_group()? {
            if *group.get_or_insert(of_next) != of_next {
                break;
            }
            let (record, head) = self.next.take().expect("it was looked at");
            let mut spare = spares.try_recv().unwrap_or_default();
            let body = match (self.body)(&mut self.input, &record, &mut spare)? {
                None => Body::Here(spare),
                Some(offset) => Body::At(offset),
            };
            let frame = Frame { record, head, body };
            if !failures.is_empty() || frames.send(frame).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// The next frame of pages, with its body still in the input; none at the end, which was checked then.
    fn next_frame(&mut self) -> Result<Option<(Record, FrameHead)>, Error> {
        let record = self.next_record()?;
        match record.header.kind {
            kind::PAGES => self.admit(record).map(Some),
            kind::INDEX => self.end(&record).map(|()| None),
            kind::STATE => Err(Error::damaged("it has two states")),
            _ => Err(Error::damaged("its trailer comes before its index")),
        }
    }

    /// Checks where the pages of a frame are to go.
    fn admit(&mut self, record: Record) -> Result<(Record, FrameHead), Error> {
        let head = FrameHead::from_bytes(&record.head, self.header.page_size, record.header.body_len)?;
        let (_, coverage) = self.state.as_mut().expect("the state is read first");
        for run in &head.runs {
            self.order.add(run.space).map_err(Error::Damaged)?;
            if run.space.heirs_of() != head.runs[0].space.heirs_of() {
                return Err(Error::damaged("a frame belongs to two groups of pages"));
            }
            coverage.add(run.space, run.offset, run.len).map_err(Error::Damaged)?;
        }
        let body_len = record.header.body_len as u32; // FrameHead bounds it
        self.expected.add(Entry {
            offset: record.offset,
            body_len,
            raw_len: head.raw_len,
        });
        self.totals.frames += 1;
        self.totals.stored_bytes += u64::from(head.raw_len);
        self.totals.compressed_bytes += u64::from(body_len);
        Ok((record, head))
    }

    /// From the index to the end of the file.
    fn end(&mut self, index: &Record) -> Result<(), Error> {
        self.expected.check(&index.header)?;
        self.input.pass_body(index)?;
        let record = self.next_record()?;
        if record.header.kind != kind::TRAILER
            || record.header.body_len != 0
            || !agree(xxh3_of_nothing(), record.header.body_hash)
        {
            return Err(Error::damaged("its index is not followed by a trailer"));
        }
        let found = Trailer {
            records: self.totals.records,
            file_len: self.input.offset(),
            index_offset: index.offset,
            index_checksum: index.header.checksum,
        };
        if Trailer::from_bytes(&record.head)? != found {
            return Err(Error::damaged("its trailer tells of another image"));
        }
        self.totals.file_bytes = found.file_len;
        self.input.end()
    }

    /// The next record that this reader knows. Unknown ones are passed over where their writer allowed it.
    fn next_record(&mut self) -> Result<Record, Error> {
        loop {
            let record = self.input.record()?;
            self.totals.records += 1;
            let known = (kind::STATE..=kind::TRAILER).contains(&record.header.kind) && record.header.version == 1;
            if known {
                return Ok(record);
            }
            if record.header.flags & MAY_SKIP == 0 {
                let (kind, version) = (record.header.kind, record.header.version);
                return Err(Error::Newer {
                    what: format!("it has records of kind {kind}, version {version}"),
                });
            }
            self.input.pass_body(&record)?;
        }
    }
}

impl Reader<File> {
    /// Of a regular file: the threads that take pages read the bodies themselves, each its own.
    pub fn leave_bodies(mut self) -> Result<Self, Error> {
        self.file = Some(self.input.file().try_clone()?);
        self.body = |input, record, _| {
            let offset = input.offset();
            input.seek_past_body(record)?;
            Ok(Some(offset))
        };
        Ok(self)
    }
}

impl<R: Read + Seek> Reader<R> {
    /// [`Reader::list`] by seeking past the content, which stays unread and unchecked.
    pub fn list_seeking(self, visit: &mut Visit<'_>) -> Result<Totals, Error> {
        self.list_with(visit, |input, record| input.seek_past_body(record))
    }
}

fn xxh3_of_nothing() -> u64 {
    xxhash_rust::xxh3::xxh3_64(&[])
}
