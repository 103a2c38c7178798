//! While PostgreSQL is away, whatever needs it is refused at once, and not after a wait of its own.

use std::pin::pin;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use tokio::time::sleep;
use tollgate_domain::Database;

use crate::problem::{Code, Problem};

/// A request that waits longer is reason enough to look whether PostgreSQL is there: a network that swallows everything
/// gives no error.
const PATIENCE: Duration = Duration::from_millis(500);

/// Around every route that asks the database.
pub(crate) async fn available(State(db): State<Database>, request: Request, next: Next) -> Response {
    if db.is_away() {
        db.count_refused();
        return refusal("the database is not available at the moment; try again");
    }
    let mut answer = pin!(next.run(request));
    let gone = async {
        sleep(PATIENCE).await;
        db.suspect(None);
        db.gone().await;
    };
    tokio::select! {
        biased;
        response = &mut answer => {
            if let Some(why) = response.extensions().get::<Problem>().and_then(Problem::cause) {
                db.suspect(Some(why));
            } else if is_of_database(response.status()) {
                db.answered();
            }
            response
        }
        () = gone => {
            db.count_refused();
            refusal("the database went away before it answered; what was asked may yet have been done")
        }
    }
}

/// Whether nobody but the database can have said so: what is done, what there is, and what it does not allow.
fn is_of_database(status: StatusCode) -> bool {
    let refused = [StatusCode::PAYMENT_REQUIRED, StatusCode::NOT_FOUND, StatusCode::CONFLICT];
    status.is_success() || refused.contains(&status)
}

fn refusal(detail: &str) -> Response {
    Problem::new(Code::Unavailable, detail).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_for_what_the_database_holds_is_its_answer() {
        for (status, answered) in
            [(202, true), (402, true), (404, true), (409, true), (400, false), (503, false)]
        {
            assert_eq!(is_of_database(StatusCode::from_u16(status).unwrap()), answered, "{status}");
        }
    }
}
