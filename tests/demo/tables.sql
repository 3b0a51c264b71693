-- What an application has before it knows of orbhook, and three triggers that tell orbhook about it.

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

create table app.payments (
    id       bigint generated always as identity primary key,
    user_id  bigint not null references app.users on delete cascade,
    amount   numeric not null,
    currency text not null,
    method   text not null
);

-- The part of every payload that says whom it is about.
create function app.person(u app.users) returns jsonb language sql stable as $$
    select jsonb_build_object(
        'userId', u.id,
        'email', u.email,
        'username', u.username,
        'profile', jsonb_strip_nulls(jsonb_build_object(
            'firstName', u.first_name, 'lastName', u.last_name, 'country', u.country, 'phone', u.phone)))
$$;

create function app.users_changed() returns trigger language plpgsql as $$
begin
    if tg_op = 'INSERT' then
        perform orbhook_emit('USER_CREATED', app.person(new));
    else
        perform orbhook_emit('USER_DELETED', app.person(old));
    end if;
    return null;
end
$$;
create trigger users_changed after insert or delete on app.users
    for each row execute function app.users_changed();

create function app.subscribed() returns trigger language plpgsql as $$
begin
    perform orbhook_emit('SUBSCRIPTION_CREATED', app.person(u) || jsonb_build_object(
        'subscription', jsonb_build_object(
            'groupName', new.group_name, 'groupId', new.group_id, 'multiLoginCount', new.multi_login_count,
            'expiresAt', new.expires_at, 'isTrialPeriod', new.is_trial),
        'active', true,
        'autoRenew', new.auto_renew))
    from app.users u where u.id = new.user_id;
    return null;
end
$$;
create trigger subscribed after insert on app.subscriptions
    for each row execute function app.subscribed();

create function app.paid() returns trigger language plpgsql as $$
begin
    perform orbhook_emit('PAYMENT_RECEIVED', app.person(u) || jsonb_build_object(
        'payment', jsonb_build_object('id', new.id, 'amount', new.amount, 'currency', new.currency, 'method', new.method)))
    from app.users u where u.id = new.user_id;
    return null;
end
$$;
create trigger paid after insert on app.payments
    for each row execute function app.paid();

-- The application's role: it may change its tables and emit, and knows nothing else of orbhook.
create role app login;
grant usage on schema app to app;
grant select, insert, update, delete on all tables in schema app to app;
select orbhook_grant('app', 'emitter');
