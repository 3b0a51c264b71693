-- What an application has before it knows of orbhook, and three calls that make it speak.

create schema app;

create table app.users (
    id         bigint primary key,
    email      text not null,
    username   text not null,
    first_name text,
    last_name  text,
    country    text,
    phone      text
);

create table app.subscriptions (
    id                bigint generated always as identity primary key,
    user_id           bigint not null references app.users on delete cascade,
    group_id          int not null,
    group_name        text not null,
    multi_login_count int not null,
    expires_at        timestamptz not null,
    is_trial          boolean not null default false,
    auto_renew        boolean not null default false
);
create index on app.subscriptions (user_id);

create table app.payments (
    id       bigint generated always as identity primary key,
    user_id  bigint not null references app.users on delete cascade,
    amount   numeric not null,
    currency text not null,
    method   text not null
);

-- From here on they speak. Each call also says what will be emitted when.
select orbhook_watch('users', 'app.users');
select orbhook_watch('subscriptions', 'app.subscriptions');
select orbhook_watch('payments', 'app.payments');

-- The application's role: it may change its tables, and knows nothing of orbhook.
create role app login;
grant usage on schema app to app;
grant select, insert, update, delete on all tables in schema app to app;
