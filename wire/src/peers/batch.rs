//! Frames on their way into a socket: small ones are copied together, large ones lie where they are, and one system
//! call writes many. What has not been written whole can be had back, for the next connection.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;

use super::frame::{self, HEADER_BYTES, kind};
use super::queue::Frame;
use crate::socket::Socket;

/// See the module.
#[derive(Debug, Default)]
pub struct Batch {
    segments: VecDeque<Bytes>,
    /// The last segment, still growing.
    small: BytesMut,
    /// Each frame that is not written whole, with the bytes it takes; None for one that is not worth keeping.
    frames: VecDeque<(Option<Frame>, usize)>,
    bytes: usize,
    /// Bytes of the first frame that are written.
    written: usize,
}

impl Batch {
    /// A batch of this size is worth a system call.
    pub const TARGET_BYTES: usize = 262_144;
    /// A longer payload is not copied.
    const COPIED_BYTES: usize = 8_192;
    const MAX_SLICES: usize = 64;

    /// True when all is written.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Bytes that wait here.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a frame of the owner's.
    pub fn add(&mut self, frame: Frame) {
        self.small.extend_from_slice(&frame::header(kind::DATA, frame.payload.len()));
        if frame.payload.len() <= Self::COPIED_BYTES {
            self.small.extend_from_slice(&frame.payload);
        } else {
            self.seal();
            self.segments.push_back(frame.payload.clone());
        }
        self.count(HEADER_BYTES + frame.payload.len(), Some(frame));
    }

    /// Adds to an empty batch a frame of the owner's of which some bytes are written already.
    pub fn add_rest(&mut self, frame: Frame, written: usize) {
        debug_assert!(self.is_empty());
        self.add(frame);
        self.seal();
        self.advance(written);
    }

    /// Adds a frame of the link's own.
    pub fn add_control(&mut self, kind: u8, payload: &[u8]) {
        self.small.extend_from_slice(&frame::header(kind, payload.len()));
        self.small.extend_from_slice(payload);
        self.count(HEADER_BYTES + payload.len(), None);
    }

    fn count(&mut self, bytes: usize, frame: Option<Frame>) {
        self.frames.push_back((frame, bytes));
        self.bytes += bytes;
    }

    fn seal(&mut self) {
        if !self.small.is_empty() {
            self.segments.push_back(self.small.split().freeze());
        }
    }

    /// Writes once; the bytes that the socket took, which are all of them only perhaps.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, socket: &mut Socket) -> Poll<io::Result<usize>> {
        self.seal();
        let mut slices = [IoSlice::new(&[]); Self::MAX_SLICES];
        let count = self.segments.len().min(Self::MAX_SLICES);
        for (slice, segment) in slices.iter_mut().zip(&self.segments) {
            *slice = IoSlice::new(segment);
        }
        let taken = std::task::ready!(Pin::new(socket).poll_write_vectored(cx, &slices[..count]))?;
        if taken == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.advance(taken);
        Poll::Ready(Ok(taken))
    }

    fn advance(&mut self, mut taken: usize) {
        self.bytes -= taken;
        self.written += taken;
        while let Some((_, bytes)) = self.frames.front()
            && self.written >= *bytes
        {
            self.written -= *bytes;
            self.frames.pop_front();
        }
        while let Some(segment) = self.segments.front_mut()
            && taken > 0
        {
            let step = segment.len().min(taken);
            segment.advance(step);
            taken -= step;
            if segment.is_empty() {
                self.segments.pop_front();
            }
        }
    }

    /// Frames that have not been written whole, newest first.
    pub fn unwritten(&mut self) -> impl Iterator<Item = Frame> {
        self.frames.drain(..).rev().filter_map(|(frame, _)| frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(size: usize) -> Frame {
        Frame { payload: Bytes::from(vec![size as u8; size]), droppable: false }
    }

    fn filled() -> (Batch, Vec<Frame>) {
        let frames: Vec<Frame> = [0, 3, Batch::COPIED_BYTES + 1, 7, 7].map(frame).into();
        let mut batch = Batch::default();
        for (number, frame) in frames.iter().enumerate() {
            if number == 3 {
                batch.add_control(kind::PING, &[9; 8]);
            }
            batch.add(frame.clone());
        }
        (batch, frames)
    }

    #[test]
    fn small_frames_share_a_segment() {
        let (mut batch, frames) = filled();
        batch.seal();
        assert_eq!(batch.segments.len(), 3);
        let bytes: usize = frames.iter().map(|frame| HEADER_BYTES + frame.payload.len()).sum();
        assert_eq!(batch.bytes(), bytes + HEADER_BYTES + 8);
        assert_eq!(batch.segments.iter().map(Bytes::len).sum::<usize>(), batch.bytes());
    }

    #[test]
    fn what_is_not_written_whole_comes_back() {
        let ends = [5, 13, 13 + 5 + Batch::COPIED_BYTES + 1];
        for (taken, left) in
            [(0, 5), (4, 5), (ends[0], 4), (ends[1] - 1, 4), (ends[1], 3), (ends[2] - 1, 3), (ends[2] + 9, 2)]
        {
            let (mut batch, frames) = filled();
            batch.seal();
            batch.advance(taken);
            let mut back: Vec<Frame> = batch.unwritten().collect();
            back.reverse();
            assert_eq!(back, frames[frames.len() - left..], "{taken} bytes taken");
        }
    }

    #[test]
    fn the_rest_of_a_frame_is_what_is_left_and_comes_back_whole() {
        for written in [1, HEADER_BYTES, HEADER_BYTES + 40, HEADER_BYTES + 99] {
            let mut batch = Batch::default();
            batch.add_rest(frame(100), written);
            batch.add_control(kind::PING, &[9; 8]);
            assert_eq!(batch.bytes(), HEADER_BYTES + 100 - written + HEADER_BYTES + 8);
            assert_eq!(batch.unwritten().collect::<Vec<_>>(), [frame(100)]);
        }
    }

    #[test]
    fn any_steps_write_the_same_bytes() {
        for step in [1, 2, 13, 8192, 100_000] {
            let (mut batch, _) = filled();
            batch.seal();
            while !batch.is_empty() {
                batch.advance(step.min(batch.bytes()));
            }
            assert!(batch.segments.is_empty() && batch.frames.is_empty());
        }
    }
}
