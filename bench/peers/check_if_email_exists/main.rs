// check-if-email-exists with its defaults, but for sender and HELO: `peer LIST CONCURRENCY`, so many checks at a time.
use check_if_email_exists::{check_email, CheckEmailInput, Reachable};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::Arc;

#[tokio::main]
async fn main() {
    let given: Vec<String> = std::env::args().collect();
    let text = std::fs::read_to_string(&given[1]).expect("the list");
    let rows: Arc<Vec<String>> = Arc::new(
        text.lines().skip(1).map(|line| line.split(',').next().unwrap().trim().to_string()).collect(),
    );
    let next = Arc::new(AtomicUsize::new(0));
    let answered = Arc::new(AtomicUsize::new(0));
    let work: Vec<_> = (0..given[2].parse().expect("the concurrency"))
        .map(|_: usize| {
            let (rows, next, answered) = (rows.clone(), next.clone(), answered.clone());
            tokio::spawn(async move {
                while let Some(row) = rows.get(next.fetch_add(1, Relaxed)) {
                    let mut input = CheckEmailInput::new(row.clone());
                    input.set_from_email("probe@probe.lab".into()).set_hello_name("probe.lab".into());
                    if check_email(&input).await.is_reachable != Reachable::Unknown {
                        answered.fetch_add(1, Relaxed);
                    }
                }
            })
        })
        .collect();
    for each in work {
        each.await.expect("a check");
    }
    println!("{{\"addresses\": {}, \"answered\": {}}}", rows.len(), answered.load(Relaxed));
}
