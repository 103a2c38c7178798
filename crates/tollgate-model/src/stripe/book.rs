//! What the events of an account come to, in credits.
//!
//! A *purchase* (a checkout session, or a subscription's invoice) grants credits once. Its *payments* say which reversals
//! are its own; a *reversal* (a charge's refunds together, or one dispute) takes credits back in proportion. All of it only
//! ever grows: amounts by the greater one, yes by `or`. So what a purchase is worth in the end does not depend on the order
//! in which its events came, nor on how often.

/// Money that was taken back of a payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reversal {
    /// In the currency's smallest unit; of a charge's refunds, all of them together.
    pub amount: i64,
    /// It is gone. Until then it was only announced.
    pub withdrawn: bool,
    /// It came back: a dispute was won.
    pub returned: bool,
}

impl Reversal {
    /// What is known of the same thing from two events.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        Self {
            amount: self.amount.max(other.amount),
            withdrawn: self.withdrawn || other.withdrawn,
            returned: self.returned || other.returned,
        }
    }

    /// The money is gone, and has not come back.
    pub fn is_gone(self) -> bool {
        self.withdrawn && !self.returned
    }

    fn effective(self) -> i64 {
        if self.is_gone() { self.amount } else { 0 }
    }
}

/// What was bought, and for how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bought {
    /// What was paid, in the currency's smallest unit; at least 1.
    pub amount: i64,
    /// What it granted.
    pub credits: i64,
}

impl Bought {
    /// How many of its credits these reversals take back: the part of the money, rounded in favour of the account, and all
    /// of them only with all of it.
    pub fn taken_back(self, reversals: impl IntoIterator<Item = Reversal>) -> i64 {
        let reversed: i128 = reversals.into_iter().map(|reversal| i128::from(reversal.effective())).sum();
        let amount = i128::from(self.amount.max(1));
        let credits = i128::from(self.credits) * reversed.clamp(0, amount) / amount;
        i64::try_from(credits).unwrap_or(self.credits)
    }
}

#[cfg(test)]
mod tests;
