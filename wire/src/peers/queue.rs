//! Frames that wait for the connection of a link, bounded by bytes: the oldest droppable ones go first.
//!
//! Invariant: `droppable` holds, in order, the places of all frames in `slots` that may be dropped, so dropping costs
//! the same however many others lie between them. A frame dropped from the middle leaves an empty slot.

use std::collections::VecDeque;

use bytes::Bytes;

/// One frame to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub payload: Bytes,
    pub droppable: bool,
}

impl Frame {
    /// Memory that a frame takes beside its payload, roughly.
    const OVERHEAD_BYTES: usize = 64;

    fn size_bytes(&self) -> usize {
        Self::OVERHEAD_BYTES + self.payload.len()
    }
}

/// See the module.
#[derive(Debug)]
pub struct Queue {
    slots: VecDeque<Option<Frame>>,
    /// The place of the first slot. It begins high, since frames are also put back.
    first: u64,
    droppable: VecDeque<u64>,
    bytes: usize,
    max_bytes: usize,
    dropped: u64,
}

impl Queue {
    /// An empty queue that drops what is droppable beyond `max_bytes`, and anything beyond twice that.
    pub fn new(max_bytes: usize) -> Self {
        Queue {
            slots: VecDeque::new(),
            first: 1 << 62,
            droppable: VecDeque::new(),
            bytes: 0,
            max_bytes,
            dropped: 0,
        }
    }

    /// Another limit, from the next frame on.
    pub fn set_max_bytes(&mut self, max_bytes: usize) {
        self.max_bytes = max_bytes;
    }

    /// Frames dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Counts a frame that was not even queued.
    pub fn count_dropped(&mut self) {
        self.dropped += 1;
    }

    /// Puts a frame at the end, and drops what is too much.
    pub fn push(&mut self, frame: Frame) {
        self.bytes += frame.size_bytes();
        if frame.droppable {
            self.droppable.push_back(self.first + self.slots.len() as u64);
        }
        self.slots.push_back(Some(frame));
        while self.bytes > self.max_bytes && self.drop_one() {}
        while self.bytes > self.max_bytes.saturating_mul(2) && self.pop().is_some() {
            self.dropped += 1;
        }
    }

    /// The oldest frame.
    pub fn pop(&mut self) -> Option<Frame> {
        let frame = self.slots.pop_front()??;
        if frame.droppable {
            self.droppable.pop_front();
        }
        self.first += 1;
        self.bytes -= frame.size_bytes();
        self.skip_empty();
        Some(frame)
    }

    /// Puts a frame that has been popped before all others again.
    pub fn put_back(&mut self, frame: Frame) {
        self.first -= 1;
        self.bytes += frame.size_bytes();
        if frame.droppable {
            self.droppable.push_front(self.first);
        }
        self.slots.push_front(Some(frame));
    }

    /// Drops all that is droppable.
    pub fn drop_all(&mut self) {
        while self.drop_one() {}
    }

    fn drop_one(&mut self) -> bool {
        let Some(place) = self.droppable.pop_front() else { return false };
        if let Some(frame) = self.slots[(place - self.first) as usize].take() {
            self.bytes -= frame.size_bytes();
            self.dropped += 1;
        }
        self.skip_empty();
        true
    }

    /// The first slot is never an empty one.
    fn skip_empty(&mut self) {
        while let Some(None) = self.slots.front() {
            self.slots.pop_front();
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 100;

    fn frame(number: u8, droppable: bool) -> Frame {
        Frame { payload: Bytes::from(vec![number; SIZE - Frame::OVERHEAD_BYTES]), droppable }
    }

    fn numbers(queue: &mut Queue) -> Vec<u8> {
        std::iter::from_fn(|| queue.pop()).map(|frame| frame.payload[0]).collect()
    }

    #[test]
    fn the_oldest_droppable_go_first() {
        let mut queue = Queue::new(3 * SIZE);
        for (number, droppable) in [(1, false), (2, true), (3, false), (4, true), (5, true), (6, false)] {
            queue.push(frame(number, droppable));
        }
        assert_eq!(queue.dropped(), 3);
        assert_eq!(numbers(&mut queue), [1, 3, 6]);
        assert!(queue.slots.is_empty() && queue.bytes == 0 && queue.droppable.is_empty());
    }

    #[test]
    fn beyond_twice_the_limit_anything_goes() {
        let mut queue = Queue::new(2 * SIZE);
        (1..=6).for_each(|number| queue.push(frame(number, false)));
        assert_eq!(queue.dropped(), 2);
        assert_eq!(numbers(&mut queue), [3, 4, 5, 6]);
    }

    #[test]
    fn what_was_put_back_is_first_and_still_droppable() {
        let mut queue = Queue::new(3 * SIZE);
        (1..=3).for_each(|number| queue.push(frame(number, true)));
        let first = queue.pop().unwrap();
        let second = queue.pop().unwrap();
        queue.put_back(second);
        queue.put_back(first);
        queue.push(frame(4, false));
        assert_eq!(numbers(&mut queue), [2, 3, 4]);
        assert_eq!(queue.dropped(), 1);
    }

    #[test]
    fn all_droppable_can_be_dropped_at_once() {
        let mut queue = Queue::new(100 * SIZE);
        (1..=9).for_each(|number| queue.push(frame(number, number % 2 == 1)));
        queue.drop_all();
        assert_eq!((queue.dropped(), queue.bytes), (5, 4 * SIZE));
        assert_eq!(numbers(&mut queue), [2, 4, 6, 8]);
    }

    #[test]
    fn it_agrees_with_a_plain_list() {
        // A small congruential generator: the same steps in each run.
        let mut seed = 1u32;
        let mut next = |below: u32| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 16) % below
        };
        let mut queue = Queue::new(10 * SIZE);
        let mut list: Vec<Frame> = Vec::new();
        for step in 0..20_000u32 {
            match next(8) {
                0..=4 => {
                    let new = frame(step as u8, next(2) == 0);
                    list.push(new.clone());
                    queue.push(new);
                    while list.len() > 10
                        && let Some(place) = list.iter().position(|frame| frame.droppable)
                    {
                        list.remove(place);
                    }
                    while list.len() > 20 {
                        list.remove(0);
                    }
                }
                5 | 6 => {
                    let expected = (!list.is_empty()).then(|| list.remove(0));
                    assert_eq!(queue.pop(), expected);
                }
                _ => {
                    let taken: Vec<Frame> = std::iter::from_fn(|| queue.pop()).take(3).collect();
                    taken.into_iter().rev().for_each(|frame| queue.put_back(frame));
                }
            }
            assert_eq!(queue.bytes, list.len() * SIZE);
        }
        assert!(queue.dropped() > 0);
    }
}
