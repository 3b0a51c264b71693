-- A mirror of Stripe's objects, kept by its webhooks: its ids, its words, its cents.
create schema stripe;
create table stripe.customers (id text primary key, email text, name text, phone text);
create table stripe.subscriptions (
    id text primary key, customer text not null references stripe.customers, status text not null, price_id text,
    unit_amount bigint, currency text, current_period_start timestamptz, current_period_end timestamptz,
    trial_end timestamptz, canceled_at timestamptz);
create index on stripe.subscriptions (customer);
create table stripe.charges (
    id text primary key, customer text references stripe.customers, amount bigint not null, currency text not null,
    status text not null, refunded boolean not null default false, failure_message text);
