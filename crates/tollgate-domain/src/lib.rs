//! One function, one business transaction
