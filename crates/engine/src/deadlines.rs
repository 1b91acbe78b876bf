//! When requests must be over.

use std::{cmp::Reverse, collections::BinaryHeap, time::Instant};

/// Sweeps are not worth it below this many.
const SWEEP_MIN: usize = 1024;

/// Names with a time each, earliest first. Those that are over leave their entry behind; it is swept out before such
/// entries outnumber the others, so what is held is bounded by what is alive and not by how far away deadlines are.
pub(crate) struct Deadlines<T> {
    heap: BinaryHeap<Reverse<(Instant, T)>>,
    sweep_above: usize,
}

impl<T: Copy + Ord> Deadlines<T> {
    pub(crate) fn new() -> Self {
        Self { heap: BinaryHeap::new(), sweep_above: SWEEP_MIN }
    }

    /// Adds one; asks which of the others are still alive when there are many.
    pub(crate) fn push(&mut self, deadline: Instant, name: T, is_alive: impl Fn(T) -> bool) {
        if self.heap.len() >= self.sweep_above {
            self.heap.retain(|&Reverse((_, name))| is_alive(name));
            self.sweep_above = (2 * self.heap.len()).max(SWEEP_MIN);
        }
        self.heap.push(Reverse((deadline, name)));
    }

    /// The next whose time has come, until there is none. It may be over already.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<T> {
        let &Reverse((deadline, name)) = self.heap.peek()?;
        if deadline > now {
            return None;
        }
        self.heap.pop();
        Some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_earliest_comes_first_and_nothing_before_its_time() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut deadlines = Deadlines::new();
        for (seconds, name) in [(3, 'c'), (1, 'a'), (2, 'b')] {
            deadlines.push(at(seconds), name, |_| true);
        }
        assert_eq!(deadlines.pop_due(at(0)), None);
        assert_eq!((deadlines.pop_due(at(2)), deadlines.pop_due(at(2))), (Some('a'), Some('b')));
        assert_eq!(deadlines.pop_due(at(2)), None);
        assert_eq!(deadlines.pop_due(at(3)), Some('c'));
    }

    #[test]
    fn those_that_are_over_do_not_pile_up() {
        let far = Instant::now() + Duration::from_secs(7 * 24 * 3600);
        let mut deadlines = Deadlines::new();
        for name in 0..100_000_u32 {
            // The last ten are alive.
            deadlines.push(far, name, |other| other + 10 > name);
            assert!(deadlines.heap.len() <= SWEEP_MIN);
        }
        let mut left = std::iter::from_fn(|| deadlines.pop_due(far)).collect::<Vec<_>>();
        assert_eq!(left.split_off(left.len() - 10), (99_990..100_000).collect::<Vec<_>>());
    }
}
