//! Dead letters: tasks that nothing tries again by itself.
