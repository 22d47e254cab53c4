//! Waiting for the first of two things, and for what the owner of the wire says to one connection.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::event::Command;
use crate::registry::{Mailbox, Phase};

/// Which of two came first.
pub enum First<A, B> {
    One(A),
    Other(B),
}

/// Waits for either; the one not named by the result is given up.
pub async fn first<A, B>(one: impl Future<Output = A>, other: impl Future<Output = B>) -> First<A, B> {
    let mut one = pin!(one);
    let mut other = pin!(other);
    poll_fn(|cx| {
        if let Poll::Ready(result) = one.as_mut().poll(cx) {
            return Poll::Ready(First::One(result));
        }
        other.as_mut().poll(cx).map(First::Other)
    })
    .await
}

/// What the owner says.
pub enum Word {
    Command(Command),
    /// The connection is to end.
    End,
}

/// The answers of the owner to a connection that has one request only.
pub struct Owner {
    mailbox: Arc<Mailbox>,
    letters: Vec<(u32, Command)>,
    /// From which phase on the connection ends.
    pub ends_at: Phase,
}

impl Owner {
    /// The stream number of the one request.
    pub const REQUEST: u32 = 1;

    /// Listens to this mailbox until the wire closes.
    pub fn new(mailbox: Arc<Mailbox>) -> Self {
        Owner { mailbox, letters: Vec::new(), ends_at: Phase::Closing }
    }

    /// The next thing said. The connection is woken too when the inbox has room again.
    pub fn poll_word(&mut self, cx: &Context<'_>) -> Poll<Word> {
        if self.letters.is_empty() {
            let phase = self.mailbox.collect(cx.waker(), &mut self.letters);
            if phase >= self.ends_at {
                return Poll::Ready(Word::End);
            }
            self.letters.retain(|(number, _)| *number == Self::REQUEST);
            self.letters.reverse();
        }
        self.letters.pop().map_or(Poll::Pending, |(_, command)| Poll::Ready(Word::Command(command)))
    }

    /// Waits for the next thing said.
    pub async fn word(&mut self) -> Word {
        poll_fn(|cx| self.poll_word(cx)).await
    }
}
