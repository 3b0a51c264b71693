use orbhook_tests::{Cluster, DEADLINE, Database, wait_until};

#[tokio::test]
async fn what_a_logical_subscriber_applies_is_silent_and_what_is_written_there_speaks() {
    const TABLE: &str = "create table users (id int primary key, email text)";
    let cluster = Cluster::start(&[("wal_level", "logical")]);
    let (publisher, subscriber) = (Database::on(&cluster).await, Database::on(&cluster).await);
    for database in [&publisher, &subscriber] {
        database.execute(&format!("{TABLE}; select orbhook_watch('users', 'users')")).await;
    }
    publisher.execute("insert into users values (1, 'copied at the start')").await;
    publisher.execute("create publication users for table users").await;
    publisher.execute("select pg_create_logical_replication_slot('users', 'pgoutput')").await;
    let url = publisher.url("postgres");
    subscriber
        .execute(&format!(
            "create subscription users connection '{url}' publication users with (create_slot = false, slot_name = 'users')"
        ))
        .await;
    let has = async |email: &str| {
        let found = "select exists (select from users where email = $1)";
        wait_until("the change to be applied", DEADLINE, async || {
            subscriber.one::<bool>(found, &[&email]).await.then_some(())
        })
        .await;
    };
    has("copied at the start").await;
    publisher
        .execute("insert into users values (2, 'b'), (3, 'c'); update users set email = 'changed' where id = 2; delete from users where id = 3")
        .await;
    publisher.execute("insert into users values (4, 'last')").await;
    has("last").await;
    let events = "select count(*) from orbhook.events";
    assert_eq!(publisher.one::<i64>(events, &[]).await, 6);
    assert_eq!(subscriber.one::<i64>(events, &[]).await, 0);
    subscriber.execute("insert into users values (100, 'written here')").await;
    assert_eq!(subscriber.one::<i64>(events, &[]).await, 1);
    // A subscription with a slot keeps its database from being dropped.
    subscriber.execute("alter subscription users disable").await;
    subscriber.execute("alter subscription users set (slot_name = none)").await;
    subscriber.execute("drop subscription users").await;
    wait_until("the slot to be free", DEADLINE, async || {
        let free = "select not active from pg_replication_slots where slot_name = 'users'";
        publisher.one::<bool>(free, &[]).await.then_some(())
    })
    .await;
    publisher.execute("select pg_drop_replication_slot('users')").await;
}
