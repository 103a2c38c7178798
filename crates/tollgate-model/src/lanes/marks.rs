//! Where the last claims stopped, so that the next one need not step over all that was taken before it.
//!
//! A dead row stays in an index until no snapshot can see it: while a report or a backup holds one, a claim that began
//! at the start of its lane would step over every task done since (measured elsewhere: a queue's rate halves in minutes). But
//! a task may also be committed after one that stands behind it was claimed. How late it will be, nobody knows; so a
//! claim looks back a little every time, further now and then, and far seldom. A task that was committed `d` late is
//! found within about `32 d`, and all the looking back together costs a few percent.

use std::collections::BTreeMap;
use std::time::Duration;

/// A task's place in its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// 1 to 20; lower is sooner.
    pub rank: i16,
    /// Among equals; only grows.
    pub position: i64,
}

/// A part of a lane: what stands after a place, up to the end of a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Not including it.
    pub after: Place,
    /// Including it.
    pub until_rank: i16,
}

/// The last rank.
const LAST: i16 = 20;

impl Span {
    /// The whole lane.
    pub const ALL: Self = Self { after: Place { rank: 0, position: 0 }, until_rank: LAST };
}

/// How late a task may be that a level finds. Each level looks again after four times as long, and back so far that
/// nothing was overtaken by less than this before its last look: what that one was too early for, this one sees.
const LOOK_BACK: [Duration; 5] = [
    Duration::from_millis(50),
    Duration::from_millis(400),
    Duration::from_millis(3_200),
    Duration::from_millis(25_600),
    Duration::from_millis(204_800),
];

/// From the very beginning.
const FROM_THE_START: Duration = Duration::from_secs(1_638);

/// How far claims have come in one rank.
#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    reached: i64,
    /// For each level, where it looks from next.
    levels: [Level; LOOK_BACK.len()],
}

#[derive(Debug, Clone, Copy, Default)]
struct Level {
    /// What was old when this level last looked.
    from: i64,
    /// A position that was reached at least so long ago as the level may be late, and one that will be.
    old: i64,
    young: i64,
    young_at: Option<Duration>,
}

impl Mark {
    /// Brings the levels up to date.
    fn age(&mut self, now: Duration) {
        for (level, look_back) in self.levels.iter_mut().zip(LOOK_BACK) {
            if level.young_at.is_none_or(|at| now.saturating_sub(at) >= look_back) {
                // The first sample is of a time before anything was reached.
                if level.young_at.is_some() {
                    level.old = level.young;
                }
                (level.young, level.young_at) = (self.reached, Some(now));
            }
        }
    }

    /// Where a look of these levels begins.
    fn look(&mut self, levels: usize) -> i64 {
        let looking = &mut self.levels[..levels];
        let from = looking.iter().map(|level| level.from).min().unwrap_or(0);
        for level in looking {
            level.from = level.old;
        }
        from
    }
}

/// The marks of one lane.
#[derive(Debug, Default)]
pub(super) struct Marks {
    ranks: BTreeMap<i16, Mark>,
    /// When each level, and at last the start, is to be looked at next.
    due: [Option<Duration>; LOOK_BACK.len() + 1],
}

impl Marks {
    /// A task was taken there.
    pub(super) fn reached(&mut self, place: Place, now: Duration) {
        let mark = self.ranks.entry(place.rank).or_default();
        mark.age(now);
        mark.reached = mark.reached.max(place.position);
    }

    /// Where the next claim is to look.
    pub(super) fn spans(&mut self, now: Duration) -> Vec<Span> {
        let levels = self.levels(now);
        let mut spans = Vec::with_capacity(self.ranks.len() + 1);
        let mut after = Span::ALL.after;
        for (&rank, mark) in &mut self.ranks {
            mark.age(now);
            let from = levels.map_or(0, |levels| mark.look(levels));
            if from == 0 {
                continue;
            }
            if rank > after.rank + 1 || after.position > 0 {
                spans.push(Span { after, until_rank: rank - 1 });
            }
            after = Place { rank, position: from };
        }
        spans.push(Span { after, until_rank: LAST });
        spans
    }

    /// How many levels look now, the first always; `None`: all, and from the start.
    fn levels(&mut self, now: Duration) -> Option<usize> {
        let pauses = LOOK_BACK.map(|look_back| look_back * 4).into_iter().chain([FROM_THE_START]);
        let mut levels = 1;
        for (nr, (due, pause)) in self.due.iter_mut().zip(pauses).enumerate() {
            if due.is_none_or(|due| due <= now) {
                if due.is_some() {
                    levels = nr + 1;
                }
                *due = Some(now + pause);
            }
        }
        (levels <= LOOK_BACK.len()).then_some(levels)
    }
}
