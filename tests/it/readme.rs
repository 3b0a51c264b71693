//! What a DBA asks, answered with the README's own words.

use orbhook_tests::{Database, generic};
use serde_json::json;

const README: &str = include_str!("../../README.md");

#[tokio::test]
async fn each_question_of_the_readme_is_answered_by_its_one_statement() {
    let database = Database::new().await;
    let (reader, admin) = (database.role("reader").await, database.role("admin").await);
    let (reader, admin) = (database.connect_as(&reader).await, database.connect_as(&admin).await);
    let mut config = generic("http://127.0.0.1:9/hook");
    config["filter"] = json!("$.payment.amount > 100");
    database.create_webhook(config).await;
    let event = database.emit("PAYMENT_REFUNDED", json!({"payment": {"amount": 101}})).await;

    let questions = questions();
    assert!(questions.len() >= 9, "{questions:?}");
    for (question, statements) in questions {
        for statement in statements {
            let sql = statement.replace("'X'", &format!("'{event}'")).replace("{…}", "{}");
            // Looking is a reader's; doing, and what shows a request, is an admin's.
            let is_for_readers =
                sql.contains("from orbhook.") && !sql.contains("captured") && !sql.contains('(');
            let session = if is_for_readers { &reader } else { &admin };
            let rows = session.rows(&sql, &[]).await;
            let may_be_empty = ["orbhook.dead_letters", "orbhook.sidecars", "orbhook.captured"];
            assert!(
                !rows.is_empty() || may_be_empty.iter().any(|view| sql.contains(view)),
                "{question}: {statement} says nothing"
            );
        }
    }
}

/// The table under "Did it go out?": each question and the statements that answer it.
fn questions() -> Vec<(&'static str, Vec<&'static str>)> {
    let (_, section) = README.split_once("## Did it go out?").expect("the section");
    let (section, _) = section.split_once("\n## ").expect("the next section");
    section
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | "))
        .filter(|(_, answer)| answer.contains('`'))
        .map(|(question, answer)| (question, answer.split('`').skip(1).step_by(2).collect()))
        .collect()
}
